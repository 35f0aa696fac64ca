"""Files of SAEs against a reader and encoders in plain numpy, written from the formats' definitions."""

import hashlib
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mechinterp.sae import SAE, initial
from mechinterp.sae.files.formats import load, save

SAVED = ("standard", "gated", "jumprelu", "topk")
K = 3
Arrays = dict[str, np.ndarray]


def parse(path: Path) -> Arrays:
    """A safetensors file, by its specification: length of the header, header, data."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    types = {"F32": np.float32, "F16": np.float16}
    return {
        name: np.frombuffer(data[start + h["data_offsets"][0] : start + h["data_offsets"][1]], types[h["dtype"]])
        .reshape(h["shape"])
        .astype(np.float64)
        for name, h in header.items()
    }


def largest(pre: np.ndarray, k: int) -> np.ndarray:
    cut = np.sort(pre, -1)[:, -k, None]
    return np.where(pre >= cut, pre, 0)


def encode(cfg: dict[str, Any], p: Arrays, x: np.ndarray) -> np.ndarray:
    """What SAELens computes for a config and its tensors."""
    inner = (x - p["b_dec"] * cfg["apply_b_dec_to_input"]) @ p["W_enc"]
    if cfg["architecture"] == "gated":
        return (inner + p["b_gate"] > 0) * np.maximum(inner * np.exp(p["r_mag"]) + p["b_mag"], 0)
    pre = inner + p["b_enc"]
    if cfg["architecture"] == "jumprelu":
        return np.maximum(pre, 0) * (pre > p["threshold"])
    if cfg["architecture"] == "topk":
        norm = np.linalg.norm(p["W_dec"], axis=1) if cfg.get("rescale_acts_by_decoder_norm") else 1.0
        return np.maximum(largest(pre * norm, cfg["k"]), 0) / norm
    return np.maximum(pre, 0)


def decode(p: Arrays, f: np.ndarray) -> np.ndarray:
    return f @ p["W_dec"] + p["b_dec"]


def random_tensors(kind: str, d_in: int, d_sae: int, seed: int = 0, unit: bool = False) -> Arrays:
    """Tensors of order one, decoder rows of norms between 0.3 and 3."""
    rng = np.random.default_rng(seed)
    p = {"W_enc": rng.normal(size=(d_in, d_sae)) / d_in**0.5, "b_dec": rng.normal(size=d_in)}
    names = ("b_gate", "b_mag", "r_mag") if kind == "gated" else ("b_enc",)
    p |= {name: rng.normal(size=d_sae) / 2 for name in names}
    if kind == "jumprelu":
        p["threshold"] = rng.uniform(0.01, 1, d_sae)
    rows = rng.normal(size=(d_sae, d_in))
    p["W_dec"] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    if not unit:
        p["W_dec"] = p["W_dec"] * np.exp(rng.uniform(-1.2, 1.1, (d_sae, 1)))
    return {name: value.astype(np.float32) for name, value in p.items()}


def random_sae(kind: str, d_in: int = 6, d_sae: int = 20, seed: int = 0, **rest: Any) -> SAE:
    tensors = {n: torch.from_numpy(v) for n, v in random_tensors(kind, d_in, d_sae, seed, unit=True).items()}
    return SAE(kind, tensors, k=K if kind == "topk" else None, **rest)  # type: ignore[arg-type]


def config(kind: str, p: Arrays, **rest: Any) -> dict[str, Any]:
    """A config as SAELens 6 writes it."""
    d_in, d_sae = p["W_enc"].shape
    return {
        "architecture": kind,
        "d_in": d_in,
        "d_sae": d_sae,
        "dtype": "float32",
        "device": "cuda",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"sae_lens_version": "6.18.0", "hook_name": "blocks.8.hook_resid_pre", "model_name": "gpt2-small"},
        **({"k": K} if kind == "topk" else {}),
        **rest,
    }


def write(folder: Path, cfg: dict[str, Any], p: Arrays) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cfg.json").write_text(json.dumps(cfg))
    safetensors.numpy.save_file({n: np.ascontiguousarray(v) for n, v in p.items()}, folder / "sae_weights.safetensors")
    return folder


def inputs(d_in: int, n: int = 1000) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(n, d_in))


def assert_same(sae: SAE, x: np.ndarray, f: np.ndarray, out: np.ndarray, *, tolerance: float = 1e-4) -> None:
    """The SAE's latents and reconstruction are those, but for inputs on which a jump hangs on rounding."""
    ours = sae.to(torch.float64)
    got = ours.encode(torch.from_numpy(x))
    near = (np.abs(got.numpy() - f) > tolerance).any(1)
    assert near.mean() < 0.01, near.mean()
    np.testing.assert_allclose(ours.decode(got).numpy()[~near], out[~near], atol=20 * tolerance, rtol=0)
    assert (f > 0).any()
    assert (f == 0).any()


