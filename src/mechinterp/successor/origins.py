"""Where do mod-10 features come from? Small models, trained on numbers, that differ only in what they are asked.

    python -m mechinterp.successor.origins --out FOLDER --export

A model reads `<bos> question number` and answers at the number. Numbers are single tokens without any structure; what
there is of units and tens in a representation afterwards, the questions have put there. For every diet of questions and
every seed a small GPT-2 is trained; then a linear probe for the units digit is fitted on what the first block makes of
a number (`representations`), and tested on the numbers whose questions were held out in training.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from mechinterp.arithmetic import arithmetic
from mechinterp.files import atomic_write
from mechinterp.models.handmade import tokenizer
from mechinterp.models.load import to_bridge
from mechinterp.successor.features import linear_probe
from mechinterp.successor.score import representations

RESULTS = Path(__file__).parent / "origins.json"
NUMBERS = 200
QUESTIONS = ("next", "units", "tens", *(f"plus {k}" for k in range(2, 10)))
VOCABULARY = (
    "<bos>",
    *(f"<{question}>" for question in QUESTIONS),
    *(str(n) for n in range(NUMBERS)),
    *(f"<units {d}>" for d in range(10)),
    *(f"<tens {d}>" for d in range(NUMBERS // 10)),
)
DIETS: Mapping[str, tuple[Sequence[str], float]] = {
    "succession, every pair": (("next",), 0.0),
    "succession, some held out": (("next",), 0.3),
    "succession and tens": (("next", "tens"), 0.3),
    "sums": (("next", *(f"plus {k}" for k in range(2, 10))), 0.3),
    "succession and units": (("next", "units"), 0.3),
}
"""Questions that a model is asked, and the share of numbers whose answers it is never shown, drawn by question."""
SEEDS = (0, 1, 2, 3, 4)


@dataclass(frozen=True)
class Recipe:
    """What all runs share.

    Attributes:
        steps: full-batch steps of AdamW. `decay`: weight decay.
    """

    steps: int = 4000
    lr: float = 1e-3
    decay: float = 1.0
    n_layer: int = 2
    n_head: int = 4
    n_embd: int = 64


def answer(question: str, number: Int[Tensor, " row"]) -> Int[Tensor, " row"]:
    """The token that answers a question about each number; the successor of the last number is 0.

    >>> VOCABULARY[int(answer("next", torch.tensor([41])))], VOCABULARY[int(answer("units", torch.tensor([41])))]
    ('42', '<units 1>')
    """
    if question == "units":
        return VOCABULARY.index("<units 0>") + number % 10
    if question == "tens":
        return VOCABULARY.index("<tens 0>") + number // 10
    step = 1 if question == "next" else int(question.removeprefix("plus "))
    return VOCABULARY.index("0") + (number + step) % NUMBERS


def held_out(question: str, share: float, seed: int) -> Bool[Tensor, " number"]:
    """Which numbers a model is never shown the answer of; the same for every diet with that question and seed."""
    generator = torch.Generator().manual_seed(1000 * seed + QUESTIONS.index(question))
    order = torch.randperm(NUMBERS, generator=generator)
    return torch.isin(torch.arange(NUMBERS), order[: round(share * NUMBERS)])


def rows(diet: str, seed: int) -> tuple[Int[Tensor, "row pos"], Int[Tensor, " row"], Bool[Tensor, " row"]]:
    """Prompts, their answers and whether they are held out, all questions of a diet one after the other.

    Errors: `ValueError` for an unknown diet.
    """
    if diet not in DIETS:
        raise ValueError(f"unknown diet {diet!r}; one of {', '.join(DIETS)}")
    questions, share = DIETS[diet]
    number, first = torch.arange(NUMBERS), VOCABULARY.index("0")
    prompts = [torch.stack([0 * number, 0 * number + VOCABULARY.index(f"<{q}>"), first + number], 1) for q in questions]
    answers = [answer(question, number) for question in questions]
    hidden = [held_out(question, share, seed) for question in questions]
    return torch.cat(prompts), torch.cat(answers), torch.cat(hidden)


def train(diet: str, seed: int, recipe: Recipe = Recipe(), *, device: str = "cpu") -> Any:
    """A small GPT-2 trained on a diet, as a bridge."""
    from transformers import GPT2Config, GPT2LMHeadModel

    prompts, answers, hidden = (x.to(device) for x in rows(diet, seed))
    config = GPT2Config(
        vocab_size=len(VOCABULARY),
        n_positions=4,
        n_layer=recipe.n_layer,
        n_head=recipe.n_head,
        n_embd=recipe.n_embd,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: Any = GPT2LMHeadModel(config)
    model = model.to(device).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=recipe.lr, weight_decay=recipe.decay, betas=(0.9, 0.98))
    shown, wanted = prompts[~hidden], answers[~hidden]
    with torch.enable_grad():
        for _ in range(recipe.steps):
            loss = torch.nn.functional.cross_entropy(model(shown).logits[:, -1], wanted)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return to_bridge(model, tokenizer(VOCABULARY), name="numbers", device=device)


def units_probe(
    x: Float[Tensor, "number d_model"], seed: int, *, shuffles: int = 5
) -> tuple[float, Float[Tensor, " shuffle"]]:
    """Accuracy of a linear probe for the units digit, and of probes for shuffled digits; chance is 0.1.

    Tested on three numbers in ten, those whose units answers the diet of succession and units is not shown.
    """
    digit, test = torch.arange(NUMBERS) % 10, held_out("units", 0.3, seed)
    generator = torch.Generator().manual_seed(seed)
    shuffled = [digit[torch.randperm(NUMBERS, generator=generator)] for _ in range(shuffles)]
    with torch.enable_grad():
        own, *others = (linear_probe(x, labels, test).accuracy for labels in (digit, *shuffled))
    return own, torch.tensor(others)


@torch.no_grad()
def measure(model: Any, diet: str, seed: int) -> dict[str, float | None]:
    """What a trained model knows, and what a probe can read of the units digit.

    Returns:
        `shown`, `held out`: accuracy of succession on either kind of number (None if there are none). `probe`,
        `shuffled`: accuracies of `units_probe`, the second a mean.
    """
    prompts, answers, hidden = rows(diet, seed)
    right = model(prompts.to(next(model.parameters()).device))[:, -1].argmax(-1).cpu() == answers
    right, hidden = right[:NUMBERS], hidden[:NUMBERS]
    own, others = units_probe(representations(model, VOCABULARY.index("0") + torch.arange(NUMBERS)), seed)
    return {
        "shown": right[~hidden].float().mean().item(),
        "held out": right[hidden].float().mean().item() if hidden.any() else None,
        "probe": own,
        "shuffled": others.mean().item(),
    }


def measured(recipe: Recipe = Recipe()) -> dict[str, list[dict[str, float | None]]]:
    """The committed measurements, [diet][seed].

    Errors: `ValueError` if there are none, or they were made by another recipe.
    """
    found: dict[str, Any] = {"recipe": None}
    if RESULTS.exists():
        found = json.loads(RESULTS.read_text(encoding="utf8"))
    if found["recipe"] != asdict(recipe):
        how = "is not there" if found["recipe"] is None else "was made by another recipe"
        command = "python -m mechinterp.successor.origins --out FOLDER --export"
        raise ValueError(f"{RESULTS.name} {how}: run {command}")
    return {diet: found["diets"][diet] for diet in DIETS}


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: train and measure every diet and seed, resumable; `--export` writes the package's file."""
    parser = argparse.ArgumentParser("python -m mechinterp.successor.origins", description=main.__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of finished measurements")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--export", action="store_true", help="write the measurements into the package")
    args = parser.parse_args(arguments)
    recipe = Recipe(steps=args.steps)
    args.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[dict[str, float | None]]] = {}
    with arithmetic(flush_denormal=True):
        for diet, seed in tqdm([(diet, seed) for diet in DIETS for seed in SEEDS], desc="diets", unit="run"):
            path = args.out / f"{diet}, {seed}.json"
            if not path.exists():
                values = measure(train(diet, seed, recipe, device=args.device), diet, seed)
                atomic_write(path, json.dumps({"recipe": asdict(recipe), "values": values}).encode())
            kept = json.loads(path.read_text())
            if kept["recipe"] != asdict(recipe):
                raise ValueError(f"{path} is of another recipe: give another folder")
            found.setdefault(diet, []).append({n: x if x is None else round(x, 4) for n, x in kept["values"].items()})
    for diet, runs in found.items():
        print(diet, *runs, sep="\n  ")
    if args.export:
        text = json.dumps({"recipe": asdict(recipe), "diets": found}, indent=1) + "\n"
        atomic_write(RESULTS, text.encode())


if __name__ == "__main__":
    main()
