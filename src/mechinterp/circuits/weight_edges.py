"""The edges of a circuit tested on weights alone: does a head compose with those that it should read?

    python -m mechinterp.circuits.weight_edges --weights gpt2 [--json FILE]

ranks, for every head of the paper's circuit, all earlier heads by how much of what they write lies where it
reads (`mechinterp.attention.composition`). `--weights` is a hub id, a folder, or a folder that has nothing
but attention weights.
"""

import argparse
import json
from collections import Counter
from collections.abc import Container, Sequence
from dataclasses import asdict, dataclass
from html import escape
from itertools import combinations
from math import comb
from pathlib import Path

import torch

from mechinterp.attention import HeadWeights, chance_level, composition, ranks
from mechinterp.attention.composition import Mode
from mechinterp.circuits.circuit import Circuit
from mechinterp.circuits.ioi import PAPER_CIRCUIT
from mechinterp.files import atomic_write
from mechinterp.heads import Head
from mechinterp.stats import Estimate, population

Edge = tuple[str, tuple[str, ...], Mode, str]
EDGES: tuple[Edge, ...] = (
    ("IOI-W1", ("previous token",), "k", "induction"),
    ("IOI-W2", ("S-inhibition",), "q", "name mover"),
    ("IOI-W3", ("S-inhibition",), "q", "negative name mover"),
    ("IOI-W4", ("duplicate token", "induction"), "v", "S-inhibition"),
)
"""The edges of Figure 2 between heads, as (claim, writing roles, input, reading role)."""


@dataclass(frozen=True)
class Connection:
    """One reading head: its strongest earlier composer, and where the heads that the circuit names rank.

    Attributes:
        ranks: rank of each expected writer among the `earlier` heads before the reader, 1 is the strongest.
        scores: composition score of each expected writer.
        strongest: the leading heads among all earlier ones.
    """

    claim: str
    mode: str
    reader: str
    earlier: int
    ranks: dict[str, int]
    scores: dict[str, float]
    strongest: list[str]

    @property
    def chance(self) -> float:
        """Probability that the best of as many random heads would rank as high."""
        return 1 - (1 - min(self.ranks.values()) / self.earlier) ** len(self.ranks)


@dataclass(frozen=True)
class Wiring:
    """All connections of a circuit. `level` is the mean composition score of random matrices, by input."""

    weights: str
    connections: tuple[Connection, ...]
    level: dict[str, float]

    def shares(self) -> dict[str, Estimate]:
        """By claim, the share of readers whose strongest earlier composer is one of the expected writers."""
        return {
            claim: population(sum(min(c.ranks.values()) == 1 for c in rows) / len(rows), len(rows), "reading heads")
            for claim, rows in self._claims().items()
        }

    def chances(self, *, fewer: Container[str] = ()) -> dict[str, float]:
        """By claim, the exact probability that random heads of the writers' layers lead as many readers or more.

        Args:
            fewer: claims that writers do *not* lead; for these, as many readers or fewer.
        """
        return {claim: _as_many(rows, claim in fewer) for claim, rows in self._claims().items()}

    def _claims(self) -> dict[str, list[Connection]]:
        names = dict.fromkeys(c.claim for c in self.connections)
        return {claim: [c for c in self.connections if c.claim == claim] for claim in names}

    def leaders(self) -> list[tuple[Head, Head, str, bool]]:
        """For every reading head its strongest earlier composer: (writer, reader, input, was it expected)."""
        return [
            (
                Head.parse(c.strongest[0]),
                Head.parse(c.reader),
                f"{c.mode.upper()}-composition",
                min(c.ranks.values()) == 1,
            )
            for c in self.connections
        ]

    def _rows(self) -> list[tuple[str, ...]]:
        rows: list[tuple[str, ...]] = []
        for c in self.connections:
            placed = ", ".join(f"{w}: {r}" for w, r in sorted(c.ranks.items(), key=lambda item: item[1]))
            strongest = ", ".join(c.strongest)
            rows.append((c.mode.upper(), c.reader, placed, str(c.earlier), strongest, f"{c.chance:.2f}"))
        return rows

    def __str__(self) -> str:
        header = ("input", "reader", "rank of each expected writer", "of", "strongest", "by chance")
        table = [header, *self._rows()]
        widths = [max(len(row[i]) for row in table) for i in range(len(header))]
        return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in table)

    def _repr_html_(self) -> str:
        header = ("input", "reader", "rank of each expected writer", "among", "strongest composers", "by chance")
        head = "".join(f"<th>{cell}</th>" for cell in header)
        body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in self._rows())
        return f'<div style="overflow-x:auto"><table><tr>{head}</tr>{body}</table></div>'


