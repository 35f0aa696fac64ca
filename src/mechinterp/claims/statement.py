"""One quantitative claim of a paper, stated before anything is measured."""

from dataclasses import dataclass

from mechinterp.claims.expectations import Expectation, describe
from mechinterp.scales import SCALES, Scale


@dataclass(frozen=True)
class Revision:
    """An expectation that was changed after it had been stated.

    Attributes:
        date: `2026-11-25`. `scale`: whose expectation.
        was: the old one, in words.
        reason: why, in a sentence.
    """

    date: str
    scale: Scale
    was: str
    reason: str

    def __post_init__(self) -> None:
        if not (self.date and self.was and self.reason):
            raise ValueError("a revision gives its date, the old expectation and the reason")

    def __str__(self) -> str:
        return f"revised {self.date} at {self.scale} scale, was: {self.was}. {self.reason}"


def revised(reason: str, **was: str) -> tuple[Revision, ...]:
    """One revision for each scale that is named, with its old expectation (those of the referee's round)."""
    named = (scale for scale in SCALES if scale in was)
    return tuple(Revision("2026-11-25", scale, was[scale], reason) for scale in named)


@dataclass(frozen=True)
class Claim:
    """One quantitative claim of a paper, with what is expected of a run before it is made.

    Attributes:
        id: `IOI-15`; ids with a W are tests of the book's own.
        statement: the claim in one clause.
        paper_value: the paper's own value, as text.
        where: section or figure of the paper.
        measure: what is computed, in a few words.
        null: the strongest control that is matched to the claim and must not meet the expectation; for a claim that
            something is small, a positive control that must exceed it.
        paper: expectation for the paper's model; None means that it has no meaning there.
        lab: expectation for the lab model; None means that the claim has no meaning there.
        laptop: expectation for SmolLM2-135M; None means that it has no meaning there, or is not stated yet.
        why_not_paper, why_not_lab, why_not_laptop: the reason, if the claim has no meaning there.
        trained_for: the lab model's training text contains this behaviour, so that it is no evidence there.
        seen_before: where a value like this had been seen before the laptop expectation was stated, if it had.
        unverified: the paper's value has not been checked against its text.
        drift: by how much the value may differ from the committed one on another processor, beyond rounding: for
            estimates over networks that are trained on the spot, since training amplifies rounding.
        revised: expectations that were changed later.
    """

    id: str
    statement: str
    paper_value: str
    where: str
    measure: str
    paper: Expectation | None
    null: str
    lab: Expectation | None = None
    laptop: Expectation | None = None
    why_not_paper: str = ""
    why_not_lab: str = ""
    why_not_laptop: str = ""
    trained_for: bool = False
    seen_before: str = ""
    unverified: bool = False
    drift: float = 0.0
    revised: tuple[Revision, ...] = ()

    def __post_init__(self) -> None:
        for scale in ("paper", "lab"):
            if (getattr(self, scale) is None) != bool(getattr(self, f"why_not_{scale}")):
                raise ValueError(f"{self.id}: give a {scale} expectation or the reason why there is none, and not both")
        if not self.null:
            raise ValueError(f"{self.id}: name the null that must not meet the expectation")
        if self.laptop is not None and self.why_not_laptop:
            raise ValueError(f"{self.id}: give a laptop expectation or the reason why there is none, and not both")

    def expected(self, scale: Scale) -> Expectation | None:
        """The expectation at a scale; a rehearsal is judged like the paper's model."""
        return {"lab": self.lab, "laptop": self.laptop}.get(scale, self.paper)

    def why_not(self, scale: Scale) -> str:
        """Why the claim is not asked at a scale; empty if it is, or if its expectation is not stated yet."""
        return {"lab": self.why_not_lab, "laptop": self.why_not_laptop}.get(scale, self.why_not_paper)

    def __str__(self) -> str:
        lab = describe(self.lab) if self.lab is not None else f"not asked ({self.why_not_lab})"
        return f"{self.id}: {self.statement}. Paper: {self.paper_value} ({self.where}). Lab: {lab}."