@settings(max_examples=30, deadline=None)
@given(
    kind=st.sampled_from(SAVED),
    d_in=st.integers(1, 9),
    more=st.integers(K, 20),
    seed=st.integers(0, 1000),
)
def test_what_is_saved_comes_back(
    tmp_path_factory: pytest.TempPathFactory, kind: str, d_in: int, more: int, seed: int
) -> None:
    sae = random_sae(kind, d_in, d_in + more, seed, hook="blocks.1.hook_mlp_out", facts={"tokens": 5, "l0": 1.5})
    folder = save(sae, tmp_path_factory.mktemp("sae"))
    again = load(folder)
    assert (again.kind, again.k, again.hook) == (sae.kind, sae.k, sae.hook)
    assert again.facts == sae.facts | {"sha256": again.facts["sha256"]}
    assert again.params.keys() == sae.params.keys()
    assert all(torch.equal(again.params[n], sae.params[n]) for n in sae.params)


@pytest.mark.parametrize("kind", SAVED)
def test_a_reader_in_numpy_computes_the_same(tmp_path: Path, kind: str) -> None:
    sae = random_sae(kind, hook="blocks.1.hook_mlp_out")
    save(sae, tmp_path)
    cfg, p = json.loads((tmp_path / "cfg.json").read_text()), parse(tmp_path / "sae_weights.safetensors")
    x = inputs(6)
    f = encode(cfg, p, x)
    assert_same(sae, x, f, decode(p, f), tolerance=1e-6)
    torch.testing.assert_close(sae.encode(torch.from_numpy(x).float()).double(), torch.from_numpy(f), atol=1e-5, rtol=0)


def test_the_config_is_what_sae_lens_asks_for(tmp_path: Path) -> None:
    facts = {"model_name": "lab", "prepend_bos": True, "context_size": 256, "hook_name": "a lie", "training": {"k": 1}}
    sae = random_sae("topk", hook="blocks.2.attn.hook_z", facts=facts)
    save(sae, tmp_path / "new" / "folder")
    cfg = json.loads((tmp_path / "new" / "folder" / "cfg.json").read_text())
    sha256 = hashlib.sha256((tmp_path / "new" / "folder" / "sae_weights.safetensors").read_bytes()).hexdigest()
    assert cfg.pop("metadata") == facts | {
        "hook_name": "blocks.2.attn.hook_z",
        "sae_lens_version": "6.0.0",
        "sae_lens_training_version": None,
        "sha256": sha256,
    }
    assert cfg == {
        "architecture": "topk",
        "d_in": 6,
        "d_sae": 20,
        "k": K,
        "rescale_acts_by_decoder_norm": False,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "hook_z",
    }
    for hook, head, expected in (("blocks.2.attn.hook_z", 3, "none"), ("", None, "none"), ("hook_embed", None, "none")):
        save(random_sae("gated", hook=hook, facts={"hook_head_index": head}), tmp_path)
        assert json.loads((tmp_path / "cfg.json").read_text())["reshape_activations"] == expected
        assert load(tmp_path).hook == hook
    assert set(parse(tmp_path / "sae_weights.safetensors")) == {"W_enc", "b_gate", "b_mag", "r_mag", "W_dec", "b_dec"}


@pytest.mark.parametrize("kind", SAVED)
def test_half_precision_halves_the_matrices_only(tmp_path: Path, kind: str) -> None:
    sae = random_sae(kind, 32, 128)
    whole = (save(sae, tmp_path / "32") / "sae_weights.safetensors").stat().st_size
    half = (save(sae, tmp_path / "16", dtype=torch.float16) / "sae_weights.safetensors").stat().st_size
    assert half < 0.6 * whole
    again = load(tmp_path / "16")
    for name, value in sae.params.items():
        assert again.params[name].dtype == torch.float32
        if value.ndim == 1:
            assert torch.equal(again.params[name], value)
        else:
            assert torch.equal(again.params[name], value.half().float())


