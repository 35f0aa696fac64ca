"""SAELens itself reads what we write, and we read what it writes.

SAELens needs another TransformerLens than we do, so it lives in an environment of its own (`make peers`).
"""

import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mechinterp.sae import SAE, initial
from mechinterp.sae.files import load, load_transcoder, save

ROOT = Path(__file__).parents[3]
PEER = Path(__file__).parent / "sae_lens_peer.py"
SAVED = ("standard", "gated", "jumprelu", "topk")
D_IN, D_SAE, K = 8, 20, 3


def random_sae(kind: str, hook: str) -> SAE:
    g = torch.Generator().manual_seed(len(hook))
    params = initial(kind, D_IN, D_SAE, seed=1)  # type: ignore[arg-type]
    for name, value in params.items():
        if name == "threshold":
            params[name] = torch.rand(value.shape, generator=g) + 0.01
        elif name != "W_dec":
            params[name] = torch.randn(value.shape, generator=g) / value.shape[0] ** (0.5 * (value.ndim - 1))
    facts = {"model_name": "lab", "prepend_bos": True, "density": [0.1] * D_SAE}
    return SAE(kind, params, k=K if kind == "topk" else None, hook=hook, facts=facts)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def exchanged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which both sides wrote SAEs, and SAELens what it computes with them."""
    python = Path(os.environ.get("MECHINTERP_SAE_LENS_PYTHON", ROOT / ".venv-sae-lens" / "bin" / "python"))
    if not python.is_file():
        pytest.skip(f"no SAELens environment at {python}; `make peers` makes it, or set MECHINTERP_SAE_LENS_PYTHON")
    root = tmp_path_factory.mktemp("peer")
    save_file({"x": torch.randn(300, D_IN, generator=torch.Generator().manual_seed(0))}, root / "x.safetensors")
    for kind in SAVED:
        save(random_sae(kind, "blocks.2.hook_resid_post"), root / "ours" / kind)
        save(random_sae(kind, "blocks.2.attn.hook_z"), root / "ours" / f"{kind}-heads")
        save(random_sae(kind, "hook_embed"), root / "ours" / f"{kind}-half", dtype=torch.float16)
    done = subprocess.run([python, PEER, root], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return root


def compare(folder: Path, x: torch.Tensor, tolerance: float) -> SAE:
    sae, theirs = load(folder), load_file(folder / "peer.safetensors")
    f = sae.to(torch.float64).encode(x.double())
    assert 0 < (f > 0).double().mean() < 0.9
    torch.testing.assert_close(f, theirs["f"], atol=tolerance, rtol=0)
    torch.testing.assert_close(sae.to(torch.float64).decode(f), theirs["out"], atol=tolerance, rtol=0)
    return sae


@pytest.mark.parametrize("variant", ["", "-heads", "-half"])
@pytest.mark.parametrize("kind", SAVED)
def test_sae_lens_reads_ours(exchanged: Path, kind: str, variant: str) -> None:
    x = load_file(exchanged / "x.safetensors")["x"]
    compare(exchanged / "ours" / f"{kind}{variant}", x, 1e-9)


WRITTEN = [f"{kind}{centring}{how}" for kind in SAVED for centring in ("", "-uncentred") for how in ("", "-checkpoint")]
BATCHWISE = ("batchtopk", "matryoshka")
TRAINED = [f"{kind}{centring}-trained" for kind in (*SAVED, *BATCHWISE) for centring in ("", "-uncentred")]


@pytest.mark.parametrize("name", WRITTEN + TRAINED)
def test_we_read_what_sae_lens_writes(exchanged: Path, name: str) -> None:
    """By `save_model` of an SAE and of one in training, and by `save_inference_model`."""
    sae = compare(exchanged / "theirs" / name, load_file(exchanged / "x.safetensors")["x"], 1e-5)
    kind = name.split("-")[0]
    assert sae.kind == ("jumprelu" if kind in BATCHWISE else kind)
    assert (sae.W_dec.norm(dim=1) - 1).abs().max() < 1e-3


@pytest.mark.parametrize("name", ["transcoder", "transcoder-skip", "transcoder-jumprelu"])
def test_we_read_sae_lens_transcoders(exchanged: Path, name: str) -> None:
    found, x = load_transcoder(exchanged / "theirs" / name), load_file(exchanged / "x.safetensors")["x"]
    theirs = load_file(exchanged / "theirs" / name / "peer.safetensors")
    assert (found.reads, found.predicts) == ("reads", "predicts")
    torch.testing.assert_close(found.encode(x).double(), theirs["f"], atol=1e-4, rtol=0)
    torch.testing.assert_close(found(x).double(), theirs["out"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", BATCHWISE)
def test_a_checkpoint_of_a_batchwise_kind_is_what_its_inference_model_is(exchanged: Path, kind: str) -> None:
    x = load_file(exchanged / "x.safetensors")["x"]
    saved, checkpoint = (load(exchanged / "theirs" / f"{kind}-{how}") for how in ("trained", "checkpoint"))
    torch.testing.assert_close(checkpoint(x), saved(x), atol=1e-5, rtol=1e-5)


def test_the_hook_is_kept(exchanged: Path) -> None:
    assert load(exchanged / "theirs" / "gated").hook == "blocks.3.hook_mlp_out"


@pytest.mark.parametrize(
    ("name", "words"), [("transcoder", "is a transcoder"), ("transcoder-skip", "load_transcoder reads it")]
)
def test_what_is_no_finished_sae_is_refused(exchanged: Path, name: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        load(exchanged / "theirs" / name)
