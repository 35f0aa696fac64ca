"""Does a head's OV circuit turn an ordinal into the next one? (Gould et al., section 2)

The effective OV circuit of a head reads MLP0's output for a token and is read out by the unembedding:

    M = W_U · W_OV · MLP0(W_E)     [output token, input token], over the tokens of one task

The successor score is the share of tokens for which the true successor has the highest logit of its class. No prompt
and no attention pattern is needed.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from mechinterp.anatomy import Anatomy
from mechinterp.attention import contextual_embeddings, effective_embedding
from mechinterp.datasets.ordinals import TASKS, Task, single_tokens
from mechinterp.heads import Head, check_heads
from mechinterp.stats import Estimate, population


@dataclass(frozen=True)
class Class:
    """The words of a task that are single tokens, and their successions.

    Attributes:
        ids: token of each word. `place`: index of each word in the task.
        source, target: positions in `words` of each pair (word, successor) that the tokenizer has both of.
        of: how many words the task has; `len(words)` of them are single tokens.
    """

    task: str
    words: tuple[str, ...]
    ids: Int[Tensor, " word"]
    place: Int[Tensor, " word"]
    source: Int[Tensor, " pair"]
    target: Int[Tensor, " pair"]
    of: int = 0

    def __repr__(self) -> str:
        return f"Class({self.task}: {len(self.words)} of {self.of} words, {len(self.source)} pairs)"


def class_of(tokenizer: PreTrainedTokenizerBase, task: Task, *, space: bool = True) -> Class:
    """The single-token part of a task, words with a leading space or without.

    Numbers of a tokenizer that splits them (Llama, SmolLM2, Gemma) are its digits, which stand behind a space token in
    a text and have none of their own.

    Errors: `ValueError` if fewer than three words are single tokens.
    """
    kept = single_tokens(tokenizer, task, space=space)
    if space and len(kept) < 3 and all(word.isdecimal() for word in task.words):
        kept = single_tokens(tokenizer, task, space=False)
    if len(kept) < 3:
        raise ValueError(
            f"task {task.name!r} has {len(kept)} of {len(task.words)} words that are single tokens of this tokenizer, "
            f"with {'a' if space else 'no'} leading space, at least 3 are needed; leave it out"
        )
    index = {word: i for i, word in enumerate(kept)}
    pairs = [(index[a], index[b]) for a, b in task.pairs() if a in index and b in index]
    source, target = torch.tensor(pairs, dtype=torch.long).view(-1, 2).T
    place = torch.tensor([task.words.index(word) for word in kept])
    return Class(task.name, tuple(kept), torch.tensor(list(kept.values())), place, source, target, len(task.words))


def classes(
    tokenizer: PreTrainedTokenizerBase, tasks: Mapping[str, Task] = TASKS, *, space: bool = True
) -> tuple[list[Class], list[str]]:
    """The classes of all tasks, and the names of the tasks that this tokenizer does not have."""
    found, missing = [], []
    for task in tasks.values():
        try:
            found.append(class_of(tokenizer, task, space=space))
        except ValueError:
            missing.append(task.name)
    return found, missing


@dataclass(frozen=True)
class SuccessorScores:
    """For every task, head and pair: has the successor the highest logit of its class?

    Attributes:
        hits: by task.
        chance: score of a head that guesses among the words of the class, by task.
    """

    hits: dict[str, Bool[Tensor, "layer head pair"]]
    chance: dict[str, float]

    def score(self, task: str | None = None) -> Float[Tensor, "layer head"]:
        """Share of hits, of one task or of all pairs together."""
        return self._all(task).float().mean(-1)

    def of(self, head: Head, task: str | None = None) -> Estimate:
        """One head's score; the pairs of a list are all there are, so there is no interval."""
        hits = self._all(task)[head].float()
        return population(hits.mean(), len(hits), "pairs")

    def best(self, task: str | None = None) -> Head:
        """The head with the highest score."""
        score = self.score(task)
        return Head(*divmod(int(score.argmax()), score.shape[1]))

    def chance_level(self) -> float:
        """Score of a guess over all pairs together."""
        sizes = {name: hits.shape[-1] for name, hits in self.hits.items()}
        return sum(self.chance[name] * n for name, n in sizes.items()) / sum(sizes.values())

    def _all(self, task: str | None) -> Bool[Tensor, "layer head pair"]:
        if task is not None and task not in self.hits:
            raise ValueError(f"no task {task!r}; one of {', '.join(self.hits)}")
        return torch.cat(list(self.hits.values()), -1) if task is None else self.hits[task]


