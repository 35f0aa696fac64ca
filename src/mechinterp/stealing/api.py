"""A language model as a provider serves it: prompts in, a few log-probabilities out, and a bill for every question.

A `Provider` answers in this process; `server` puts one behind the OpenAI protocol, and a `Client` asks that one. All
attacks take anything that answers like either: `Ask`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from mechinterp.anatomy import Anatomy
from mechinterp.patching.checks import check_tokens
from mechinterp.patching.engine import final_streams

T = TypeVar("T")
Bias = Mapping[int, float]
"""Token id -> what is added to its logit."""


class Refused(ValueError):
    """The provider does not answer this question: its terms forbid it, or the budget is spent."""


class Dropped(ConnectionError):
    """The provider did not answer; asking again may help."""


@dataclass(frozen=True)
class Answer:
    """What comes back for one prompt.

    Attributes:
        next: what the model says, at temperature 0.
        tokens: the tokens whose log-probability is shown, the most probable first; may be none.
        logprobs: theirs, float64.
    """

    next: int
    tokens: Int[Tensor, " shown"]
    logprobs: Float[Tensor, " shown"]

    @property
    def shown(self) -> dict[int, float]:
        """Log-probability by token."""
        return dict(zip(self.tokens.tolist(), self.logprobs.tolist(), strict=True))


@dataclass
class Bill:
    """What has been asked for: the number of queries, tokens of their prompts, tokens that were answered."""

    queries: int = 0
    sent: int = 0
    received: int = 0

    def price(self, sent: float, received: float) -> float:
        """In the currency of two prices, each of a million tokens."""
        return (self.sent * sent + self.received * received) / 1e6

    def since(self, earlier: "Bill") -> "Bill":
        """What was asked for after an earlier state of the bill."""
        return Bill(self.queries - earlier.queries, self.sent - earlier.sent, self.received - earlier.received)

    def copy(self) -> "Bill":
        """As it is now."""
        return Bill(self.queries, self.sent, self.received)


class Ask(Protocol):
    """What an attack needs of an API: a question, and the bill."""

    bill: Bill

    def __call__(self, prompt: Sequence[int], bias: Bias = ...) -> Answer:
        """The answer to one prompt; `Refused` or `Dropped` if there is none."""
        ...


class AskAtLength(Ask, Protocol):
    """An API that answers with several tokens."""

    def at_length(self, prompt: Sequence[int], bias: Bias, n: int) -> list[Answer]:
        """n tokens, one after another, each after those before it."""
        ...


@dataclass(frozen=True)
class Terms:
    """What a provider offers, and what it does against theft (Carlini et al. 2024).

    Attributes:
        top: how many of the most probable tokens come back with their log-probabilities; None: all; 0: only the next
            token, and no log-probability.
        most_biased: how many tokens a question may bias; 0: none. `bias_limit`: by how much at most.
        bias_shows: "always"; "never": biases decide what is said and not what is shown, as providers have had it since
            March 2024; "forbidden": no question may have both.
        digits: decimals of a log-probability; None: all of float64.
        noise: standard deviation of what is added to each logit, drawn anew for each question.
        widen: (k, σ): noise of standard deviation σ in k directions that are the same for all questions. An attacker
            sees a model that is wider by k.
        most_queries: the budget.
        most_tokens: the longest answer.
        drop: the share of questions that are not answered.
    """

    top: int | None = 5
    most_biased: int = 300
    bias_limit: float = 100.0
    bias_shows: Literal["always", "never", "forbidden"] = "always"
    digits: int | None = None
    noise: float = 0.0
    widen: tuple[int, float] = (0, 0.0)
    most_queries: int | None = None
    most_tokens: int = 64
    drop: float = 0.0

    def __post_init__(self) -> None:
        if self.top is not None and self.top < 0:
            raise ValueError(f"top must be None or at least 0, not {self.top}")
        if self.most_biased < 0 or not self.bias_limit >= 0:
            raise ValueError(
                f"most_biased and bias_limit must be at least 0, not {self.most_biased}, {self.bias_limit}"
            )
        if self.bias_shows not in ("always", "never", "forbidden"):
            raise ValueError(f"bias_shows must be 'always', 'never' or 'forbidden', not {self.bias_shows!r}")
        if not (self.noise >= 0 and self.widen[0] >= 0 and self.widen[1] >= 0):
            raise ValueError(f"noise must be at least 0, not {self.noise}, {self.widen}")
        if self.most_tokens < 1:
            raise ValueError(f"most_tokens must be at least 1, not {self.most_tokens}")
        if not 0 <= self.drop < 1:
            raise ValueError(f"drop must lie in [0, 1), not {self.drop}")


def next_logits(
    model: Any, prompts: Sequence[Sequence[int]], *, double: bool = False, batch_size: int = 32
) -> Float[Tensor, "prompt vocab"]:
    """A model's logits after many prompts, those of one length in batches.

    One prompt at a time reads all weights for each: on SmolLM2 batches are several times faster.

    Args:
        double: multiply with the output projection in float64. What rounding makes of single precision looks like more
            dimensions.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    ask = _asker(model, double)
    found = None
    for length in {len(prompt) for prompt in prompts}:
        alike = [i for i, prompt in enumerate(prompts) if len(prompt) == length]
        for start in range(0, len(alike), batch_size):
            some = alike[start : start + batch_size]
            rows = ask([prompts[i] for i in some])
            if found is None:
                found = rows.new_empty(len(prompts), rows.shape[1])
            found[some] = rows
    if found is None:
        raise ValueError("next_logits needs a prompt")
    return found


