"""Recording values in a chapter: verdict cards on the page and a results file on disk."""

import datetime
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from numbers import Integral
from typing import Any

import mechinterp
from mechinterp.claims.expectations import Value, clean, describe, holds, show, to_json
from mechinterp.claims.html import badge, card_html, table_html
from mechinterp.claims.registry import CLAIMS
from mechinterp.claims.results import Entry, Results, read_results, results_path, write_results
from mechinterp.claims.statement import Claim
from mechinterp.files import check_writable
from mechinterp.scales import SCALES, Scale

Interval = tuple[float, float]


@dataclass(frozen=True)
class Card:
    """The verdict on one claim, shown as a card in a notebook and as a line of text elsewhere.

    Attributes:
        claim: the claim.
        scale: where it was measured.
        value: the cleaned value, None if not measured.
        interval: `[lo, hi]` or a table of pairs.
        verdict: `reproduced`, `not reproduced` or `paper scale only`.
        note: a sentence by the chapter.
    """

    claim: Claim
    scale: Scale
    value: Value | None
    interval: Any
    verdict: str
    note: str = ""

    @property
    def expected(self) -> str:
        """The expectation at this scale, in words."""
        rule = self.claim.expected(self.scale)
        return "—" if rule is None else describe(rule)

    def entry(self) -> Entry:
        """The card as it stands in a results file."""
        return Entry(
            value=self.value,
            interval=self.interval,
            expected=to_json(self.claim.expected(self.scale)),
            verdict=self.verdict,
            note=self.note,
        )

    def __str__(self) -> str:
        measured = show(self.value, self.interval) if self.value is not None else "not measured"
        note = f" ({self.note})" if self.note else ""
        return (
            f"{self.claim.id} {self.verdict}: {self.claim.statement}. Paper: {self.claim.paper_value}. "
            f"Here ({self.scale}): {measured}; expected {self.expected}.{note}"
        )

    def _repr_html_(self) -> str:
        paper = f"{self.claim.paper_value} ({self.claim.where})"
        rows = [
            ("paper", paper + (" — unverified" if self.claim.unverified else "")),
            (f"expected at {self.scale} scale", self.expected),
            ("measured", show(self.value, self.interval)),
            ("how", self.claim.measure),
        ]
        return card_html(self.claim.id, self.claim.statement, self.verdict, rows, self.note)


@dataclass(frozen=True)
class Table:
    """A chapter's claims and their verdicts."""

    caption: str
    rows: tuple[tuple[str, str, str, str, str], ...]

    def __str__(self) -> str:
        return "\n".join([self.caption, *(f"{id:8} {verdict:16} {value}" for id, _, _, value, verdict in self.rows)])

    def _repr_html_(self) -> str:
        header = ("claim", "statement", "paper", "here", "verdict")
        return table_html(
            self.caption, header, [[escape(cell) for cell in row[:-1]] + [badge(row[-1])] for row in self.rows]
        )