def _as_many(rows: Sequence[Connection], fewer: bool) -> float:
    """Probability that random writers, as many in each layer, are the strongest composers of as many readers or more.

    What is drawn in one layer does not depend on another, and within one each subset of the leading heads has a
    hypergeometric probability.
    """
    readers = [Head.parse(c.reader) for c in rows]
    n = rows[0].earlier // readers[0].layer
    writers = {Head.parse(w) for c in rows for w in c.ranks}
    leaders = Counter(Head.parse(c.strongest[0]) for c in rows)
    seen = sum(count for head, count in leaders.items() if head in writers)
    chances = {0: 1.0}
    for layer in {head.layer for head in leaders}:
        here = [count for head, count in leaders.items() if head.layer == layer]
        k = sum(w.layer == layer for w in writers)
        before, chances = chances, {}
        for size in range(min(len(here), k) + 1):
            for drawn in combinations(here, size):
                p = comb(n - len(here), k - size) / comb(n, k)
                for hits, chance in before.items():
                    total = hits + sum(drawn)
                    chances[total] = chances.get(total, 0.0) + chance * p
    return min(1.0, sum(p for hits, p in chances.items() if (hits <= seen if fewer else hits >= seen)))


def wiring(
    weights: HeadWeights,
    circuit: Circuit = PAPER_CIRCUIT,
    *,
    edges: Sequence[Edge] = EDGES,
    name: str = "",
    seeds: int = 2,
) -> Wiring:
    """Rank all earlier heads for every reading head of a circuit; edges with a missing role are left out.

    Errors: `ValueError` if the circuit has a head that the weights do not have.
    """
    layers, heads = weights.W_Q.shape[:2]
    for head in circuit:
        if head.layer >= layers or head.head >= heads:
            raise ValueError(f"no head {head} in these weights: {layers} layers of {heads} heads")
    connections, level = [], {}
    for claim, writing, mode, reading in edges:
        scores = composition(weights, mode)
        order = ranks(scores)
        if mode not in level:
            level[mode] = chance_level(weights, mode, seeds=seeds)[0]
        for reader in circuit.heads(reading):
            expected = [w for role in writing for w in circuit.heads(role) if w.layer < reader.layer]
            if not expected:
                continue
            column = scores[: reader.layer, :, reader.layer, reader.head]
            best = column.flatten().argsort(descending=True)[:4].tolist()
            connections.append(
                Connection(
                    claim=claim,
                    mode=mode,
                    reader=str(reader),
                    earlier=column.numel(),
                    ranks={str(w): int(order[w + reader]) for w in expected},
                    scores={str(w): round(scores[w + reader].item(), 4) for w in expected},
                    strongest=[str(Head(*divmod(i, heads))) for i in best],
                )
            )
    return Wiring(name, tuple(connections), {mode: round(value, 4) for mode, value in level.items()})


def save(result: Wiring, path: Path) -> None:
    """Write a result atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, (json.dumps(asdict(result), indent=1) + "\n").encode())


def load(path: Path) -> Wiring:
    """Read a result; `ValueError` if the file is missing or not one."""
    if not path.is_file():
        raise ValueError(
            f"no wiring result at {path}; make it with python -m mechinterp.circuits.weight_edges --json {path}"
        )
    try:
        data = json.loads(path.read_text())
        return Wiring(data["weights"], tuple(Connection(**c) for c in data["connections"]), data["level"])
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a whole wiring result ({error}); make it again") from error


def gpt2() -> Wiring:
    """The paper's circuit on GPT-2 small's real attention weights, as this module's command found it."""
    return load(Path(__file__).with_name("gpt2_wiring.json"))


def read_weights(source: str) -> HeadWeights:
    """Attention weights of a folder (complete or attention only) or, from the hub, of a whole model."""
    if Path(source).is_dir():
        return HeadWeights.load(source)
    from mechinterp.models import hub

    wanted = ["config.json", "model.safetensors"]
    return HeadWeights.load(hub.download(source, wanted, enough=lambda f: all((f / n).is_file() for n in wanted)))


def main(arguments: Sequence[str] | None = None, *, edges: Sequence[Edge] = EDGES, about: str | None = __doc__) -> None:
    """The command, for the edges of a chapter."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="gpt2", help="hub id or folder")
    parser.add_argument("--name", default="", help="what to call the weights in the result")
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args(arguments)
    with torch.no_grad():
        result = wiring(read_weights(options.weights), edges=edges, name=options.name or options.weights)
    print(result)
    for claim, share in result.shares().items():
        print(f"{claim}: {share:.0%} of the readers are led by an expected writer")
    if options.json:
        save(result, options.json)


if __name__ == "__main__":
    main()