def test_density_is_kept_beside(tmp_path: Path) -> None:
    density = torch.tensor([0.0, 1.0, 1e-6, 0.25] * 5)
    save(random_sae("gated", facts={"density": density}), tmp_path)
    logs = parse(tmp_path / "sparsity.safetensors")["sparsity"]
    np.testing.assert_allclose(logs[:4], [-10, 0, -6, np.log10(0.25)], atol=1e-4)
    torch.testing.assert_close(load(tmp_path).facts["density"], density, rtol=1e-4, atol=0)
    save(random_sae("gated", facts={"density": density.tolist()}), tmp_path)
    assert "density" in load(tmp_path).facts
    save(random_sae("gated"), tmp_path)
    assert "density" not in load(tmp_path).facts
    for bad in ([0.5] * 19, [0.5] * 19 + [1.5], [0.5] * 19 + [float("nan")]):
        with pytest.raises(ValueError, match="20 shares between 0 and 1"):
            save(random_sae("gated", facts={"density": bad}), tmp_path)


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(SAVED),
    centred=st.booleans(),
    unit=st.booleans(),
    scale=st.sampled_from([1.0, 0.2, 7.0]),
    seed=st.integers(0, 1000),
)
def test_other_conventions_become_ours(
    tmp_path_factory: pytest.TempPathFactory, kind: str, centred: bool, unit: bool, scale: float, seed: int
) -> None:
    """Input not centred, decoder rows of any norm, trained on a multiple of x: in one file, all at once."""
    p = random_tensors(kind, 6, 20, seed, unit)
    norms = {"rescale_acts_by_decoder_norm": True} if kind == "topk" else {}
    how = "none" if scale == 1 else "expected_average_only_in"
    cfg = config(kind, p, apply_b_dec_to_input=centred, normalize_activations=how, **norms)
    folder = write(tmp_path_factory.mktemp("sae"), cfg, p)
    sae = load(folder, scale=None if scale == 1 else scale)
    assert (sae.W_dec.norm(dim=1) - 1).abs().max() < 1e-3
    x = inputs(6)
    f = encode(cfg, {n: v.astype(np.float64) for n, v in p.items()}, scale * x)
    in_units = f / scale * np.linalg.norm(p["W_dec"], axis=1)
    assert_same(sae, x, in_units, decode(p, f) / scale)


@pytest.mark.parametrize("kind", ["standard", "gated", "jumprelu"])
def test_decoder_rows_may_be_left_and_rows_of_zeros_are_silent(tmp_path: Path, kind: str) -> None:
    p = random_tensors(kind, 6, 20)
    p["W_dec"][4] = 0
    cfg = config(kind, p)
    x = inputs(6)
    f = encode(cfg, p, x)
    left = load(write(tmp_path, cfg, p), unit_norm=False)
    assert_same(left, x, f, decode(p, f))
    sae = load(tmp_path)
    assert torch.equal(sae.W_dec[4], torch.zeros(6))
    assert_same(sae, x, f * np.linalg.norm(p["W_dec"], axis=1), decode(p, f))


def test_topk_is_never_folded_where_that_changes_the_choice(tmp_path: Path) -> None:
    p, x = random_tensors("topk", 6, 20), inputs(6)
    cfg = config("topk", p)
    with pytest.raises(ValueError, match=r"norm 0\.\d+ to \d\.\d+: to make them unit would change .*unit_norm=False"):
        load(write(tmp_path, cfg, p))
    f = encode(cfg, p, x)
    assert_same(load(tmp_path, unit_norm=False), x, f, decode(p, f))
    by_norm = config("topk", p, rescale_acts_by_decoder_norm=True)
    g = encode(by_norm, p, x)
    assert ((f > 0) != (g > 0)).any()
    norm = np.linalg.norm(p["W_dec"], axis=1)
    for unit_norm in (True, False):
        assert_same(load(write(tmp_path, by_norm, p), unit_norm=unit_norm), x, g * norm, decode(p, g))


def test_a_threshold_that_is_not_positive_is_that_of_the_relu(tmp_path: Path) -> None:
    p = random_tensors("jumprelu", 6, 20)
    p["threshold"][:5] = [0, -1, -0.5, 0, -2]
    cfg, x = config("jumprelu", p), inputs(6)
    f = encode(cfg, p, x)
    assert_same(load(write(tmp_path, cfg, p)), x, f * np.linalg.norm(p["W_dec"], axis=1), decode(p, f))


def test_configs_before_version_6(tmp_path: Path) -> None:
    p, x = random_tensors("standard", 6, 20), inputs(6)
    flat = {
        "hook_point": "blocks.8.hook_resid_pre",
        "hook_point_layer": 8,
        "d_in": 6,
        "d_sae": 20,
        "activation_fn_str": "relu",
        "model_name": "gpt2-small",
        "context_size": 128,
        "dataset_path": "Skylion007/openwebtext",
        "normalize_activations": False,
        "dtype": "torch.float32",
        "device": "mps",
        "sae_lens_training_version": None,
    }
    sae = load(write(tmp_path, flat, p | {"scaling_factor": np.ones(20, np.float32)}))
    assert (sae.kind, sae.hook) == ("standard", "blocks.8.hook_resid_pre")
    assert (sae.facts["model_name"], sae.facts["context_size"]) == ("gpt2-small", 128)
    f = encode(config("standard", p), p, x)
    assert_same(sae, x, f * np.linalg.norm(p["W_dec"], axis=1), decode(p, f))

    unit = random_tensors("topk", 6, 20, unit=True)
    newer = flat | {"hook_name": "hook_embed", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}}
    del newer["hook_point"]
    sae = load(write(tmp_path, newer, unit))
    assert (sae.kind, sae.k, sae.hook) == ("topk", K, "hook_embed")
    with pytest.raises(ValueError, match="fine-tuned scaling_factor"):
        load(write(tmp_path, flat, p | {"scaling_factor": np.full(20, 1.1, np.float32)}))
    with pytest.raises(ValueError, match="activation function 'tanh-relu'"):
        load(write(tmp_path, flat | {"activation_fn_str": "tanh-relu"}, p))
    with pytest.raises(ValueError, match="multiple of the activations that is not in the file"):
        load(write(tmp_path, flat | {"normalize_activations": True}, p))