class Ledger:
    """The claims of one run of a chapter.

    Every `record` shows a card and brings the results file up to date, so an interrupted run loses
    nothing. Recording a claim again replaces it. Claims of an earlier run of the same model at the
    same seed stay in the file until they are recorded again; any other earlier file is replaced.
    At rehearsal scale nothing is written.

    Args:
        chapter: `ioi`.
        scale: `lab`, `paper` or `rehearsal`.
        model: name and sha256 of the weights, as `mechinterp.models.describe` gives them.
        seed, device: of the run.

    Errors: `ValueError` for an unknown chapter or scale, a sha256, seed or device that is none, or a results file
        that cannot be read or written.
    """

    def __init__(
        self, chapter: str, *, scale: Scale, model: Mapping[str, Any], seed: int = 0, device: str = "cpu"
    ) -> None:
        if chapter not in CLAIMS:
            raise ValueError(f"unknown chapter {chapter!r}; one of {', '.join(CLAIMS)}")
        if scale not in SCALES:
            raise ValueError(f"unknown scale {scale!r}; one of {', '.join(SCALES)}")
        missing = {"name", "sha256"} - set(model)
        if missing:
            raise ValueError(f"the model's {' and '.join(sorted(missing))} must be given, got {dict(model)}")
        self.chapter, self.scale = chapter, scale
        self._started = time.perf_counter()
        self._cards: dict[str, Card] = {}
        self._results = Results(
            chapter=chapter,
            scale=scale,
            version=mechinterp.__version__,
            model={"name": str(model["name"]), "sha256": str(model["sha256"])},
            device=str(device),
            seed=int(seed) if isinstance(seed, Integral) and not isinstance(seed, bool) else seed,
        )
        path = results_path(chapter, scale)
        if scale != "rehearsal":
            check_writable(path, "choose another results folder with --results or MECHINTERP_RESULTS")
        if scale != "rehearsal" and path.exists():
            earlier = read_results(path)
            if (earlier.model, earlier.seed) == (self._results.model, self._results.seed):
                for id, entry in earlier.claims.items():
                    self._results = self._results.with_entry(id, entry)

    def record(self, id: str, value: Any, interval: Any = None, note: str = "") -> Card:
        """Judge a value, write the results file and return the card.

        Args:
            id: `IOI-15`.
            value: a number, a list of heads, or a table of those with the rows of the claim.
            interval: (lo, hi) of a number; for a table or a list of heads a dict of such pairs by
                row or head. The interval of a skewed statistic (a minimum) need not contain the value.
            note: a sentence on how it was measured.

        Errors: `ValueError` for an unknown id, a value that is not finite or has another shape than
            the claim, or an interval whose ends are not finite and in order.
        """
        claim = self._claim(id)
        try:
            cleaned = clean(value)
            expected = claim.expected(self.scale)
            # The shape is checked against the paper's expectation where the lab has none.
            met = holds(claim.paper if expected is None else expected, cleaned)
            pairs = _clean_interval(interval, cleaned)
        except ValueError as error:
            raise ValueError(f"{id}: {error}") from error
        verdict = "paper scale only" if expected is None else "reproduced" if met else "not reproduced"
        if expected is None:
            note = note or claim.why_not_lab
        return self._keep(Card(claim, self.scale, cleaned, pairs, verdict, note))

    def not_here(self, id: str, reason: str) -> Card:
        """Say why a claim cannot be measured in the lab model: the verdict is "paper scale only".

        Errors: `ValueError` at paper scale and in a rehearsal of it, where every claim has a value.
        """
        claim = self._claim(id)
        if self.scale != "lab":
            raise ValueError(f"{id} belongs to this scale ({self.scale}); measure it and record the value")
        if not reason:
            raise ValueError(f"{id}: give the reason in a sentence")
        return self._keep(Card(claim, self.scale, None, None, "paper scale only", reason))

    def table(self) -> Table:
        """All claims of the chapter; those that this run has not recorded read "not run yet"."""
        rows = []
        for claim in CLAIMS[self.chapter].values():
            card = self._cards.get(claim.id)
            value = "—" if card is None else show(card.value, card.interval)
            verdict = "not run yet" if card is None else card.verdict
            rows.append((claim.id, claim.statement, f"{claim.paper_value} ({claim.where})", value, verdict))
        count = sum(card.verdict == "reproduced" for card in self._cards.values())
        caption = f"{count} of {len(rows)} claims reproduced at {self.scale} scale, {len(self._cards)} recorded."
        return Table(caption, tuple(rows))

    def _claim(self, id: str) -> Claim:
        claims = CLAIMS[self.chapter]
        if id not in claims:
            raise ValueError(f"unknown claim {id!r} of chapter {self.chapter}; it has {', '.join(claims)}")
        return claims[id]

    def _keep(self, card: Card) -> Card:
        self._cards[card.claim.id] = card
        self._results = Results(
            **{
                **vars(self._results),
                "claims": self._results.claims | {card.claim.id: card.entry()},
                "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
                "seconds": round(time.perf_counter() - self._started, 1),
            }
        )
        if self.scale != "rehearsal":
            write_results(self._results)
        return card


def _clean_interval(interval: Any, value: Value) -> Any:
    if interval is None:
        return None
    if isinstance(interval, Mapping):
        if isinstance(value, float):
            raise ValueError(f"the interval of a number is one pair, got a table with the rows {sorted(interval)}")
        if isinstance(value, dict) and not {str(k) for k in interval} <= _labels(value):
            raise ValueError(f"interval rows {sorted(map(str, interval))} are not all among {sorted(_labels(value))}")
        return {str(key): _pair(pair) for key, pair in interval.items()}
    if not isinstance(value, float):
        raise ValueError("the interval of a table or a list of heads is a dict of pairs, by row or head")
    return _pair(interval)


def _labels(value: dict[str, Any]) -> set[str]:
    return set(value) | {name for leaf in value.values() if isinstance(leaf, list) for name in leaf}


def _pair(pair: Sequence[Any]) -> list[float]:
    try:
        lo, hi = (float(end) for end in pair)
    except (TypeError, ValueError) as error:
        raise ValueError(f"an interval is a pair (lo, hi), not {pair!r}") from error
    if not (math.isfinite(lo) and math.isfinite(hi) and lo <= hi):
        raise ValueError(f"an interval needs finite ends in order, got ({lo}, {hi})")
    return [float(f"{end:.6g}") for end in (lo, hi)]