def representations(model: Any, ids: Int[Tensor, " word"], *, embedding: bool = True) -> Float[Tensor, "word d_model"]:
    """What a successor head reads of a token: W_E + MLP0(LN2(W_E)), or without the first term.

    With the term it is the stream after block 0 as in copy suppression; without it, the paper's MLP0(W_E).
    """
    return effective_embedding(model, ids, embedding=embedding)


@torch.no_grad()
def class_logits(
    model: Any, x: Float[Tensor, "word d_model"], ids: Int[Tensor, " out"], *, norm: bool = True
) -> Float[Tensor, "layer head word out"]:
    """Logits of some tokens by every head's OV circuit for inputs x; biases are left out.

    The product goes through d_head: no d_model x d_model matrix is formed. A post norm's gain counts, the positive
    scales of norms do not.

    Args:
        norm: x passes through the norm of each head's layer first, whose mean subtraction can change which logit is
            the highest; without, x is taken for the normalised stream.
    """
    anatomy = Anatomy.of(model)
    outs = anatomy.directions(ids.to(anatomy.device))
    rows = [_head_logits(anatomy, head, x, outs, norm) for head in anatomy.size.heads]
    return torch.stack(rows).unflatten(0, (anatomy.size.n_layers, anatomy.size.n_heads))


@torch.no_grad()
def head_logits(
    model: Any, head: Head, x: Float[Tensor, "word d_model"], ids: Int[Tensor, " out"], *, norm: bool = True
) -> Float[Tensor, "word out"]:
    """`class_logits` of one head, without the work for all others.

    Errors: `ValueError` for a head that the model does not have.
    """
    [head] = check_heads(model, [head])
    anatomy = Anatomy.of(model)
    return _head_logits(anatomy, head, x, anatomy.directions(ids.to(anatomy.device)), norm)


def _head_logits(anatomy: Anatomy, head: Head, x: Tensor, outs: Tensor, norm: bool) -> Float[Tensor, "word out"]:
    layer = anatomy.layers[head.layer]
    unit = layer.norm1.unit(x) if norm else x
    return unit @ layer.W_V(head.head) @ (layer.writes(head.head) @ outs.T)


def successor_scores(
    model: Any,
    tasks: Mapping[str, Task] = TASKS,
    *,
    embedding: bool = True,
    space: bool = True,
    skip_missing: bool = False,
    context: Int[Tensor, "doc pos"] | None = None,
) -> SuccessorScores:
    """The successor score of every head for every task, from weights alone.

    Args:
        embedding: see `representations`. space: words with a leading space.
        context: a text that has the words, such as `disorder` gives; a head then reads the mean stream before its own
            layer at a word's places, instead of `representations`. First positions do not count.
        skip_missing: leave out tasks that the tokenizer lacks instead of refusing.

    Errors: `ValueError` for a task with fewer than three single-token words, or if no task is left.
    """
    chosen = _chosen(model, tasks, space, skip_missing)
    streams = None if context is None else _streams(model, context, chosen)
    hits, chance = {}, {}
    for i, words in enumerate(chosen):
        if streams is None:
            logits = class_logits(model, representations(model, words.ids, embedding=embedding), words.ids)
        else:
            logits = _logits_in_context(model, streams[i], words.ids)
        target = words.target.to(logits.device)
        hits[words.task] = (logits[:, :, words.source].argmax(-1) == target).cpu()
        chance[words.task] = 1 / len(words.words)
    return SuccessorScores(hits, chance)