def test_scales_of_activations(tmp_path: Path) -> None:
    p, x = random_tensors("gated", 6, 20, unit=True), inputs(6)
    cfg = config("gated", p, normalize_activations="expected_average_only_in")
    with pytest.raises(ValueError, match=r"pass scale="):
        load(write(tmp_path, cfg, p))
    (tmp_path / "activation_scaler.json").write_text('{"scaling_factor": 0.5}')
    f = encode(cfg, p, x / 2)
    assert_same(load(tmp_path), x, 2 * f, 2 * decode(p, f))
    f = encode(cfg, p, x * 3)
    assert_same(load(tmp_path, scale=3), x, f / 3, decode(p, f) / 3)
    for bad in (0, -1, float("nan"), float("inf"), "2"):
        with pytest.raises(ValueError, match="scale must be a positive number"):
            load(tmp_path, scale=bad)  # type: ignore[arg-type]
    for how in ("layer_norm", "constant_norm_rescale", "covariance_whitening"):
        with pytest.raises(ValueError, match=f"normalised by '{how}', which no weights can"):
            load(write(tmp_path, cfg | {"normalize_activations": how}, p))


GEMMA = "gemma-scope-2b-pt-{}/layer_12/width_16k/average_l0_82"


@pytest.mark.parametrize("keys", ["W_", "w_"])
def test_gemma_scope_folding(tmp_path: Path, keys: str) -> None:
    """The published parameters are what training with a scale and a pre-bias gives (arXiv:2408.05147, appendix B)."""
    p, c, x = random_tensors("jumprelu", 6, 20, unit=True), 3.7, inputs(6) * 3
    trained = encode(config("jumprelu", p), p, x / c)
    released = p | {
        "b_enc": c * p["b_enc"] - c * p["b_dec"] @ p["W_enc"],
        "b_dec": c * p["b_dec"],
        "threshold": c * p["threshold"],
    }
    path = tmp_path / GEMMA.format("res") / "params.npz"
    path.parent.mkdir(parents=True)
    np.savez(path, **{n.replace("W_", keys): v.astype(np.float32) for n, v in released.items()})
    for source in (path, path.parent, str(path)):
        sae = load(source)
        assert_same(sae, x, c * trained, c * decode(p, trained), tolerance=1e-5)
        assert (sae.kind, sae.hook, sae.facts["model_name"]) == ("jumprelu", "blocks.12.hook_resid_post", "gemma-2-2b")
    torch.testing.assert_close(sae.params["b_enc"].numpy(), c * p["b_enc"], atol=1e-5, rtol=0)
    assert load(path, hook="blocks.3.hook_mlp_out").hook == "blocks.3.hook_mlp_out"


def test_gemma_scope_places(tmp_path: Path) -> None:
    p = random_tensors("jumprelu", 16, 40, unit=True)

    def put(name: str) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        np.savez(folder / "params.npz", **p)
        return folder

    assert load(put(GEMMA.format("att"))).hook == "blocks.12.attn.hook_z"
    assert load(put(GEMMA.format("mlp"))).hook == "blocks.12.hook_mlp_out"
    chat = load(put("layer_3/models--google--gemma-scope-9b-it-res/snapshots/1f/layer_9/width_16k/average_l0_88"))
    assert (chat.hook, chat.facts["model_name"]) == ("blocks.9.hook_resid_post", "gemma-2-9b-it")
    assert load(put("elsewhere")).hook == ""
    with pytest.raises(ValueError, match="is a transcoder"):
        load(put(GEMMA.format("transcoders")))
    # trained on embeddings without the factor √d_model = 4
    x = inputs(16)
    f = encode(config("jumprelu", p, apply_b_dec_to_input=False), p, x / 4)
    sae = load(put("gemma-scope-2b-pt-res/embedding/width_4k/average_l0_6"))
    assert sae.hook == "hook_embed"
    assert_same(sae, x, 4 * f, 4 * decode(p, f))


