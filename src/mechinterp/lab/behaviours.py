"""What a small language model can do: the measurements on the lab model's card.

Every function takes any `TransformerBridge` whose tokenizer has the words of `mechinterp.datasets` as
single tokens, and returns plain numbers. Sequences start with the BOS token.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp.datasets import generated, ioi
from mechinterp.datasets.ordinals import TASKS, Task
from mechinterp.datasets.repeats import repeated_tokens
from mechinterp.successor import successor_scores

FILLER = (
    "the man came back to the house with a letter",
    "we had been there before",
    "she looked at the sea and said nothing for a long time",
    "it was late",
    "a few of them went up the hill to see the ships",
)


@torch.no_grad()
def forward(model: Any, tokens: Int[Tensor, "batch pos"], batch_size: int = 32) -> Float[Tensor, "batch pos vocab"]:
    """Logits of every position, in batches."""
    return torch.cat([model(part) for part in tokens.to(model.cfg.device).split(batch_size)])


def indirect_objects(model: Any, *, n: int = 600, seed: int = 0, seen: bool = False) -> dict[str, float]:
    """IOI on the fifteen held-out templates: held-out name pairs, or (`seen`) pairs of the training text."""
    held_out = ioi.held_out_pairs()
    every = [(a, b) for i, a in enumerate(ioi.NAMES) for b in ioi.NAMES[i + 1 :]]
    pairs = sorted(set(every) - set(held_out)) if seen else held_out
    data = ioi.make(model.tokenizer, n, seed=seed, pairs=pairs, prepend_bos=True)
    end = torch.cat([data[i : i + 64].at("END", forward(model, data[i : i + 64].tokens)) for i in range(0, n, 64)])
    ld = data.logit_diff(end)
    return {
        "accuracy": (ld > 0).float().mean().item(),
        "logit_diff": ld.mean().item(),
        "io_prob": data.io_prob(end).mean().item(),
    }


def induction(model: Any, *, n: int = 32, length: int = 50, seed: int = 0) -> dict[str, float]:
    """Accuracy on the second copy of uniformly random tokens, and the loss on either copy (nats)."""
    tokens = repeated_tokens(model.cfg.d_vocab, n, length, seed, bos=model.tokenizer.bos_token_id)
    logits = forward(model, tokens)[:, :-1].log_softmax(-1)
    target = tokens[:, 1:].to(logits.device)
    loss = -logits.gather(-1, target[..., None])[..., 0]
    hit = logits.argmax(-1) == target
    return {
        "accuracy": hit[:, length + 1 :].float().mean().item(),
        "loss_first": loss[:, :length].mean().item(),
        "loss_second": loss[:, length + 1 :].mean().item(),
    }


def succession_prompts(kind: str, tasks: Sequence[Task] = tuple(TASKS.values())) -> list[tuple[str, str]]:
    """(prompt, answer) pairs; the item to be incremented comes last (`adjacent`) or lies in a passage (`fetched`)."""
    prompts = []
    for task in tasks:
        words = (*task.words, *task.words[:2]) if task.cyclic else task.words
        for i in range(0, len(words) - 3, max(1, len(words) // 30)):
            items, answer = words[i : i + 3], words[i + 3]
            if kind == "adjacent":
                text = "".join(f" {w}" for w in items)
            elif kind == "fetched":
                text = "".join(f" Step {w}: {FILLER[(i + j) % len(FILLER)]}\n" for j, w in enumerate(items)) + " Step"
            else:
                raise ValueError(f"kind must be adjacent or fetched, not {kind!r}")
            prompts.append((text, " " + answer))
    return prompts


def succession(model: Any, kind: str) -> dict[str, float]:
    """Accuracy over the whole vocabulary, per task and over all prompts."""
    rates, hits = {}, []
    for task in TASKS.values():
        right = []
        for prompt, answer in succession_prompts(kind, [task]):
            row = [model.tokenizer.bos_token_id, *model.tokenizer.encode(prompt, add_special_tokens=False)]
            guess = forward(model, torch.tensor([row]))[0, -1].argmax().item()
            right.append(guess == ioi.single_token(model.tokenizer, answer.strip()))
        rates[task.name] = float(np.mean(right))
        hits += right
    return {"all": float(np.mean(hits)), **rates}


def no_repetition(model: Any, *, n: int = 64, size: int = 8, rows: int = 3, seed: int = 0) -> dict[str, float]:
    """Rows that are permutations of one set of names: how much probability goes to names already in the row.

    `repeated` is the share of the set's probability on names already listed in the current row, at
    positions where half the row is listed (0.5 would be blind to the list, 0 is perfect); `on_set` is
    the probability of the whole set there.
    """
    rng = np.random.default_rng(seed)
    sequences, sets, listed = [], [], []
    tok = model.tokenizer
    comma = tok.encode(",", add_special_tokens=False)
    newline = tok.encode("\n", add_special_tokens=False)
    for _ in range(n):
        names = [ioi.single_token(tok, ioi.NAMES[i]) for i in rng.permutation(len(ioi.NAMES))[:size]]
        row: list[int] = [tok.bos_token_id]
        for r in range(rows):
            order = [names[i] for i in rng.permutation(size)]
            keep = order if r < rows - 1 else order[: size // 2]
            row += [t for i, name in enumerate(keep) for t in ([*comma, name] if i else [name])]
            row += newline if r < rows - 1 else comma
        sequences.append(row)
        sets.append(names)
        listed.append(keep)
    probs = forward(model, torch.tensor(sequences))[:, -1].softmax(-1)
    on_set = probs.gather(1, torch.tensor(sets, device=probs.device)).sum(1)
    repeated = probs.gather(1, torch.tensor(listed, device=probs.device)).sum(1)
    return {"repeated": (repeated.sum() / on_set.sum()).item(), "on_set": on_set.mean().item()}


def text_loss(model: Any, ids: Int[np.ndarray, " token"], *, windows: int = 200) -> dict[str, float]:
    """Mean next-token loss (nats) on evenly spaced windows of a token array, each after one BOS."""
    length = model.cfg.n_ctx - 1
    starts = np.linspace(0, len(ids) - length - 1, windows).astype(int)
    rows = [[model.tokenizer.bos_token_id, *ids[s : s + length].astype(int)] for s in starts]
    total = []
    for part in torch.tensor(rows).split(16):
        logp = forward(model, part)[:, :-1].log_softmax(-1)
        total.append(-logp.gather(-1, part[:, 1:, None].to(logp.device))[..., 0].mean(1))
    loss = torch.cat(total)
    return {"loss": loss.mean().item(), "standard_error": (loss.std() / len(loss) ** 0.5).item()}


def card(model: Any, held_out: Int[np.ndarray, " token"] | None = None) -> dict[str, Any]:
    """Every measurement, as it stands on the model card."""
    scores = successor_scores(model)
    result: dict[str, Any] = {
        "IOI, held-out pairs and templates": indirect_objects(model),
        "IOI, seen pairs, held-out templates": indirect_objects(model, seen=True),
        "induction on random tokens": induction(model),
        "succession, item adjacent": succession(model, "adjacent"),
        "succession, item some tokens back": succession(model, "fetched"),
        "best successor score from weights": {name: scores.score(name).max().item() for name in TASKS},
        "head with that score": {name: str(scores.best(name)) for name in TASKS},
        "lists without repetition": no_repetition(model),
    }
    if held_out is not None:
        result["held-out text"] = text_loss(model, held_out)
    return result


def generated_examples(tokenizer: Any, real: Int[np.ndarray, " token"], seed: int = 0) -> dict[str, str]:
    """One example of each kind of generated document, as text."""
    rng = np.random.default_rng(seed)

    def quote(n: int) -> list[int]:
        start = rng.integers(len(real) - n)
        return [int(t) for t in real[start : start + n]]

    examples = {}
    for kind in generated.MIXTURE:
        pieces = kind(rng, quote)
        examples[kind.__name__] = "".join(p if isinstance(p, str) else str(tokenizer.decode(p)) for p in pieces)
    return examples
