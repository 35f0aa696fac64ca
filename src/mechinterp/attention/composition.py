"""Composition between heads, from weights alone (Elhage et al., 2021).

A head writes `W_V W_O` and reads through `W_Q`, `W_K` or `W_V`. How much of what one writes lies where the
other reads is the Frobenius norm of the product over the product of the norms:

    Q:  ||W_O1ᵀ W_V1ᵀ W_Q2 W_K2ᵀ|| / (||W_V1 W_O1|| ||W_Q2 W_K2ᵀ||)
    K:  ||W_V1 W_O1 W_K2 W_Q2ᵀ||   / (||W_V1 W_O1|| ||W_Q2 W_K2ᵀ||)
    V:  ||W_V1 W_O1 W_V2 W_O2||    / (||W_V1 W_O1|| ||W_V2 W_O2||)

The stream that is written to is the stream that is read: readers' norm gains are folded in, writers' post norms too.
With rotary positions Q and K are those of distance 0; norms of queries and keys are left out.

Everything is computed through d_head x d_head Gram matrices; no d_model x d_model matrix is formed.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mechinterp.anatomy import Anatomy, Layer

Mode = Literal["q", "k", "v"]


@dataclass(frozen=True)
class HeadWeights:
    """Attention weights with norm gains folded in; all a composition score needs. A shared key or value is there once
    for every head that reads it.

    Where norms remove the mean (layer norm, not RMS), reading matrices are centred over d_model, and so are writing
    ones.
    """

    W_Q: Float[Tensor, "layer head d_model d_head"]
    W_K: Float[Tensor, "layer head d_model d_head"]
    W_V: Float[Tensor, "layer head d_model d_head"]
    W_O: Float[Tensor, "layer head d_head d_model"]
    centres: bool = True

    @classmethod
    @torch.no_grad()
    def of(cls, model: Any) -> "HeadWeights":
        """The weights of a model that `Anatomy` describes."""
        anatomy = Anatomy.of(model, bidirectional=True)
        # Whether the next reader removes the mean is what counts, for writers as well.
        centres = all(layer.norm1.centres for layer in anatomy.layers)
        every = range(anatomy.size.n_heads)
        parts = {
            name: torch.stack([torch.stack([read(layer, h) for h in every]) for layer in anatomy.layers])
            for name, read in zip("QKVO", (Layer.W_Q, Layer.W_K, Layer.W_V, Layer.writes), strict=True)
        }
        return cls._made(parts, centres)

    @classmethod
    def _made(cls, parts: dict[str, Tensor], centres: bool) -> "HeadWeights":
        w = {f"W_{n}": _centred(part, n) if centres else part for n, part in parts.items()}
        return cls(W_Q=w["W_Q"], W_K=w["W_K"], W_V=w["W_V"], W_O=w["W_O"], centres=centres)

    @classmethod
    def load(cls, folder: str | Path) -> "HeadWeights":
        """Read the attention weights of a Hugging Face GPT-2 folder; MLPs and embeddings are not needed.

        Errors: `ValueError` if the folder has no `config.json`, no `model.safetensors`, or lacks a tensor.
        """
        import json

        from safetensors import safe_open

        folder = Path(folder)
        for name in ("config.json", "model.safetensors"):
            if not (folder / name).is_file():
                raise ValueError(f"{folder} has no {name}; give a folder with a GPT-2 checkpoint in safetensors")
        config = json.loads((folder / "config.json").read_text())
        if config.get("model_type", "gpt2") != "gpt2" or "n_head" not in config:
            raise ValueError(
                f"{folder} is a {config.get('model_type') or 'model'} of another family; this reads GPT-2 checkpoints. "
                "Load the model and use HeadWeights.of(model)"
            )
        heads = config["n_head"]
        parts: dict[str, list[Tensor]] = {n: [] for n in "QKVO"}
        with safe_open(folder / "model.safetensors", "pt") as file:
            stored = {key.removeprefix("transformer."): key for key in file.keys()}

            def get(name: str) -> Tensor:
                if name not in stored:
                    raise ValueError(f"{folder}/model.safetensors has no tensor {name!r}")
                return file.get_tensor(stored[name]).float()

            for layer in range(config["n_layer"]):
                gain = get(f"h.{layer}.ln_1.weight")
                read = (gain[:, None] * get(f"h.{layer}.attn.c_attn.weight")).chunk(3, -1)
                for n, w in zip("QKV", read, strict=True):
                    parts[n].append(w.unflatten(1, (heads, -1)).transpose(0, 1))
                parts["O"].append(get(f"h.{layer}.attn.c_proj.weight").unflatten(0, (heads, -1)))
        return cls._made({n: torch.stack(parts[n]) for n in "QKVO"}, True)

    def random_like(self, seed: int = 0) -> "HeadWeights":
        """Gaussian matrices of the same shapes: the null model of `composition`."""
        generator = torch.Generator().manual_seed(seed)
        shapes = {n: getattr(self, f"W_{n}").shape for n in "QKVO"}
        return self._made({n: torch.randn(shape, generator=generator) for n, shape in shapes.items()}, self.centres)


def composition(weights: HeadWeights, mode: Mode) -> Float[Tensor, "writer_layer writer reader_layer reader"]:
    """Composition score of every writing head with every reading head in a later layer; zero elsewhere.

    Memory: one pair of layers at a time, heads² · d_head² floats.
    """
    if mode not in ("q", "k", "v"):
        raise ValueError(f"mode must be 'q', 'k' or 'v', not {mode!r}")
    read_in, read_out = {
        "q": (weights.W_Q, weights.W_K.transpose(-1, -2)),
        "k": (weights.W_K, weights.W_Q.transpose(-1, -2)),
        "v": (weights.W_V, weights.W_O),
    }[mode]
    layers, heads = read_in.shape[:2]
    # ||A B|| with A = W_V W_O and B = R S: tr(Vᵀ V · O R · S Sᵀ · (O R)ᵀ), all of it d_head x d_head.
    gram_v = weights.W_V.transpose(-1, -2) @ weights.W_V
    gram_s = read_out @ read_out.transpose(-1, -2)
    norm_ov = _product_norm(gram_v, weights.W_O @ weights.W_O.transpose(-1, -2))
    norm_read = _product_norm(read_in.transpose(-1, -2) @ read_in, gram_s)
    scores = torch.zeros(layers, heads, layers, heads, device=read_in.device)
    for a in range(layers):
        for b in range(a + 1, layers):
            middle = torch.einsum("wed,rdf->wref", weights.W_O[a], read_in[b])
            square = torch.einsum("wxe,wref,rfg,wrxg->wr", gram_v[a], middle, gram_s[b], middle)
            scores[a, :, b] = square.clamp(min=0).sqrt() / (norm_ov[a][:, None] * norm_read[b])
    return scores


def ranks(scores: Float[Tensor, "writer_layer writer reader_layer reader"]) -> Tensor:
    """Rank (1 = strongest) of every writer among all heads before the reader's layer; 0 elsewhere.

    Shapes: as `scores`, integers.
    """
    layers, heads = scores.shape[:2]
    result = torch.zeros_like(scores, dtype=torch.long)
    for b in range(1, layers):
        earlier = scores[:b, :, b].flatten(0, 1)
        result[:b, :, b] = (earlier.argsort(0, descending=True).argsort(0) + 1).unflatten(0, (b, heads))
    return result


def chance_level(
    weights: HeadWeights, mode: Mode, *, seeds: int = 3, level: float = 0.95
) -> tuple[float, tuple[float, float]]:
    """Mean composition score of random matrices of the same shapes, and the interval that holds `level` of them."""
    pooled = []
    for seed in range(seeds):
        scores = composition(weights.random_like(seed), mode)
        pooled.append(scores[scores > 0])
    values = torch.cat(pooled)
    tail = (1 - level) / 2
    if len(values) == 0:
        raise ValueError("a model of one layer has no composition between heads")
    ordered = values.sort().values
    low, high = ordered[int(tail * (len(ordered) - 1))], ordered[int((1 - tail) * (len(ordered) - 1))]
    return values.mean().item(), (low.item(), high.item())


def _product_norm(gram_left: Tensor, gram_right: Tensor) -> Tensor:
    """||A B||_F from AᵀA and B Bᵀ."""
    return torch.einsum("...ef,...ef->...", gram_left, gram_right).clamp(min=0).sqrt()


def _centred(w: Tensor, name: str) -> Tensor:
    axis = -1 if name == "O" else -2
    return w - w.mean(axis, keepdim=True)
