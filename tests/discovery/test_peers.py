"""Scores and circuits are those of other libraries, on tiny models whose blocks are serial, parallel and grouped.

auto-circuit, gim-explain and TransformerLens 2 live in an environment of their own (`make peers`); EAP-IG is not on
PyPI, and MECHINTERP_EAP_IG names a checkout of hannamw/EAP-IG. Tests skip without.

Peers have keys and values for every query head. The score of an edge into a group's key is the sum of theirs where it
is a gradient; its exact effect is that of all of theirs patched at once.
"""

import copy
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from families import raw_model

from mechinterp.discovery import Edge, Graph, patched_logits, said
from mechinterp.models import load_tokenizer, to_bridge

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
PROMPTS, LENGTH, STEPS, CIRCUITS = 3, 7, 5, 4
THRESHOLDS = (0.01, 0.1, 0.5)
MODELS = ("GPT-2", "Pythia", "Qwen 2")
ABLATIONS = {"resample": "RESAMPLE", "zero": "ZERO", "mean": "TOKENWISE_MEAN_CORRUPT"}


def ask(script: str, asked: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """What a peer finds of each model, task by task; or the test is skipped."""
    python = Path(os.environ.get("MECHINTERP_AUTO_CIRCUIT_PYTHON", ROOT / ".venv-auto-circuit" / "bin" / "python"))
    if not python.is_file():
        pytest.skip(
            f"no auto-circuit environment at {python}; `make peers` makes it, or set MECHINTERP_AUTO_CIRCUIT_PYTHON"
        )
    if script == "eap_ig_peer.py" and "MECHINTERP_EAP_IG" not in os.environ:
        pytest.skip("MECHINTERP_EAP_IG does not name a checkout of https://github.com/hannamw/EAP-IG")
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [python, HERE / script]
    done = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True, env=env, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def without_windows(name: str) -> Any:
    """A copy of the family's model; attention windows, which the peers' Qwen 2 does not have, taken away."""
    raw = copy.deepcopy(raw_model(name))
    if name == "Qwen 2":
        config = copy.deepcopy(raw.config)
        config.use_sliding_window, config.sliding_window = False, None
        config.layer_types = ["full_attention"] * config.num_hidden_layers
        raw = hf.Qwen2ForCausalLM(config).eval()
        raw.load_state_dict(raw_model(name).state_dict())
    return raw


class Problem:
    """A model, here and in a folder for the peers, prompts and a metric."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, raw, generator = name, without_windows(name), torch.Generator().manual_seed(0)
        raw.save_pretrained(folder)
        self.model = to_bridge(raw, load_tokenizer("lab"), name=name, device="cpu")
        self.graph = Graph.of(self.model)
        shape, vocabulary = (PROMPTS, LENGTH), self.model.cfg.d_vocab
        self.clean, self.corrupt = (torch.randint(vocabulary, shape, generator=generator) for _ in range(2))
        self.answers = torch.randint(vocabulary, (PROMPTS, 2), generator=generator)
        self.at = torch.full((PROMPTS,), LENGTH - 1)
        draw = torch.rand(CIRCUITS, *self.graph.mask.shape, generator=generator)
        self.circuits = (draw < torch.tensor([0.2, 0.5, 0.8, 0.95])[:, None, None]) & self.graph.mask
        self.asked = {
            "model": str(folder),
            "clean": self.clean.tolist(),
            "corrupt": self.corrupt.tolist(),
            "answers": self.answers.tolist(),
        }
        self.names = [str(edge) for edge in self.graph]
        self.off = [[str(edge) for edge in self.graph.edges(self.graph.mask & ~on)] for on in self.circuits]

    def metric(self, logits: torch.Tensor) -> torch.Tensor:
        """Difference of two tokens' logits."""
        return logits.gather(1, self.answers[:, :1])[:, 0] - logits.gather(1, self.answers[:, 1:])[:, 0]

    def compare(self, method: Any, elsewhere: Any, found: dict[str, Any], **options: Any) -> torch.Tensor:
        """A method's scores against those that a peer found, of every prompt or their mean; the peer's, [edge …]."""
        theirs = torch.tensor(list(found["scores"].values()))
        ours = method(self.model, self.clean, elsewhere, metric=self.metric, at=self.at, **options)
        each = torch.stack([ours.of(name) for name in found["scores"]])
        close(each if theirs.ndim == 2 else each.mean(1), theirs)
        return theirs

    def order(self) -> list[str]:
        """Edges as ACDC tries them: from the last receiver, and its last sender, back."""
        graph = self.graph
        return [
            str(Edge(sender, receiver))
            for receiver in reversed(graph.receivers)
            for sender in reversed(graph.senders[: graph.before(receiver)])
        ]


@pytest.fixture(scope="module")
def problems(tmp_path_factory: Any) -> dict[str, Problem]:
    return {name: Problem(name, tmp_path_factory.mktemp("peer")) for name in MODELS}


@pytest.fixture(params=MODELS)
def problem(request: Any, problems: dict[str, Problem]) -> Problem:
    return problems[request.param]


Found = dict[str, dict[Any, dict[str, Any]]]
"""By model and task."""


@pytest.fixture(scope="module")
def all_of_auto_circuit(problems: dict[str, Problem]) -> Found:
    """All that is asked of auto-circuit, in one process."""
    asked, tasks = [], {}
    for name, problem in problems.items():
        tasks[name] = {
            "logits": {"do": "logits"},
            "eap": {"do": "eap", "each": True},
            "gim": {"do": "gim", "each": True},
            "patched": {"do": "patched", "edges": problem.off},
        }
        for how, kind in ABLATIONS.items():
            tasks[name]["eap", how] = {"do": "eap", "ablation": kind}
            edges = problem.names[:: 1 if how == "resample" else 3]
            tasks[name]["exact", how] = {"do": "exact", "edges": edges, "ablation": kind}
        if problem.graph.n_kv_heads == problem.graph.n_heads:
            for threshold in THRESHOLDS:
                tasks[name]["acdc", threshold] = {"do": "acdc", "edges": problem.order(), "threshold": threshold}
        asked.append(problem.asked | {"tasks": list(tasks[name].values())})
    asked += [p.asked | {"positions": True, "tasks": [{"do": "eap", "each": True}]} for p in problems.values()]
    found = ask("auto_circuit_peer.py", asked)
    every = {name: dict(zip(tasks[name], its, strict=True)) for name, its in zip(tasks, found, strict=False)}
    for name, its in zip(tasks, found[len(tasks) :], strict=True):
        every[name]["positions"] = its[0]
    return every


@pytest.fixture(scope="module")
def all_of_the_authors(problems: dict[str, Problem]) -> Found:
    """All that is asked of EAP-IG's authors' code, in one process."""
    asked, tasks = [], {}
    for name, problem in problems.items():
        tasks[name] = {
            "eap": {"do": "eap", "each": True},
            "ig": {"do": "ig", "steps": STEPS, "each": True},
            "exact": {"do": "exact", "edges": problem.names[::3]},
            "patched": {"do": "patched", "edges": problem.off},
        }
        asked.append(problem.asked | {"tasks": list(tasks[name].values())})
    found = ask("eap_ig_peer.py", asked)
    return {name: dict(zip(tasks[name], its, strict=True)) for name, its in zip(tasks, found, strict=True)}


@pytest.fixture
def auto_circuit(all_of_auto_circuit: Found, problem: Problem) -> dict[Any, dict[str, Any]]:
    return all_of_auto_circuit[problem.name]


@pytest.fixture
def eap_ig_authors(all_of_the_authors: Found, problem: Problem) -> dict[Any, dict[str, Any]]:
    return all_of_the_authors[problem.name]


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Equal up to rounding, next to the largest; and there is something to be equal."""
    size = theirs.abs().max()
    assert size > 0.5
    torch.testing.assert_close(ours, theirs, atol=2e-5 * size.item(), rtol=0)


def elsewhere(problem: Problem, how: str) -> Any:
    """What flows along edges that are patched, as our methods take it."""
    if how == "mean":
        return said(problem.model, problem.corrupt).mean(0)
    return {"resample": problem.corrupt, "zero": None}[how]


def test_both_sides_have_the_same_model(problem: Problem, auto_circuit: Any) -> None:
    theirs = torch.tensor(auto_circuit["logits"]["logits"]).log_softmax(-1)
    torch.testing.assert_close(problem.model(problem.clean)[:, -1].log_softmax(-1), theirs, atol=1e-4, rtol=0)


def test_circuits_of_random_edges_say_the_same(problem: Problem, auto_circuit: Any) -> None:
    for on, logits in zip(problem.circuits, auto_circuit["patched"]["logits"], strict=True):
        ours = patched_logits(problem.model, problem.clean, on, problem.corrupt, at=problem.at)
        close(ours.log_softmax(-1), torch.tensor(logits).log_softmax(-1))


def test_circuits_of_random_edges_say_the_same_in_the_code_of_eap_ig(problem: Problem, eap_ig_authors: Any) -> None:
    for on, logits in zip(problem.circuits, eap_ig_authors["patched"]["logits"], strict=True):
        ours = patched_logits(problem.model, problem.clean, on, problem.corrupt, at=problem.at)
        close(ours.log_softmax(-1), torch.tensor(logits).log_softmax(-1))


def test_peers_have_the_same_edges(problem: Problem, auto_circuit: Any, eap_ig_authors: Any) -> None:
    assert set(auto_circuit["eap"]["scores"]) == set(eap_ig_authors["eap"]["scores"]) == set(problem.names)


def test_eap_is_the_gradient_of_masks(problem: Problem, auto_circuit: Any) -> None:
    from mechinterp.discovery import eap

    problem.compare(eap, problem.corrupt, auto_circuit["eap"])


@pytest.mark.parametrize("how", ABLATIONS)
def test_eap_with_other_ablations(problem: Problem, auto_circuit: Any, how: str) -> None:
    from mechinterp.discovery import eap

    problem.compare(eap, elsewhere(problem, how), auto_circuit["eap", how])


@pytest.mark.parametrize("how", ABLATIONS)
def test_exact_effects(problem: Problem, auto_circuit: Any, how: str) -> None:
    from mechinterp.discovery import exact

    problem.compare(exact, elsewhere(problem, how), auto_circuit["exact", how])


def test_gim_is_eap_within_its_backward_pass(problem: Problem, auto_circuit: Any) -> None:
    from mechinterp.discovery import gim

    theirs = problem.compare(gim, problem.corrupt, auto_circuit["gim"])
    other = torch.tensor(list(auto_circuit["eap"]["scores"].values()))
    assert (theirs - other).abs().max() > 0.1 * other.abs().max(), "GIM is another thing than EAP"


def test_eap_is_the_authors(problem: Problem, eap_ig_authors: Any) -> None:
    from mechinterp.discovery import eap

    problem.compare(eap, problem.corrupt, eap_ig_authors["eap"])


def test_integrated_gradients_are_the_authors(problem: Problem, eap_ig_authors: Any) -> None:
    from mechinterp.discovery import eap_ig

    theirs = problem.compare(eap_ig, problem.corrupt, eap_ig_authors["ig"], steps=STEPS)
    other = torch.tensor(list(eap_ig_authors["eap"]["scores"].values()))
    assert (theirs - other).abs().max() > 0.1 * other.abs().max(), "steps matter"


def test_exact_effects_are_the_authors(problem: Problem, eap_ig_authors: Any) -> None:
    from mechinterp.discovery import exact

    problem.compare(exact, problem.corrupt, eap_ig_authors["exact"])


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("problem", ["GPT-2", "Pythia"], indirect=True)
def test_acdc_keeps_the_same_edges(problem: Problem, auto_circuit: Any, threshold: float) -> None:
    # Not with grouped keys: an edge into a group's is several of auto-circuit's, of which it may keep some.
    from mechinterp.discovery import acdc

    found = acdc(problem.model, problem.clean, problem.corrupt, at=problem.at, threshold=threshold)
    kept = auto_circuit["acdc", threshold]["kept"]
    assert 0 < len(kept) < len(problem.names)
    assert {str(edge) for edge in problem.graph.edges(found.mask)} == set(kept)


def test_edges_by_position(problem: Problem, auto_circuit: Any) -> None:
    from mechinterp.discovery import eap

    scores = auto_circuit["positions"]["scores"]
    options = {"metric": problem.metric, "at": problem.at, "positions": True}
    ours = eap(problem.model, problem.clean, problem.corrupt, **options).values
    s, r = problem.graph.mask.T.nonzero().T.flip(0)
    theirs = torch.tensor([[scores[f"{name}@{at}"] for at in range(LENGTH)] for name in problem.names])
    close(ours[:, :, s, r].permute(2, 1, 0), theirs)
