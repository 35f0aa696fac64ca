"""A kind of SAE is one file: nobody else asks for its name, and one that the package does not know works everywhere."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

import mechinterp.sae
from mechinterp.sae import KINDS, SAE, Config, Given, Spec, initial, reconstruction, same_function, scale_input, train
from mechinterp.sae.files import Stored, convert, load, save
from mechinterp.sae.kinds import base
from mechinterp.sae.kinds.standard import Standard
from mechinterp.sae.latents import encoder_map

PACKAGE = Path(mechinterp.sae.__file__).parent
ELSEWHERE = [
    path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.parent.name != "kinds" and path != PACKAGE / "files" / "readers.py"  # which knows other libraries' names
]


def texts(node: ast.AST | None) -> Iterator[str]:
    if node is not None:
        yield from (n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str))


def asked_for(tree: ast.AST, names: set[str]) -> list[tuple[int, str]]:
    """Where a program compares something with one of the names, in `==`, `in` or `match`."""
    found = []
    for node in ast.walk(tree):
        parts = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
        parts += [p for p in ast.walk(node) if isinstance(p, ast.MatchValue)] if isinstance(node, ast.Match) else []
        found += [(part.lineno, text) for part in parts for text in texts(part) if text in names]
    return found


NAMES = {*KINDS, "log_threshold", *(name for kind in KINDS.values() for name in kind.own if name != "b_enc")}


def test_the_search_sees_every_way_to_ask() -> None:
    program = """
if kind == "gated" or kind in ("topk", "relu"): pass
match kind:
    case "standard" | "other": pass
x = "b_gate" in p
table = {"gated": 1}
"""
    found = {text for _, text in asked_for(ast.parse(program), NAMES)}
    assert found == {"gated", "topk", "standard", "b_gate"}


@pytest.mark.parametrize("path", ELSEWHERE, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nobody_else_asks_for_a_kind_by_name(path: Path) -> None:
    assert asked_for(ast.parse(path.read_text()), NAMES) == []


class Capped(Standard):
    """A kind of these tests: relu(pre), at most a cap of its own a latent."""

    name = "capped"
    own = ("b_enc", "cap")
    thresholds = ("cap",)

    def fresh(self, d_sae: int, threshold: float) -> dict[str, Tensor]:
        return super().fresh(d_sae, threshold) | {"cap": torch.full((d_sae,), 2.0)}

    def encode(self, p: dict[str, Tensor], x: Tensor, k: int | None) -> Tensor:
        return torch.minimum(self.pre(p, x).relu(), p["cap"])

    def forms(self) -> dict:
        return {}

    def gradients(
        self, p: dict[str, Tensor], x: Tensor, sparsity: Tensor, o: base.Options, value: bool
    ) -> base.Gradients:
        leaves = {name: v.detach().requires_grad_(True) for name, v in p.items()}
        with torch.enable_grad():
            f = torch.minimum(base.inner(leaves, x).relu(), leaves["cap"][:, None])
            error = base.squared(x - base.decode(leaves, f))
            penalty = sparsity * f.sum((-2, -1)) / len(x)
            (error + penalty).sum().backward()
        grads = {name: v.grad for name, v in leaves.items() if v.grad is not None}
        return base.Gradients(grads, error.detach(), f.detach(), penalty.detach())


def test_a_new_kind_is_one_class(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(KINDS, "capped", Capped())
    x = torch.randn(2000, 8, generator=torch.Generator().manual_seed(0))
    config = Config(60, lr_warmup=5, sparsity_warmup=10, log_every=20, resample_every=20)
    [sae] = train([Spec("capped", "here", 16, 0.05, lr=1e-2)], Given({"here": x}, batch=200), config).saes
    fresh = SAE("capped", initial("capped", 8, 16, seed=0))
    assert reconstruction(sae, x).fvu < 0.5 * reconstruction(fresh, x).fvu
    assert (sae.encode(9 * x) <= sae.params["cap"]).all()
    torch.testing.assert_close(scale_input(sae, 3.0).encode(3 * x), 3 * sae.encode(x), atol=1e-4, rtol=1e-4)
    weight, constant = encoder_map(sae)
    torch.testing.assert_close(x @ weight + constant, sae.pre(x), atol=1e-5, rtol=1e-4)
    shrunk = sae.params | {"W_dec": 2 * sae.W_dec}
    again = convert(Stored("a test", "capped", shrunk, scale=2.0))
    torch.testing.assert_close(again(x), SAE("capped", shrunk)(2 * x) / 2, atol=1e-5, rtol=1e-4)
    assert load(save(sae, tmp_path)).kind == "capped"
    torch.testing.assert_close(load(tmp_path)(x), sae(x), atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="expected a gated SAE, got SAE"):
        same_function(sae, "jumprelu")


@pytest.mark.parametrize(("kind", "other"), [(name, other) for name, kind in KINDS.items() for other in kind.forms()])
def test_a_special_case_is_the_same_function(kind: str, other: str) -> None:
    generator = torch.Generator().manual_seed(1)
    params = {n: v + 0.3 * torch.randn(v.shape, generator=generator) for n, v in initial(kind, 6, 20, seed=0).items()}
    sae, x = SAE(kind, params), torch.randn(500, 6, generator=generator)
    written = same_function(sae, other)
    assert written.kind == other
    f = sae.encode(x)
    near = (written.encode(x) - f).abs() > 1e-5  # where a jump hangs on rounding
    assert near.float().mean() < 1e-3
    assert 0.1 < (f > 0).float().mean() < 0.9


@pytest.mark.parametrize(
    ("kind", "k"), [("standard", None), ("topk", 100), ("topk", 5), ("batchtopk", 40), ("topk", 900)]
)
def test_an_sae_begins_near_the_scale_that_reconstructs_best(kind, k):
    """By trying scales on random inputs: the fault was an encoder at the decoder's length for all k."""
    x = torch.randn(500, 64, generator=torch.Generator().manual_seed(0))
    p = initial(kind, 64, 1024, seed=0, k=k)

    def error(factor):
        scaled = SAE(kind, p | {"W_enc": factor * p["W_enc"]}, k)
        return (scaled.decode(scaled.encode(x)) - x).square().sum() / x.square().sum()

    errors = {factor: error(factor).item() for factor in (0.25, 0.5, 0.8, 1, 1.25, 2, 4)}
    assert errors[1] < 1.03 * min(errors.values())
    assert errors[4] > 1.5 * errors[1]