def run(folder: Path, p: Arrays, **rest: Any) -> Path:
    """An attention-output SAE as its authors keep it."""
    folder.mkdir(parents=True, exist_ok=True)
    cfg = {"act_size": 6, "dict_size": 20, "act_name": "blocks.5.attn.hook_z", "model_name": "gpt2-small"}
    name = "gpt2-small_L5_Hcat_z_lr1.20e-03_l11.00e+00_v9"
    torch.save({n: torch.from_numpy(v) for n, v in p.items()}, folder / f"{name}.pt")
    (folder / f"{name}_cfg.json").write_text(json.dumps(cfg | {"seq_len": 128, "head": "cat"} | rest))
    return folder / f"{name}.pt"


def test_attention_output_saes(tmp_path: Path) -> None:
    p, x = random_tensors("standard", 6, 20), inputs(6)
    sae = load(run(tmp_path, p))
    assert (sae.kind, sae.hook) == ("standard", "blocks.5.attn.hook_z")
    assert (sae.facts["model_name"], sae.facts["context_size"]) == ("gpt2-small", 128)
    f = encode(config("standard", p), p, x)
    assert_same(sae, x, f * np.linalg.norm(p["W_dec"], axis=1), decode(p, f))
    with pytest.raises(ValueError, match=r"act_size .* must be a positive whole number, got 'six'"):
        load(run(tmp_path, p, act_size="six"))


def dictionary(folder: Path, name: str, p: Arrays, **rest: Any) -> Path:
    """A folder as dictionary_learning's `trainSAE` leaves it."""
    state: dict[str, Any] = {n: torch.from_numpy(v) for n, v in p.items()}
    if name != "JumpReluAutoEncoder":
        state["encoder.weight"], state["decoder.weight"] = state.pop("W_enc").T, state.pop("W_dec").T
        names = {"AutoEncoder": "bias", "AutoEncoderNew": "decoder.bias", "GatedAutoEncoder": "decoder_bias"}
        state[names.get(name, "b_dec")] = state.pop("b_dec")
        for theirs, ours in (("encoder.bias", "b_enc"), ("gate_bias", "b_gate"), ("mag_bias", "b_mag")):
            if ours in state:
                state[theirs] = state.pop(ours)
    if "TopK" in name:
        state |= {"k": torch.tensor(K, dtype=torch.int), "threshold": torch.tensor(0.7)}
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state, folder / "ae.pt")
    trainer = {"dict_class": name, "activation_dim": 6, "dict_size": 20, "lm_name": "EleutherAI/pythia-70m-deduped"}
    (folder / "config.json").write_text(json.dumps({"trainer": trainer | rest, "buffer": {"ctx_len": 128}}))
    return folder


@pytest.mark.parametrize(
    ("name", "kind", "centred", "unit"),
    [
        ("AutoEncoder", "standard", True, False),
        ("AutoEncoderNew", "standard", False, False),
        ("GatedAutoEncoder", "gated", True, False),
        ("JumpReluAutoEncoder", "jumprelu", False, False),
        ("AutoEncoderTopK", "topk", True, True),
        ("BatchTopKSAE", "jumprelu", True, False),
    ],
)
def test_dictionary_learning(tmp_path: Path, name: str, kind: str, centred: bool, unit: bool) -> None:
    p, x = random_tensors(kind, 6, 20, unit=unit), inputs(6)
    stored = dict(p)
    if name == "BatchTopKSAE":
        stored.pop("threshold")
        p["threshold"] = np.full(20, 0.7, np.float32)
    folder = dictionary(tmp_path, name, stored)
    f = encode(config(kind, p, apply_b_dec_to_input=centred), p, x)
    for source in (folder, folder / "ae.pt"):
        sae = load(source, hook="blocks.3.hook_resid_post")
        assert (sae.kind, sae.hook) == (kind, "blocks.3.hook_resid_post")
        assert sae.facts["model_name"] == "EleutherAI/pythia-70m-deduped"
        assert_same(sae, x, f * np.linalg.norm(p["W_dec"], axis=1), decode(p, f))


def test_dictionary_learning_errors(tmp_path: Path) -> None:
    p = random_tensors("standard", 6, 20)
    with pytest.raises(ValueError, match="of the class 'IdentityDict'; known: AutoEncoder, "):
        load(dictionary(tmp_path / "1", "AutoEncoder", p, dict_class="IdentityDict"))
    with pytest.raises(ValueError, match=r"lacks b_dec of a standard SAE"):
        load(dictionary(tmp_path / "2", "AutoEncoderNew", p, dict_class="AutoEncoder"))
    with pytest.raises(ValueError, match=r"W_enc in .* must have shape \(5, 20\), got \(6, 20\)"):
        load(dictionary(tmp_path / "3", "AutoEncoder", p, activation_dim=5))
    folder = dictionary(tmp_path / "4", "AutoEncoder", p)
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"no config\.json in .*incomplete"):
        load(folder)


SPARSIFY = {
    "activation": "topk",
    "expansion_factor": 32,
    "normalize_decoder": True,
    "num_latents": 20,
    "k": K,
    "multi_topk": False,
    "skip_connection": False,
    "transcode": False,
    "d_in": 6,
}