@torch.no_grad()
def shuffled_scores(
    model: Any, n: int, tasks: Mapping[str, Task] = TASKS, *, seed: int = 0, skip_missing: bool = False
) -> list[SuccessorScores]:
    """`successor_scores` of the same lists with their words in random order, n times: the null of a sweep over heads.

    What a head says to a word does not depend on the order, so it is asked once. The words that the tokenizer has are
    shuffled, and the pairs are as many and as cyclic as without.

    Errors: as `successor_scores`; `ValueError` if n is not positive.
    """
    if n < 1:
        raise ValueError(f"n must be positive, got {n}")
    generator = torch.Generator().manual_seed(seed)
    hits: list[dict[str, Tensor]] = [{} for _ in range(n)]
    chosen = _chosen(model, tasks, True, skip_missing)
    for words in chosen:
        said = class_logits(model, representations(model, words.ids), words.ids).argmax(-1).cpu()
        for one in hits:
            order = torch.randperm(len(words.words), generator=generator)
            one[words.task] = said[..., order[words.source]] == order[words.target]
    return [SuccessorScores(one, {words.task: 1 / len(words.words) for words in chosen}) for one in hits]


@torch.no_grad()
def _logits_in_context(
    model: Any, streams: Float[Tensor, "layer token d_model"], ids: Int[Tensor, " word"]
) -> Float[Tensor, "layer head word out"]:
    """`class_logits` with an input of its own for every layer."""
    anatomy = Anatomy.of(model)
    outs = anatomy.directions(ids.to(anatomy.device))
    rows = [_head_logits(anatomy, head, streams[head.layer], outs, True) for head in anatomy.size.heads]
    return torch.stack(rows).unflatten(0, (anatomy.size.n_layers, anatomy.size.n_heads))


def _streams(
    model: Any, text: Int[Tensor, "doc pos"], chosen: Sequence[Class]
) -> list[Float[Tensor, "layer word d_model"]]:
    """For each class the mean stream before every layer at its words' places in a text.

    Errors: `ValueError` for a word that the text does not have.
    """
    ids = torch.cat([words.ids for words in chosen])
    mean, count = contextual_embeddings(model, text, range(Anatomy.of(model).size.n_layers), ids)
    if missing := [repr(model.tokenizer.decode([int(i)])) for i, n in zip(ids, count, strict=True) if not n]:
        raise ValueError(f"the context lacks {', '.join(missing[:5])}; give one that has every word")
    return list(mean.split([len(words.ids) for words in chosen], 1))


def _chosen(model: Any, tasks: Mapping[str, Task], space: bool, skip_missing: bool) -> list[Class]:
    chosen = (
        classes(model.tokenizer, tasks, space=space)[0]
        if skip_missing
        else [class_of(model.tokenizer, task, space=space) for task in tasks.values()]
    )
    if not chosen:
        raise ValueError(f"this tokenizer has none of the tasks {', '.join(tasks)} as single tokens")
    return chosen


@torch.no_grad()
def table(model: Any, head: Head, words: Class, *, embedding: bool = True) -> Float[Tensor, "word out"]:
    """M of one head over a class: row = input word, column = logit of output word."""
    return head_logits(model, head, representations(model, words.ids, embedding=embedding), words.ids)


def greater_than_bias(logits: Float[Tensor, "word out"], place: Int[Tensor, " word"]) -> Float[Tensor, " word"]:
    """Mean logit of the later words of a class minus that of the earlier ones, for every word that has both.

    Positive: the head prefers what is larger than its input.
    """
    place = place.to(logits.device)
    later = place[None] > place[:, None]
    earlier = place[None] < place[:, None]
    both = later.any(1) & earlier.any(1)
    up = (logits * later).sum(1) / later.sum(1).clamp(min=1)
    down = (logits * earlier).sum(1) / earlier.sum(1).clamp(min=1)
    return (up - down)[both]


def pooled(chosen: Iterable[Class]) -> tuple[Int[Tensor, " word"], Int[Tensor, " word"], list[str]]:
    """Token ids, ordinal values (place + 1) and task of all words of some classes."""
    chosen = list(chosen)
    names = [words.task for words in chosen for _ in words.words]
    return torch.cat([w.ids for w in chosen]), torch.cat([w.place + 1 for w in chosen]), names
