"""One quantitative claim of a paper, stated before anything is measured."""

from dataclasses import dataclass

from mechinterp.claims.expectations import Expectation, describe
from mechinterp.scales import Scale


@dataclass(frozen=True)
class Claim:
    """One quantitative claim of a paper, with what is expected of a run before it is made.

    Attributes:
        id: `IOI-15`; ids with a W are tests of the book's own.
        statement: the claim in one clause.
        paper_value: the paper's own value, as text.
        where: section or figure of the paper.
        paper: expectation for the paper's model.
        lab: expectation for the lab model; None means that the claim has no meaning there.
        why_not_lab: the reason, exactly when `lab` is None.
        laptop: expectation for SmolLM2-135M; None means that it has not been stated yet.
        null: the strongest control that is matched to the claim, to be measured beside it at laptop scale.
        seen_before: where a value like this had been seen before the laptop expectation was stated, if it had.
        measure: what is computed, in a few words.
        unverified: the paper's value has not been checked against its text.
        drift: by how much the value may differ from the committed one on another processor, beyond rounding: for
            estimates over networks that are trained on the spot, since training amplifies rounding.
    """

    id: str
    statement: str
    paper_value: str
    where: str
    measure: str
    paper: Expectation
    lab: Expectation | None = None
    why_not_lab: str = ""
    laptop: Expectation | None = None
    null: str = ""
    seen_before: str = ""
    unverified: bool = False
    drift: float = 0.0

    def __post_init__(self) -> None:
        if (self.lab is None) != bool(self.why_not_lab):
            raise ValueError(f"{self.id}: give a lab expectation or the reason why there is none, and not both")
        if (self.laptop is None) != (not self.null):
            raise ValueError(f"{self.id}: a laptop expectation is stated together with its null")

    def expected(self, scale: Scale) -> Expectation | None:
        """The expectation at a scale; a rehearsal is judged like the paper's model."""
        return self.lab if scale == "lab" else self.paper

    def __str__(self) -> str:
        lab = describe(self.lab) if self.lab is not None else f"paper scale only ({self.why_not_lab})"
        return f"{self.id}: {self.statement}. Paper: {self.paper_value} ({self.where}). Lab: {lab}."