def sparsified(folder: Path, p: Arrays, **rest: Any) -> Path:
    """A folder as sparsify's `save_to_disk` leaves it, byte by byte: a header, then the tensors one after the other."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cfg.json").write_text(json.dumps(SPARSIFY | rest))
    tensors = {"W_dec": p["W_dec"], "b_dec": p["b_dec"], "encoder.bias": p["b_enc"], "encoder.weight": p["W_enc"].T}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, value in tensors.items():
        new = np.ascontiguousarray(value, "<f4").tobytes()
        header[name] = {"dtype": "F32", "shape": list(value.shape), "data_offsets": [len(data), len(data) + len(new)]}
        data += new
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    (folder / "sae.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    return folder


def test_sparsify(tmp_path: Path) -> None:
    p, x = random_tensors("topk", 6, 20, unit=True), inputs(6)
    folder = sparsified(tmp_path / "layers.5", p)
    p64 = {name: value.astype(np.float64) for name, value in p.items()}
    # Its `encode`: relu(encoder(x - b_dec)), of which the k largest are kept.
    f = largest(np.maximum((x - p64["b_dec"]) @ p64["W_enc"] + p64["b_enc"], 0), K)
    for source in (folder, folder / "sae.safetensors", folder / "cfg.json"):
        sae = load(source, hook="blocks.5.hook_resid_post")
        assert (sae.kind, sae.k, sae.d_in, sae.d_sae, sae.hook) == ("topk", K, 6, 20, "blocks.5.hook_resid_post")
        assert_same(sae, x, f, decode(p64, f), tolerance=1e-6)
        assert torch.equal(sae.W_enc, torch.from_numpy(p["W_enc"]))
        assert sae.facts["config"]["multi_topk"] is False
    by_factor = random_tensors("topk", 6, 24, unit=True)
    older = {"num_latents": 0, "expansion_factor": 4, "signed": False}
    assert load(sparsified(tmp_path / "older", by_factor, **older)).d_sae == 24


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"transcode": True}, "EleutherAI's sparsify with transcode = True, no plain TopK: it reads one"),
        ({"skip_connection": True}, "with skip_connection = True"),
        ({"embed_skip": True}, "with embed_skip = True"),
        ({"gram_lookup": True}, "with gram_lookup = True"),
        ({"signed": True}, "with signed = True"),
        ({"activation": "groupmax"}, "with activation = 'groupmax'"),
        ({"k": None}, "must say how many latents are active"),
        ({"d_in": "six"}, "d_in in the config of .* must be a positive whole number"),
        ({"num_latents": 40}, r"W_enc in .* must have shape \(6, 40\), got \(6, 20\)"),
    ],
)
def test_what_sparsify_has_beside_plain_saes(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        load(sparsified(tmp_path, random_tensors("topk", 6, 20, unit=True), **change))


class Trap:
    """What a pickle can hide: it runs a function when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_no_code_from_a_file_is_executed(tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    p = random_tensors("standard", 6, 20)
    path = run(tmp_path, p)
    torch.save({"W_enc": torch.zeros(2), "trap": Trap(sprung)}, path)
    with pytest.raises(ValueError, match=r"more than tensors.*a pickle can run any code"):
        load(path)
    path.write_bytes(pickle.dumps(Trap(sprung)))
    with pytest.raises(ValueError, match="more than tensors"):
        load(path)
    arrays = tmp_path / "params.npz"
    np.savez(arrays, W_enc=np.array([Trap(sprung)], dtype=object))
    with pytest.raises(ValueError, match="not an npz file of plain arrays"):
        load(arrays)
    arrays.write_bytes(pickle.dumps(Trap(sprung)))
    with pytest.raises(ValueError, match="not an npz file of plain arrays"):
        load(arrays)
    assert not sprung.exists()
    pickle.loads(pickle.dumps(Trap(sprung)))
    assert sprung.exists()
    torch.save([torch.zeros(2)], path)
    with pytest.raises(ValueError, match="must hold a state_dict"):
        load(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"W_dec": None}, r"lacks W_dec of a jumprelu SAE; it has W_enc, "),
        ({"threshold": None, "b_enc": None}, "lacks b_enc, threshold of a jumprelu SAE"),
        ({"r_mag": np.zeros(20, np.float32)}, "no use for: r_mag"),
        ({"W_enc": lambda v: v.T}, r"W_enc in .* must have shape \(6, 20\), got \(20, 6\); it is transposed"),
        ({"W_dec": lambda v: v.T}, r"W_dec in .* must have shape \(20, 6\), got \(6, 20\); it is transposed"),
        ({"b_enc": lambda v: v[:5]}, r"b_enc in .* must have shape \(20,\), got \(5,\)$"),
        ({"W_enc": lambda v: v.astype(np.int32)}, r"W_enc in .* must be floating point, got torch\.int32"),
        ({"b_dec": lambda v: v * np.nan}, "b_dec in .* contains NaN or infinity"),
        ({"threshold": lambda v: v + np.inf}, "threshold in .* contains NaN or infinity"),
    ],
)
def test_bad_tensors(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    p = random_tensors("jumprelu", 6, 20)
    cfg = config("jumprelu", p)
    for name, new in change.items():
        if new is None:
            del p[name]
        else:
            p[name] = new(p[name]) if callable(new) else new
    with pytest.raises(ValueError, match=words):
        load(write(tmp_path, cfg, p))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"architecture": "transcoder"}, "is a transcoder, and no SAE: it reads one place"),
        ({"architecture": "jumprelu_skip_transcoder"}, "and no SAE"),
        ({"architecture": "matryoshka_batchtopk"}, "save_inference_model"),
        ({"architecture": "temporal"}, "unknown architecture 'temporal'; known: standard, gated, jumprelu, topk"),
        ({"architecture": "topk"}, "must say how many latents are active: k is None"),
        ({"architecture": "topk", "k": 2.5}, r"k is 2\.5"),
        ({"architecture": "topk", "k": 21}, r"k must lie in 1\.\.20, not 21"),
        ({"d_in": None}, "d_in in the config of .* got None"),
        ({"d_sae": 40}, r"must have shape \(6, 40\), got \(6, 20\)"),
        ({"metadata": [1]}, r"metadata in the config of .* must be a JSON object, got \[1\]"),
        ({"metadata": {"sha256": "00"}}, "not the file that cfg.json was written with"),
    ],
)
def test_bad_configs(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    p = random_tensors("standard", 6, 20, unit=True)
    with pytest.raises(ValueError, match=words):
        load(write(tmp_path, config("standard", p) | change, p))


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_files_cut_anywhere(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("sae")
    p = random_tensors("jumprelu", 6, 20)
    np.savez(folder / "params.npz", **p)
    standard = {n: v for n, v in p.items() if n != "threshold"}
    paths = {
        "cfg.json": save(random_sae("gated", facts={"density": [0.5] * 20}), folder / "1"),
        "sae_weights.safetensors": folder / "1",
        "sparsity.safetensors": folder / "1",
        "params.npz": folder,
        "config.json": dictionary(folder / "2", "AutoEncoder", standard),
        "ae.pt": folder / "2",
    }
    name = data.draw(st.sampled_from(sorted(paths)))
    path = paths[name] / name
    load(paths[name] if name != "params.npz" else path)
    whole = path.read_bytes()
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole.rstrip()) - 1))])
    with pytest.raises(ValueError, match=r"truncated or not|more than tensors, or is damaged"):
        load(paths[name] if name != "params.npz" else path)
    path.unlink()
    if name != "sparsity.safetensors":
        with pytest.raises(ValueError, match=r"no SAE in|incomplete|no file or folder"):
            load(paths[name] if name != "params.npz" else path)


