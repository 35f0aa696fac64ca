"""Run by SAELens' own interpreter, see `test_sae_lens.py`: it reads what we wrote and writes what we shall read.

    python sae_lens_peer.py FOLDER

Every folder in FOLDER/ours is loaded and run on the tensor "x" of FOLDER/x.safetensors; its latents and reconstruction
go to "f" and "out" in its peer.safetensors. Then SAEs of every kind are written to FOLDER/theirs with theirs beside
them, latents times the norm of their decoder rows.
"""

import sys
import warnings
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

warnings.simplefilter("ignore")
from sae_lens import (  # noqa: E402
    SAE,
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    GatedSAE,
    GatedSAEConfig,
    GatedTrainingSAE,
    GatedTrainingSAEConfig,
    JumpReLUSAE,
    JumpReLUSAEConfig,
    JumpReLUTrainingSAE,
    JumpReLUTrainingSAEConfig,
    JumpReLUTranscoder,
    JumpReLUTranscoderConfig,
    MatryoshkaBatchTopKTrainingSAE,
    MatryoshkaBatchTopKTrainingSAEConfig,
    SkipTranscoder,
    SkipTranscoderConfig,
    StandardSAE,
    StandardSAEConfig,
    StandardTrainingSAE,
    StandardTrainingSAEConfig,
    TopKSAE,
    TopKSAEConfig,
    TopKTrainingSAE,
    TopKTrainingSAEConfig,
    Transcoder,
    TranscoderConfig,
)

K, D_HEAD = 3, 4
KINDS = {
    "standard": (StandardSAE, StandardSAEConfig, StandardTrainingSAE, StandardTrainingSAEConfig),
    "gated": (GatedSAE, GatedSAEConfig, GatedTrainingSAE, GatedTrainingSAEConfig),
    "jumprelu": (JumpReLUSAE, JumpReLUSAEConfig, JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig),
    "topk": (TopKSAE, TopKSAEConfig, TopKTrainingSAE, TopKTrainingSAEConfig),
    "batchtopk": (None, None, BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig),
    "matryoshka": (None, None, MatryoshkaBatchTopKTrainingSAE, MatryoshkaBatchTopKTrainingSAEConfig),
}
TRANSCODERS = {
    "transcoder": (Transcoder, TranscoderConfig),
    "transcoder-skip": (SkipTranscoder, SkipTranscoderConfig),
    "transcoder-jumprelu": (JumpReLUTranscoder, JumpReLUTranscoderConfig),
}


@torch.no_grad()
def run(folder: Path, x: torch.Tensor, *, in_units: bool) -> None:
    sae = SAE.load_from_disk(folder, dtype="float64")
    x = x.double()
    if sae.cfg.reshape_activations == "hook_z":
        x = x.unflatten(-1, (-1, D_HEAD))
    f = sae.encode(x)
    out = sae.decode(f).reshape(len(x), -1)
    assert torch.allclose(out, sae(x).reshape(len(x), -1))
    if in_units and not getattr(sae.cfg, "rescale_acts_by_decoder_norm", False):
        f = f * sae.W_dec.norm(dim=1)
    assert not (sae.cfg.reshape_activations == "hook_z" and x.ndim == 2)
    save_file({"f": f, "out": out}, folder / "peer.safetensors")


@torch.no_grad()
def scramble(sae: torch.nn.Module, seed: int) -> None:
    """Weights of order one, everywhere; decoder rows of different norms."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in sae.named_parameters():
        if name == "threshold":
            value.copy_(torch.rand(value.shape, generator=generator) + 0.01)
        else:
            value.copy_(torch.randn(value.shape, generator=generator) / value.shape[0] ** (0.5 * (value.ndim - 1)))
    if isinstance(sae, BatchTopKTrainingSAE):
        sae.topk_threshold.fill_(0.6)


def write(folder: Path, d_in: int, d_sae: int) -> None:
    for seed, (kind, (cls, cfg, train_cls, train_cfg)) in enumerate(KINDS.items()):
        k = {"k": K} if "topk" in kind or kind == "matryoshka" else {}
        k |= {"matryoshka_widths": [d_sae // 2, d_sae]} if kind == "matryoshka" else {}
        for centred in (True, False):
            name = f"{kind}{'' if centred else '-uncentred'}"
            if cls is not None:
                sae = cls(cfg(d_in=d_in, d_sae=d_sae, apply_b_dec_to_input=centred, **k))
                sae.cfg.metadata.hook_name = "blocks.3.hook_mlp_out"
                scramble(sae, seed)
                if kind == "topk":
                    sae.W_dec.data /= sae.W_dec.data.norm(dim=1, keepdim=True)
                sae.save_model(folder / name)
            train = train_cls(train_cfg(d_in=d_in, d_sae=d_sae, apply_b_dec_to_input=centred, **k))
            scramble(train, seed)
            train.save_inference_model(folder / f"{name}-trained")
            train.save_model(folder / f"{name}-checkpoint")
    x = load_file(folder.parent / "x.safetensors")["x"].double()
    for seed, (name, (cls, cfg)) in enumerate(TRANSCODERS.items()):
        transcoder = cls(cfg(d_in=d_in, d_out=5, d_sae=d_sae, apply_b_dec_to_input=False, dtype="float64"))
        scramble(transcoder, seed)
        transcoder.cfg.metadata.hook_name, transcoder.cfg.metadata.hook_name_out = "reads", "predicts"
        transcoder.save_model(folder / name)
        save_file({"f": transcoder.encode(x), "out": transcoder(x)}, folder / name / "peer.safetensors")


def main() -> None:
    root = Path(sys.argv[1])
    x = load_file(root / "x.safetensors")["x"]
    for folder in sorted((root / "ours").iterdir()):
        run(folder, x, in_units=False)
    write(root / "theirs", x.shape[1], 20)
    for folder in sorted((root / "theirs").iterdir()):
        if not folder.name.startswith(("transcoder", "batchtopk", "matryoshka")) or folder.name.endswith("-trained"):
            run(folder, x, in_units=True)


if __name__ == "__main__":
    main()
