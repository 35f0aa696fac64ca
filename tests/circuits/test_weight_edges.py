"""The circuit's edges on weights alone: on the organism, on random weights, on the real ones."""

from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from mechinterp.attention import HeadWeights
from mechinterp.circuits import PAPER_CIRCUIT, from_roles, weight_edges
from mechinterp.heads import Head
from mechinterp.models import organisms


def test_the_organism_s_edges_lead_everywhere() -> None:
    organism = organisms.ioi_circuit()
    circuit = from_roles({role: organism.heads(role) for role in dict.fromkeys(organism.roles.values())})
    result = weight_edges.wiring(HeadWeights.of(organism.model), circuit, name="organism")
    assert [result.shares()[f"IOI-W{i}"].value for i in (1, 2, 3)] == [1, 1, 1]


def test_random_weights_lead_as_often_as_chance_says() -> None:
    """Over many random models the share of led readers is what `chance` predicts."""
    shape = (6, 4, 32, 8)
    g = torch.Generator().manual_seed(0)
    names = {"previous token": [Head(1, 1)], "induction": [Head(3, 0), Head(4, 2), Head(5, 1)]}
    names |= {"S-inhibition": [Head(3, 1)], "name mover": [Head(4, 0), Head(5, 0)]}
    led, expected = [], []
    for _ in range(40):
        read = [torch.randn(shape, generator=g) for _ in range(3)]
        weights = HeadWeights(*read, torch.randn(6, 4, 8, 32, generator=g))
        for c in weight_edges.wiring(weights, from_roles(names)).connections:
            led.append(min(c.ranks.values()) == 1)
            expected.append(len(c.ranks) / c.earlier)
    share, chance = sum(led) / len(led), sum(expected) / len(expected)
    assert abs(share - chance) < 4 * (chance * (1 - chance) / len(led)) ** 0.5


def test_the_chance_is_what_random_writers_do() -> None:
    """Writers drawn from the same layers, again and again, lead as many readers as often as the exact number says."""
    result = weight_edges.gpt2()
    generator = torch.Generator().manual_seed(0)
    for claim, exact in result.chances().items():
        rows = [c for c in result.connections if c.claim == claim]
        leaders = [Head.parse(c.strongest[0]) for c in rows]
        writers = {Head.parse(w) for c in rows for w in c.ranks}
        seen, hits, n = sum(h in writers for h in leaders), 0, 4000
        for _ in range(n):
            drawn = {
                Head(layer, i)
                for layer in {w.layer for w in writers}
                for i in torch.randperm(12, generator=generator)[: sum(w.layer == layer for w in writers)].tolist()
            }
            hits += sum(h in drawn for h in leaders) >= seen
        assert abs(hits / n - exact) < 4 * (max(exact * (1 - exact), 1 / n) / n) ** 0.5, claim


def test_a_result_is_written_and_read_back(tmp_path: Path) -> None:
    result = weight_edges.gpt2()
    weight_edges.save(result, tmp_path / "new" / "wiring.json")
    assert weight_edges.load(tmp_path / "new" / "wiring.json") == result
    with pytest.raises(ValueError, match="no wiring result at"):
        weight_edges.load(tmp_path / "other.json")
    (tmp_path / "half.json").write_text((tmp_path / "new" / "wiring.json").read_text()[:200])
    with pytest.raises(ValueError, match="not a whole wiring result"):
        weight_edges.load(tmp_path / "half.json")


def test_the_committed_result_is_what_the_real_weights_give(shared: Path) -> None:
    committed = weight_edges.gpt2()
    assert_same(
        committed,
        weight_edges.wiring(HeadWeights.load(shared / "gpt2_attention"), PAPER_CIRCUIT, name=committed.weights),
    )


def assert_same(committed: weight_edges.Wiring, again: weight_edges.Wiring) -> None:
    """Equal but for the fourth digit of scores, to which they are written, and the seeds of the chance level."""
    for old, new in zip(committed.connections, again.connections, strict=True):
        old_, new_ = asdict(old), asdict(new)
        assert old_.pop("scores") == pytest.approx(new_.pop("scores"), abs=2e-4)
        assert old_ == new_
    assert committed.level == pytest.approx(again.level, abs=2e-3)


def test_the_command_prints_every_claim(shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weight_edges.main(["--weights", str(shared / "gpt2_attention"), "--json", str(tmp_path / "w.json")])
    printed = capsys.readouterr().out
    assert all(f"IOI-W{i}:" in printed for i in range(1, 5))
    assert_same(weight_edges.gpt2(), weight_edges.load(tmp_path / "w.json"))
