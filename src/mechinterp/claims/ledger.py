"""Recording values in a chapter: verdict cards on the page and a results file on disk."""

import datetime
import os
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from html import escape
from importlib.metadata import version
from numbers import Integral
from typing import Any

import mechinterp
from mechinterp.claims.expectations import Outcome, describe, judge, to_json
from mechinterp.claims.html import badge, card_html, table_html
from mechinterp.claims.nulls import Null, measured
from mechinterp.claims.registry import CLAIMS
from mechinterp.claims.results import Entry, Results, read_results, results_path, write_results
from mechinterp.claims.statement import Claim
from mechinterp.claims.values import clean, show
from mechinterp.files import check_writable
from mechinterp.scales import SCALES, Scale


@dataclass(frozen=True)
class Card:
    """The verdict on one claim, shown as a card in a notebook and as a line of text elsewhere.

    Attributes:
        claim: the claim.
        scale: where it was measured.
        entry: value, null, verdict and reasons, as the results file has them.
    """

    claim: Claim
    scale: Scale
    entry: Entry

    @property
    def verdict(self) -> str:
        """One of the six."""
        return self.entry.verdict

    def __str__(self) -> str:
        rows = "; ".join(f"{name}: {text}" for name, text in card_rows(self.claim, {self.scale: self.entry}))
        note = f" ({self.entry.note})" if self.entry.note else ""
        return f"{self.claim.id} {self.verdict}: {self.claim.statement}. {rows}.{note}"

    def _repr_html_(self) -> str:
        rows = card_rows(self.claim, {self.scale: self.entry})
        return card_html(self.claim.id, self.claim.statement, self.verdict, rows, self.entry.note)


def decide(outcome: Outcome, null: Null | None) -> tuple[Outcome, str]:
    """The verdict, and why where the value alone does not tell."""
    if outcome == "undecided":
        return outcome, "the interval crosses a bound, or the set does not recur"
    if outcome == "reproduced" and null is None:
        return "undecided", "its null has not been measured"
    if outcome == "reproduced" and null is not None and not null.fails:
        return "undecided", "the null meets the expectation as well"
    return outcome, ""


def card_rows(claim: Claim, entries: Mapping[Scale, Entry]) -> list[tuple[str, str]]:
    """What a card says: paper, and for each scale expectation, value, null and the reason of the verdict."""
    rows = [("paper", f"{claim.paper_value} ({claim.where})" + (", unverified" if claim.unverified else ""))]
    rows += [("how", claim.measure)]
    for scale, entry in entries.items():
        rule, several = claim.expected(scale), f"{scale}: " if len(entries) > 1 else ""
        if rule is not None:
            rows.append((f"{several}expected", describe(rule)))
        if entry.value is not None:
            rows.append((f"{several}measured", show(entry.value, counted=True)))
        if entry.null is not None:
            value = "" if entry.null.value is None else f"{show(entry.null.value, counted=True)}; "
            rows.append((f"{several}null", f"{value}meets the expectation {_often(entry.null.passes)}"))
        if len(entries) > 1:
            rows.append((f"{several}verdict", entry.verdict))
        if entry.why:
            rows.append((f"{several}why", entry.why))
        if scale == "lab" and claim.trained_for:
            rows.append((f"{several}trained for", "the model's training text contains it: no evidence"))
    rows.append(("null asked for", claim.null))
    if claim.seen_before:
        rows.append(("seen before", claim.seen_before))
    return [*rows, *(("revised", str(revision)) for revision in claim.revised if revision.scale in entries)]


def _often(passes: float) -> str:
    return "never" if passes == 0 else "always" if passes == 1 else f"with probability {passes:.2g}"