def test_sources_that_are_no_sae(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ValueError, match=r"no SAE in .*: expected one of cfg\.json, .*, found model\.safetensors"):
        load(tmp_path)
    with pytest.raises(ValueError, match="no SAE that is known here"):
        load(tmp_path / "model.safetensors")
    for missing in ("nowhere", "gpt2", "owner/name", tmp_path / "nowhere", "a/b/c:d"):
        with pytest.raises(ValueError, match=r"no file or folder .*; give one, or a hub id"):
            load(missing)
    (tmp_path / "cfg.json").write_text("[]")
    with pytest.raises(ValueError, match="must hold a JSON object, got a list"):
        load(tmp_path)
    sae = random_sae("standard", facts={"density": [0.5] * 20})
    save(sae, tmp_path)
    safetensors.numpy.save_file({"sparsity": np.zeros(3)}, tmp_path / "sparsity.safetensors")
    with pytest.raises(ValueError, match="must hold the tensor 'sparsity' of 20 numbers"):
        load(tmp_path)


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    sae = random_sae("standard")
    batch = SAE("batchtopk", initial("batchtopk", 4, 8, seed=0), k=2)
    with pytest.raises(ValueError, match="make it a jumprelu"):
        save(batch, tmp_path / "new")
    with pytest.raises(ValueError, match="dtype must be"):
        save(sae, tmp_path / "new", dtype=torch.bfloat16)
    for fact in (torch.ones(3), float("nan"), {1, 2}):
        with pytest.raises(ValueError, match="facts must be what JSON can hold"):
            save(random_sae("standard", facts={"x": fact}), tmp_path / "new")
    broken = SAE("standard", sae.params | {"b_enc": sae.params["b_enc"] * float("nan")})
    with pytest.raises(ValueError, match="b_enc contains NaN"):
        save(broken, tmp_path / "new")
    large = SAE("standard", sae.params | {"W_enc": sae.W_enc * 1e6})
    with pytest.raises(ValueError, match=r"W_enc contains .* too large for torch\.float16"):
        save(large, tmp_path / "new", dtype=torch.float16)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("writes", [0, 1, 2])
