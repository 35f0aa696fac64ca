"""Newer formats, written here byte for byte as their libraries lay them out, against their definitions in numpy."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch

from mechinterp.sae import SAE
from mechinterp.sae.files import load, load_transcoder
from mechinterp.sae.transcoders import Transcoder

D_IN, D_SAE, D_OUT, K = 6, 20, 5, 3
Arrays = dict[str, np.ndarray]


def tensors(seed: int = 0, d_out: int = D_IN) -> Arrays:
    rng = np.random.default_rng(seed)
    p = {"W_enc": rng.normal(size=(D_IN, D_SAE)) / D_IN**0.5, "b_enc": rng.normal(size=D_SAE) / 2}
    p |= {"W_dec": rng.normal(size=(D_SAE, d_out)), "b_dec": rng.normal(size=d_out)}
    return {n: v.astype(np.float32) for n, v in (p | {"threshold": rng.uniform(0.01, 1, D_SAE)}).items()}


def write(path: Path, arrays: Arrays) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    found = {n: np.ascontiguousarray(v) for n, v in arrays.items()}
    if path.suffix == ".npz":
        np.savez(path, **found)
    else:
        safetensors.numpy.save_file(found, path)
    return path


def put(path: Path, facts: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(facts))


X = np.random.default_rng(1).normal(size=(500, D_IN)).astype(np.float32)


def jump(pre: np.ndarray, threshold: np.ndarray | float) -> np.ndarray:
    return np.maximum(pre, 0) * (pre > threshold)


def close(sae: SAE | Transcoder, out: np.ndarray, f: np.ndarray, units: np.ndarray | float = 1.0) -> None:
    x = torch.from_numpy(X)
    torch.testing.assert_close(sae(x), torch.from_numpy(out).float(), atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(sae.encode(x), torch.from_numpy(f * units).float(), atol=2e-4, rtol=1e-4)
    assert (f > 0).any()
    assert (f == 0).any()


@pytest.mark.parametrize(
    ("site", "hook"),
    [("resid_post", "hook_resid_post"), ("attn_out_all", "attn.hook_z"), ("mlp_out", "hook_mlp_out")],
)
def test_gemma_scope_2(tmp_path: Path, site: str, hook: str) -> None:
    p = tensors()
    folder = tmp_path / "gemma-scope-2-270m-pt" / site / "layer_12_width_16k_l0_small"
    path = write(folder / "params.safetensors", {n.replace("W_", "w_"): v for n, v in p.items()})
    f = jump(X @ p["W_enc"] + p["b_enc"], p["threshold"])
    for source in (folder, path):
        sae = load(source)
        assert (sae.kind, sae.hook, sae.facts["model_name"]) == ("jumprelu", f"blocks.12.{hook}", "gemma-3-270m-pt")
        close(sae, f @ p["W_dec"] + p["b_dec"], f, np.linalg.norm(p["W_dec"], axis=1))


@pytest.mark.parametrize("affine", [False, True])
def test_gemma_scope_2_transcoders(tmp_path: Path, affine: bool) -> None:
    p = tensors(d_out=D_OUT)
    skip = np.random.default_rng(3).normal(size=(D_IN, D_OUT)).astype(np.float32)
    stored = {n.replace("W_", "w_"): v for n, v in p.items()} | ({"affine_skip_connection": skip} if affine else {})
    folder = tmp_path / "gemma-scope-2-1b-it" / "transcoder_all" / f"layer_3_width_16k_l0_big{'_affine' * affine}"
    write(folder / "params.safetensors", stored)
    found = load_transcoder(folder)
    assert (found.reads, found.predicts) == ("blocks.3.ln2.hook_normalized", "blocks.3.hook_mlp_out")
    assert (found.W_skip is not None) == affine
    f = jump(X @ p["W_enc"] + p["b_enc"], p["threshold"])
    close(found, f @ p["W_dec"] + p["b_dec"] + (X @ skip if affine else 0), f)
    with pytest.raises(ValueError, match=r"is a transcoder, and no SAE: it reads one place of the model"):
        load(folder)


def test_gemma_scope_transcoders(tmp_path: Path) -> None:
    p = tensors()
    folder = tmp_path / "gemma-scope-2b-pt-transcoders" / "layer_7" / "width_16k" / "average_l0_20"
    write(folder / "params.npz", p)
    found = load_transcoder(folder)
    assert found.reads == "blocks.7.ln2.hook_normalized"
    f = jump(X @ p["W_enc"] + p["b_enc"], p["threshold"])
    close(found, f @ p["W_dec"] + p["b_dec"], f)
    with pytest.raises(ValueError, match="and no SAE"):
        load(folder)


def test_cross_layer_transcoders_are_refused(tmp_path: Path) -> None:
    p = tensors() | {"W_dec": np.zeros((D_SAE, 4, D_IN), np.float32)}
    with pytest.raises(ValueError, match="cross-layer transcoder"):
        load_transcoder(write(tmp_path / "clt" / "params.safetensors", p))


def llama(folder: Path, p: Arrays, **change: Any) -> Path:
    facts = {"d_model": D_IN, "d_sae": D_SAE, "act_fn": "jumprelu", "jump_relu_threshold": 0.4, "norm_activation": "x"}
    facts |= {"hook_point_in": "blocks.4.hook_resid_post", "hook_point_out": "blocks.4.hook_resid_post"}
    facts |= {"dataset_average_activation_norm": {"in": 3.5, "out": 3.5}}
    put(folder / "hyperparams.json", facts | change)
    names = {"encoder.weight": p["W_enc"].T, "encoder.bias": p["b_enc"]}
    names |= {"decoder.weight": p["W_dec"].T, "decoder.bias": p["b_dec"]}
    write(folder / "checkpoints" / "final.safetensors", names)
    return folder


def test_llama_scope(tmp_path: Path) -> None:
    p, s = tensors(), D_IN**0.5 / 3.5
    sae = load(llama(tmp_path / "L4R-8x", p))
    assert sae.hook == "blocks.4.hook_resid_post"
    f = jump(s * X @ p["W_enc"] + p["b_enc"], 0.4 * s)
    close(sae, (f @ p["W_dec"] + p["b_dec"]) / s, f, np.linalg.norm(p["W_dec"], axis=1) / s)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dataset_average_activation_norm": None}, "dataset_average_activation_norm.in .* must be a positive number"),
        ({"dataset_average_activation_norm": {"in": None}}, "its threshold is not known"),
        ({"jump_relu_threshold": -1}, "jump_relu_threshold .* must be a positive number, got -1"),
        ({"act_fn": "topk"}, "activation function 'topk'; only jumprelu"),
        ({"hook_point_out": "blocks.4.hook_mlp_out"}, "is a transcoder, and no SAE: it predicts blocks.4.hook_mlp_out"),
    ],
)
def test_llama_scope_with_facts_missing(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        load(llama(tmp_path / "x", tensors(), **change))


def sparsify(folder: Path, p: Arrays, **change: Any) -> Path:
    put(folder / "cfg.json", {"d_in": D_IN, "num_latents": D_SAE, "k": K, "activation": "topk"} | change)
    names = {"encoder.weight": p["W_enc"].T, "encoder.bias": p["b_enc"], "W_dec": p["W_dec"], "b_dec": p["b_dec"]}
    write(folder / "sae.safetensors", names | ({"W_skip": p["W_skip"]} if "W_skip" in p else {}))
    return folder


@pytest.mark.parametrize("skip", [False, True])
def test_sparsify_transcoders(tmp_path: Path, skip: bool) -> None:
    p = tensors()
    if skip:
        p["W_skip"] = np.random.default_rng(5).normal(size=(D_IN, D_IN)).astype(np.float32)  # [out in]
    folder = sparsify(tmp_path / "layers.5.mlp", p, transcode=True, skip_connection=skip)
    pre = np.maximum(X @ p["W_enc"] + p["b_enc"], 0)
    f = np.where(pre >= np.sort(pre, -1)[:, -K, None], pre, 0)
    out = f @ p["W_dec"] + p["b_dec"] + (X @ p["W_skip"].T if skip else 0)
    close(load_transcoder(folder), out, f)
    with pytest.raises(ValueError, match=r"(transcode|skip_connection) = True, no plain TopK: it reads one place"):
        load(folder)
    with pytest.raises(ValueError, match="is no transcoder: it reconstructs its own input"):
        load_transcoder(sparsify(tmp_path / "plain", tensors()))


def test_a_checkpoint_with_log_thresholds(tmp_path: Path) -> None:
    p = tensors()
    stored = {n: v for n, v in p.items() if n != "threshold"} | {"log_threshold": np.log(p["threshold"])}
    write(tmp_path / "sae_weights.safetensors", stored)
    put(tmp_path / "cfg.json", {"architecture": "jumprelu", "d_in": D_IN, "d_sae": D_SAE, "apply_b_dec_to_input": True})
    f = jump((X - p["b_dec"]) @ p["W_enc"] + p["b_enc"], p["threshold"])
    close(load(tmp_path), f @ p["W_dec"] + p["b_dec"], f, np.linalg.norm(p["W_dec"], axis=1))


@pytest.mark.parametrize("by_norm", [False, True])
@pytest.mark.parametrize("kind", ["batchtopk", "matryoshka_batchtopk"])
def test_checkpoints_whose_latents_depend_on_the_batch(tmp_path: Path, kind: str, by_norm: bool) -> None:
    p = tensors()
    stored = {n: v for n, v in p.items() if n != "threshold"} | {"topk_threshold": np.array(0.6, np.float64)}
    write(tmp_path / "sae_weights.safetensors", stored)
    facts = {"architecture": kind, "d_in": D_IN, "d_sae": D_SAE, "k": K, "apply_b_dec_to_input": False}
    put(tmp_path / "cfg.json", facts | {"matryoshka_widths": [5, 20], "rescale_acts_by_decoder_norm": by_norm})
    norm = np.linalg.norm(p["W_dec"], axis=1) if by_norm else 1.0
    f = jump((X @ p["W_enc"] + p["b_enc"]) * norm, 0.6) / norm
    close(load(tmp_path), f @ p["W_dec"] + p["b_dec"], f, np.linalg.norm(p["W_dec"], axis=1))
    write(tmp_path / "sae_weights.safetensors", stored | {"topk_threshold": np.array(0.0, np.float64)})
    with pytest.raises(ValueError, match="depend on the batch, without the threshold that training keeps"):
        load(tmp_path)


def test_matryoshka_of_dictionary_learning(tmp_path: Path) -> None:
    p = {n: torch.from_numpy(v) for n, v in tensors().items()}
    state = {n: v for n, v in p.items() if n != "threshold"}
    state |= {"k": torch.tensor(K), "threshold": torch.tensor(0.5), "group_sizes": torch.tensor([5, 15])}
    torch.save(state, tmp_path / "ae.pt")
    facts = {"dict_class": "MatryoshkaBatchTopKSAE", "activation_dim": D_IN, "dict_size": D_SAE, "k": K}
    put(tmp_path / "config.json", {"trainer": facts})
    q = {n: v.numpy() for n, v in p.items()}
    f = jump((X - q["b_dec"]) @ q["W_enc"] + q["b_enc"], 0.5)
    close(load(tmp_path), f @ q["W_dec"] + q["b_dec"], f, np.linalg.norm(q["W_dec"], axis=1))


def test_what_a_transcoder_refuses(tmp_path: Path) -> None:
    p = {n: torch.from_numpy(v) for n, v in tensors(d_out=D_OUT).items()}
    made = Transcoder("jumprelu", p, W_skip=torch.ones(D_IN, D_OUT))
    assert repr(made) == "Transcoder(jumprelu, 6 -> 20 -> 5, skip, ? to ?)"
    assert made.to(torch.float64)(torch.from_numpy(X).double()).dtype == torch.float64
    with pytest.raises(ValueError, match=r"decode\(f, x\) needs what it read"):
        made.decode(made.encode(torch.from_numpy(X)))
    with pytest.raises(ValueError, match="of width 6, got"):
        made.encode(torch.zeros(2, 5))
    with pytest.raises(ValueError, match=r"W_skip must have shape \(6, 5\), got \(5, 6\)"):
        Transcoder("jumprelu", p, W_skip=torch.ones(D_OUT, D_IN))
    with pytest.raises(ValueError, match="needs W_dec, W_enc, b_dec, b_enc, got"):
        Transcoder("standard", p)
    with pytest.raises(ValueError, match="must have shapes"):
        Transcoder("jumprelu", p | {"b_dec": torch.zeros(D_IN)})
    write(tmp_path / "a" / "sae_weights.safetensors", tensors())
    base = {"d_in": D_IN, "d_out": D_IN, "d_sae": D_SAE}
    for facts, words in (
        ({"architecture": "jumprelu"}, "architecture 'jumprelu'; known: transcoder"),
        ({"architecture": "jumprelu_transcoder", "apply_b_dec_to_input": True}, "would subtract b_dec from its input"),
        ({"architecture": "transcoder", "normalize_activations": "layer_norm"}, "wants activations normalised"),
        ({"architecture": "transcoder"}, "a standard transcoder needs"),
    ):
        put(tmp_path / "a" / "cfg.json", base | facts)
        with pytest.raises(ValueError, match=words):
            load_transcoder(tmp_path / "a")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="is no transcoder that is known here"):
        load_transcoder(tmp_path / "empty")