def environment(device: str) -> dict[str, str]:
    """Versions of what computes, and the machine: facts that a results file keeps and no comparison asks for."""
    import torch

    cuda = device.startswith("cuda") and torch.cuda.is_available()
    machine = torch.cuda.get_device_name(device) if cuda else f"{platform.machine()}, {os.cpu_count()} cores"
    packages = ("torch", "transformers", "transformer-lens", "numpy")
    return {"machine": machine, "python": platform.python_version(), **{name: version(name) for name in packages}}


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
        scale: `lab`, `laptop`, `paper` or `rehearsal`.
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
            environment=environment(str(device)),
            contributor=os.environ.get("MECHINTERP_CONTRIBUTOR", ""),
        )
        path = results_path(chapter, self._results.place)
        if scale != "rehearsal":
            check_writable(path, "choose another results folder with --results or MECHINTERP_RESULTS")
        if scale != "rehearsal" and path.exists():
            earlier = read_results(path)
            if (earlier.model, earlier.seed) == (self._results.model, self._results.seed):
                for id, entry in earlier.claims.items():
                    self._results = self._results.with_entry(id, entry)

    def record(self, id: str, value: Any, *, null: Any = None, note: str = "") -> Card:
        """Judge a value against its expectation and its null, write the results file and return the card.

        The whole interval decides. A claim that holds is *undecided* if its null was not measured or holds as well.

        Args:
            id: `IOI-15`.
            value: an `Estimate`; a list of heads or names, or a `Found`; or a table of those with the claim's rows.
            null: what the claim's null or positive control gives: one value of the same shape (or some rows of it),
                draws (twenty numbers or more, by row in a table), or a `Chance`.
            note: a sentence on how it was measured.

        Errors: `ValueError` for an unknown id, a bare number, a value or null of another shape than the claim, or a
            scale whose expectation has not been stated.
        """
        claim = self._claim(id)
        expected = claim.expected(self.scale)
        if expected is None and not claim.why_not(self.scale):
            raise ValueError(f"{id}: state the expectation for {self.scale} scale before you measure it")
        try:
            cleaned = clean(value)
            if expected is None:
                return self._keep(claim, Entry(cleaned, None, None, "not asked here", claim.why_not(self.scale), note))
            outcome, against = judge(expected, cleaned), None if null is None else measured(expected, null)
        except ValueError as error:
            raise ValueError(f"{id}: {error}") from error
        verdict, why = decide(outcome, against)
        return self._keep(claim, Entry(cleaned, against, to_json(expected), verdict, why, note))

    def absent(self, id: str, reason: str) -> Card:
        """The rule that selects what the claim is about finds nothing: "absent here", which counts as red.

        Errors: `ValueError` for an unknown id, or no reason.
        """
        claim = self._claim(id)
        if not reason:
            raise ValueError(f"{id}: give the reason in a sentence")
        expected = claim.expected(self.scale)
        verdict = "absent here" if expected is not None else "not asked here"
        why = reason if expected is not None else claim.why_not(self.scale)
        return self._keep(claim, Entry(None, None, to_json(expected), verdict, why))

    def table(self) -> Table:
        """All claims of the chapter, with those that this run has not recorded."""
        rows = []
        for claim in CLAIMS[self.chapter].values():
            card = self._cards.get(claim.id)
            value = "—" if card is None else show(card.entry.value)
            open_ = "not asked here" if claim.why_not(self.scale) else "not run yet"
            verdict = open_ if card is None else card.verdict
            rows.append((claim.id, claim.statement, f"{claim.paper_value} ({claim.where})", value, verdict))
        counts = {verdict: sum(row[-1] == verdict for row in rows) for _, _, _, _, verdict in rows}
        caption = ", ".join(f"{counts[verdict]} {verdict}" for verdict in sorted(counts, key=lambda v: -counts[v]))
        return Table(f"{len(rows)} claims at {self.scale} scale: {caption}.", tuple(rows))

    def _claim(self, id: str) -> Claim:
        claims = CLAIMS[self.chapter]
        if id not in claims:
            raise ValueError(f"unknown claim {id!r} of chapter {self.chapter}; it has {', '.join(claims)}")
        return claims[id]

    def _keep(self, claim: Claim, entry: Entry) -> Card:
        card = self._cards[claim.id] = Card(claim, self.scale, entry)
        self._results = replace(
            self._results.with_entry(claim.id, entry),
            date=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
            seconds=round(time.perf_counter() - self._started, 1),
        )
        if self.scale != "rehearsal":
            write_results(self._results)
        return card
