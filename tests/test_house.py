"""Rules of the house, held over the syntax trees: who may know an architecture."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "mechinterp"
EXEMPT = {"anatomy.py", "modules.py", "architectures.py"}
EXEMPT_ROOMS = ("grokking/", "lab/", "models/")
"""Where models are made: small ones from scratch, the lab model, organisms, and loading itself."""
PLACES = {"cfg", "blocks", "original_component", "original_model", "hook_dict", "ln_final", "ln1", "ln2", "unembed"}
WEIGHTS = {f"{kind}_{name}" for kind in "Wb" for name in ("E", "U", "Q", "K", "V", "O", "pos", "in", "out", "gate")}
NORMS = {"normalization_type", "variance_epsilon", "eps", "rmsnorm_uses_offset"}


def knows_an_architecture(tree: ast.AST) -> list[str]:
    """Attributes of a model's inside: places and norms of anything, weights of what is called a model."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        owner = node.value
        name = owner.id if isinstance(owner, ast.Name) else owner.attr if isinstance(owner, ast.Attribute) else ""
        is_model = name in ("model", "bridge", "m")
        anatomy = name in ("anatomy", "self", "other") and node.attr == "unembed"
        if (node.attr in PLACES | NORMS and not anatomy) or (node.attr in WEIGHTS and is_model):
            found.append(f"{name}.{node.attr}, line {node.lineno}")
    return found


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda p: p.relative_to(SOURCE).as_posix())
def test_only_the_anatomy_knows_architectures(path: Path) -> None:
    place = path.relative_to(SOURCE).as_posix()
    if place in EXEMPT or place.startswith(EXEMPT_ROOMS):
        return
    assert knows_an_architecture(ast.parse(path.read_text())) == []


@pytest.mark.parametrize(
    ("code", "caught"),
    [
        ("model.cfg.n_heads", True),
        ("setting.model.blocks[0].attn", True),
        ("model.W_U[:, ids]", True),
        ("run.model.b_Q", True),
        ("norm.variance_epsilon", True),
        ("anatomy.W_U", False),
        ("weights.W_Q", False),
        ("sae.W_enc", False),
        ("anatomy.unembed(x)", False),
    ],
)
def test_the_rule_catches_what_it_should(code: str, caught: bool) -> None:
    assert bool(knows_an_architecture(ast.parse(code))) is caught


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda p: p.relative_to(SOURCE).as_posix())
def test_arrows_run_one_way(path: Path) -> None:
    """Rooms below know nobody above; papers' rooms never know each other; nobody but models loads a model."""
    place = path.relative_to(SOURCE).as_posix()
    room = place.split("/")[0].removesuffix(".py")
    below = {"anatomy", "modules", "architectures", "heads", "stats", "files", "datasets", "viz", "claims"}
    methods = {"patching", "attention", "circuits"}
    papers = {"copy_suppression", "successor", "grokking", "stealing"}
    known = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        known |= {n.split(".")[1] for n in names if n.startswith("mechinterp.")}
    if room in below:
        assert not known & (methods | papers | {"models", "lab", "sae"}), known
    if room in methods:
        assert not known & (papers | {"lab", "sae"}), known
    if room in papers:
        assert not known & (papers - {room} | {"lab", "sae"}), known