def _asker(model: Any, double: bool) -> Callable[[Sequence[Sequence[int]]], Float[Tensor, "prompt vocab"]]:
    """From prompts of one length to the logits after them."""
    anatomy = Anatomy.of(model, bidirectional=True)
    weight, bias = anatomy.unembedding.weight, anatomy.unembedding.bias
    if double:
        weight, bias = weight.double(), None if bias is None else bias.double()

    def ask(prompts: Sequence[Sequence[int]]) -> Tensor:
        tokens = torch.tensor([list(prompt) for prompt in prompts], device=anatomy.device)
        check_tokens(model, tokens, len(prompts), bidirectional=True)
        ends = torch.full((len(tokens),), tokens.shape[1] - 1, device=tokens.device)
        normal = anatomy.final(final_streams(anatomy, tokens, ends))
        with torch.no_grad():
            return anatomy.cap(functional.linear(normal.to(weight.dtype), weight, bias))

    return ask


@dataclass
class Provider:
    """Answers for a model by some terms, and keeps the bill.

    Args:
        logits: from the token ids of one prompt to the logits that follow it, [vocab].
        context: the longest prompt.
        seed: of everything that is random. The same questions in the same order have the same answers.

    >>> provider = Provider(lambda prompt: torch.tensor([0.0, 1.0, 3.0]), terms=Terms(top=2))
    >>> answer = provider([0], {0: 100.0})
    >>> answer.next, answer.tokens.tolist(), provider.bill.queries
    (0, [0, 2], 1)
    """

    logits: Callable[[Sequence[int]], Float[Tensor, " vocab"]]
    terms: Terms = field(default_factory=Terms)
    context: int = 1024
    seed: int = 0
    bill: Bill = field(default_factory=Bill)

    def __post_init__(self) -> None:
        self._random = torch.Generator().manual_seed(self.seed)
        self._directions: Tensor | None = None
        self._known: dict[tuple[int, ...], Tensor] = {}

    @classmethod
    def of(cls, model: Any, terms: Terms | None = None, *, double: bool = False, seed: int = 0) -> "Provider":
        """Of a model as it was loaded.

        Args:
            double: as of `next_logits`.
        """
        ask, size = _asker(model, double), Anatomy.of(model, bidirectional=True).size
        return cls(lambda prompt: ask([prompt])[0], terms or Terms(), context=size.n_ctx, seed=seed)

    def __call__(self, prompt: Sequence[int], bias: Bias = {}) -> Answer:  # noqa: B006  # never changed
        """One question, billed even if it is dropped; `Refused` against the terms, which costs nothing."""
        return self.at_length(prompt, bias, 1)[0]

    def at_length(self, prompt: Sequence[int], bias: Bias, n: int) -> list[Answer]:
        """One question that n tokens answer, each after the prompt and those before it."""
        terms = self.terms
        self._check(prompt, bias, n)
        logits = self._of(tuple(prompt))
        size = len(logits)
        unknown = next((token for token in bias if not 0 <= token < size), None)
        if unknown is not None:
            raise Refused(f"there is no token {unknown}: ids go from 0 to {size - 1}")
        self.bill.queries += 1
        self.bill.sent += len(prompt)
        if terms.drop and float(torch.rand((), generator=self._random)) < terms.drop:
            raise Dropped("no answer")
        self.bill.received += n
        answers: list[Answer] = []
        for _ in range(n):
            answers.append(self._answer(self._of((*prompt, *(x.next for x in answers))), bias))
        return answers

    def _answer(self, logits: Float[Tensor, " vocab"], bias: Bias) -> Answer:
        terms = self.terms
        plain = self._noisy(logits)
        biased = plain.clone()
        if bias:
            values = torch.tensor(list(bias.values()), dtype=torch.float64, device=plain.device)
            biased[torch.tensor(list(bias), device=plain.device)] += values
        if terms.top == 0:
            return Answer(int(biased.argmax()), torch.empty(0, dtype=torch.long), torch.empty(0, dtype=torch.float64))
        shown = (plain if terms.bias_shows == "never" else biased).log_softmax(-1)
        if terms.digits is not None:
            shown = shown.round(decimals=terms.digits)
        best = shown.topk(len(shown) if terms.top is None else min(terms.top, len(shown)))
        return Answer(int(biased.argmax()), best.indices.cpu(), best.values.cpu())

    def _check(self, prompt: Sequence[int], bias: Bias, n: int) -> None:
        terms = self.terms
        if not 1 <= len(prompt) <= self.context:
            raise Refused(f"a prompt has 1 to {self.context} tokens, not {len(prompt)}")
        if not 1 <= n <= min(terms.most_tokens, self.context + 1 - len(prompt)):
            most = self.context + 1
            raise Refused(f"an answer has 1 to {terms.most_tokens} tokens, and with its prompt {most} at most, not {n}")
        if terms.most_queries is not None and self.bill.queries >= terms.most_queries:
            raise Refused(f"the budget of {terms.most_queries} queries is spent")
        if len(bias) > terms.most_biased:
            raise Refused(f"at most {terms.most_biased} tokens can be biased, not {len(bias)}")
        if bias and terms.top != 0 and terms.bias_shows == "forbidden":
            raise Refused("log-probabilities and biases do not go together")
        beyond = next((value for value in bias.values() if not abs(value) <= terms.bias_limit), None)
        if beyond is not None:
            raise Refused(f"a bias lies within ±{terms.bias_limit:g}, not at {beyond:g}")

    def _of(self, prompt: tuple[int, ...]) -> Float[Tensor, " vocab"]:
        """Attacks ask many questions about one prompt: logits of the last prompts are kept, of one answer at least."""
        if prompt not in self._known:
            with torch.no_grad():
                found = self.logits(prompt).double()
            if not found.isfinite().all():
                raise ValueError("the model's logits must be finite, some are not")
            if len(self._known) >= self.terms.most_tokens:
                self._known.pop(next(iter(self._known)))
            self._known[prompt] = found
        return self._known[prompt]

    def _noisy(self, logits: Float[Tensor, " vocab"]) -> Float[Tensor, " vocab"]:
        terms, (k, sigma) = self.terms, self.terms.widen
        if terms.noise:
            drawn = torch.randn(len(logits), generator=self._random, dtype=torch.float64)
            logits = logits + terms.noise * drawn.to(logits.device)
        if k:
            if self._directions is None:
                fixed = torch.Generator().manual_seed(self.seed + 1)
                drawn = torch.randn(k, len(logits), generator=fixed, dtype=torch.float64)
                self._directions = drawn.to(logits.device) / math.sqrt(k)
            mixed = sigma * torch.randn(k, generator=self._random, dtype=torch.float64).to(logits.device)
            logits = logits + mixed @ self._directions
        return logits


def patiently(ask: Callable[[Sequence[int], Bias], T], prompt: Sequence[int], bias: Bias, tries: int = 8) -> T:
    """Ask again when a question is dropped; `Dropped` after too many times."""
    for left in reversed(range(tries)):
        try:
            return ask(prompt, bias)
        except Dropped:
            if not left:
                raise
    raise ValueError(f"tries must be at least 1, not {tries}")