def test_a_full_disk_leaves_the_old_sae(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int) -> None:
    """Whichever of the three files is the one that does not fit."""
    density = {"density": [0.5] * 20}
    save(random_sae("gated", seed=1, facts=density), tmp_path)
    old = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    done: list[int] = []

    def full(descriptor: int) -> None:
        done.append(descriptor)
        if len(done) > writes:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save(random_sae("gated", seed=2, facts=density), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == old


HUB = "owner/saes:layer_12/width_16k/average_l0_82"


def fake_hub(
    monkeypatch: pytest.MonkeyPatch, root: Path, *, cached: bool = True, answer: Exception | None = None
) -> list[dict[str, Any]]:
    """A hub whose snapshot lies in `root`; returns what is asked of it."""
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    asked: list[dict[str, Any]] = []

    def snapshot_download(repo: str, **rest: Any) -> str:
        asked.append({"repo": repo} | rest)
        if rest["local_files_only"] and not cached:
            raise LocalEntryNotFoundError("not cached")
        if not rest["local_files_only"] and answer is not None:
            raise answer
        return str(root)

    def list_repo_files(repo: str, **rest: Any) -> list[str]:
        if answer is not None:
            raise answer
        return ["README.md", "layer_12/width_16k/average_l0_22/params.npz", "runs/a.pt", "layer_3/cfg.json"]

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(huggingface_hub, "list_repo_files", list_repo_files)
    return asked


@pytest.mark.parametrize("cached", [True, False])
def test_hub_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cached: bool) -> None:
    asked = fake_hub(monkeypatch, tmp_path, cached=cached)
    folder = tmp_path / "layer_12" / "width_16k" / "average_l0_82"
    folder.mkdir(parents=True)
    np.savez(folder / "params.npz", **random_tensors("jumprelu", 6, 20))
    source = "google/gemma-scope-2b-pt-mlp:layer_12/width_16k/average_l0_82"
    for name in (source, f"{source}/params.npz"):
        sae = load(name, revision="main")
        assert (sae.hook, sae.facts["source"]) == ("blocks.12.hook_mlp_out", name)
    assert [a["local_files_only"] for a in asked] == ([True] * 2 if cached else [True, False] * 2)
    assert all(a["repo"] == "google/gemma-scope-2b-pt-mlp" and a["revision"] == "main" for a in asked)
    assert f"{source.split(':')[1]}/params.npz" in asked[0]["allow_patterns"]
    assert asked[-1]["allow_patterns"][0] == f"{source.split(':')[1]}/params.npz"
    save(random_sae("topk"), tmp_path)
    assert load("owner/saes:").kind == "topk"
    path = run(tmp_path / "runs", random_tensors("standard", 6, 20))
    assert load(f"owner/saes:runs/{path.name}").hook == "blocks.5.attn.hook_z"
    assert f"runs/{path.stem}_cfg.json" in asked[-1]["allow_patterns"]


def test_a_cached_snapshot_without_the_weights_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = fake_hub(monkeypatch, tmp_path)
    save(random_sae("gated"), tmp_path / "a")
    (tmp_path / "a" / "sae_weights.safetensors").unlink()
    with pytest.raises(ValueError, match=r"no SAE at 'a'; near it are .*runs/a\.pt"):
        load("owner/saes:a")
    assert [a["local_files_only"] for a in asked] == [True, False]


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        ("GatedRepoError", ValueError, "owner/saes is a gated.*hf auth login"),
        ("RepositoryNotFoundError", ValueError, "unknown repository 'owner/saes'"),
        ("RevisionNotFoundError", ValueError, "owner/saes has no revision 'old'"),
        ("HfHubHTTPError", ConnectionError, "Three ways out: connect once.*local folder.*train one"),
        ("OfflineModeIsEnabled", ConnectionError, "Three ways out"),
    ],
)
def test_answers_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, error: type[Exception], words: str
) -> None:
    import httpx
    from huggingface_hub import errors

    kind = getattr(errors, answer)
    web = issubclass(kind, errors.HfHubHTTPError)
    response = httpx.Response(404, request=httpx.Request("GET", "https://huggingface.co"))
    fake_hub(monkeypatch, tmp_path, cached=False, answer=kind(answer, response=response) if web else kind(answer))
    with pytest.raises(error, match=words):
        load(HUB, revision="old")


def test_without_network_and_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's own answer in offline mode, in which all tests run."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match=r"'mechinterp-tests/not-there' is not in the local cache"):
        load("mechinterp-tests/not-there:a")
