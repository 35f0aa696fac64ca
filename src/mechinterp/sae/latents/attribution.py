"""Where a latent of an attention-output SAE comes from: which heads, which source tokens, which earlier latents.

Such an SAE reads z, the heads' value-weighted sums before W_O, concatenated. A latent's pre-activation is linear in z,
z in the values and, with attention patterns and layer-norm scales frozen, the values in everything written before:
direct feature attribution, DFA (Kissane et al., arXiv:2406.17759). All sums here are exact.

Of a gated SAE the pre-activation of the magnitudes is taken apart, in units of the latent. That of its gate is the
same up to a factor and a constant, so the shares are the same.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from heapq import nlargest
from typing import Any, Literal, get_args

import torch
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp.anatomy import Anatomy, size
from mechinterp.patching.checks import check_ids, check_tokens
from mechinterp.patching.engine import Cache, trace
from mechinterp.sae.architectures import SAE
from mechinterp.sae.kinds import KINDS
from mechinterp.sae.latents.interventions import check_latents, check_sae

Z = ("attn.hook_z",)


def encoder_map(
    sae: SAE, latents: Int[Tensor, " latent"] | None = None
) -> tuple[Float[Tensor, "d_in latent"], Float[Tensor, " latent"]]:
    """(weight, constant) with sae.pre(x) = x @ weight + constant: what multiplies x, and all that does not.

    >>> from mechinterp.sae import initial
    >>> sae, x = SAE("gated", initial("gated", 4, 16, seed=0)), torch.randn(3, 4)
    >>> weight, constant = encoder_map(sae)
    >>> torch.allclose(x @ weight + constant, sae.pre(x), atol=1e-6)
    True
    """
    weight, bias = KINDS[sae.kind].linear(sae.params)
    if latents is not None:
        check_latents(sae, latents)
        weight, bias = weight[:, latents], bias[latents]
    return weight, bias - sae.b_dec @ weight


def head_shares(sae: SAE, n_heads: int) -> Float[Tensor, "d_sae head"]:
    """Share of each head in a latent's decoder: ‖W_dec[i, h]‖ / Σ_h' ‖W_dec[i, h']‖ (Kissane et al.).

    A latent whose decoder row is zero has no share anywhere. The latents of a head: `shares[:, head].topk(10)`.

    Errors: `ValueError` if the SAE's width is not a multiple of `n_heads`.

    >>> from mechinterp.sae import initial
    >>> head_shares(SAE("standard", initial("standard", 8, 16, seed=0)), 2).sum(1).allclose(torch.ones(16))
    True
    """
    if n_heads < 1 or sae.d_in % n_heads:
        raise ValueError(f"{sae!r} reads {sae.d_in} numbers, which {n_heads} heads cannot share evenly")
    norms = rearrange(sae.W_dec, "d_sae (head d_head) -> d_sae head d_head", head=n_heads).norm(dim=-1)
    total = norms.sum(1, keepdim=True)
    return norms / torch.where(total > 0, total, 1.0)


def dfa_by_head(
    sae: SAE, z: Float[Tensor, "*token head d_head"], latents: Int[Tensor, " latent"] | None = None
) -> Float[Tensor, "*token latent head"]:
    """What each head adds to a latent's pre-activation: z_h · W_enc[h, i]; the sum over heads is pre - constant.

    Args:
        latents: None for all. The constant is that of `encoder_map`.

    Errors: `ValueError` for heads that do not make up the SAE's input.

    >>> from mechinterp.sae import initial
    >>> sae, z = SAE("standard", initial("standard", 8, 16, seed=0)), torch.randn(5, 2, 4)
    >>> dfa_by_head(sae, z).sum(-1).allclose(sae.pre(z.flatten(-2)), atol=1e-6)  # all biases are 0
    True
    """
    n_heads, d_head = z.shape[-2:]
    if n_heads * d_head != sae.d_in:
        raise ValueError(f"z must end in [head d_head] with {sae.d_in} numbers together, got {tuple(z.shape)}")
    weight = rearrange(encoder_map(sae, latents)[0], "(head d_head) i -> head d_head i", head=n_heads)
    return einsum(z, weight, "... head d_head, head d_head i -> ... i head")


@torch.no_grad()
def dfa_by_source(
    model: Any,
    sae: SAE,
    tokens: Int[Tensor, "prompt pos"],
    latents: Int[Tensor, " prompt"],
    destinations: Int[Tensor, " prompt"],
    *,
    batch_size: int = 16,
) -> Float[Tensor, "prompt head source"]:
    """What each head moves to a latent from each position: A_h(d, s) v_h(s) · W_enc[h, i] (Kissane et al.).

    The sum over sources is `dfa_by_head` at the destination.

    Args:
        latents, destinations: one latent and one position a prompt; repeat a prompt to ask about several.
        batch_size: prompts at a time; does not change results. Memory: batch_size · heads · positions² floats.

    Errors: `ValueError` for an SAE that does not read this model's z, positions or latents out of range.

    >>> from mechinterp.models import load
    >>> from mechinterp.sae import initial
    >>> model, tokens = load("lab", device="cpu"), torch.tensor([[0, 5, 9, 11]])
    >>> sae = SAE("standard", initial("standard", 256, 512, seed=0), hook="blocks.2.attn.hook_z")
    >>> dfa = dfa_by_source(model, sae, tokens, torch.tensor([7]), torch.tensor([2]))
    >>> dfa.shape, dfa[:, :, 3].abs().max().item()  # nothing comes from a later position
    (torch.Size([1, 8, 4]), 0.0)
    """
    layer = check_sae(model, sae, Z)
    check_tokens(model, tokens, batch_size, destinations, "destinations")
    if latents.shape != tokens.shape[:1]:
        raise ValueError(f"latents must hold one number a prompt ({len(tokens)}), got {tuple(latents.shape)}")
    anatomy = Anatomy.of(model, tokens.shape[1])
    block, device, n_heads = anatomy.layers[layer], anatomy.device, anatomy.size.n_heads
    weight = rearrange(encoder_map(sae, latents.to(device))[0], "(head d_head) p -> p head d_head", head=n_heads)
    parts = []
    for some in torch.arange(len(tokens), device=device).split(batch_size):
        wanted = {("pattern", layer), ("value", layer)}
        got = trace(anatomy, tokens[some], lambda name, i, x, w=wanted: x if (name, i) in w else None, stop=layer + 1)  # type: ignore[misc]
        rows, at = torch.arange(len(some), device=device), destinations.to(device)[some]
        v = block.expand(got["value", layer])
        own = weight[some].to(v.dtype)
        parts.append(got["pattern", layer][rows, :, at] * einsum(v, own, "p source head d, p head d -> p head source"))
    return torch.cat(parts)


Part = Literal["embedding", "position", "latent", "error", "attention", "mlp", "bias"]


@dataclass(frozen=True)
class Term:
    """One summand of a pre-activation.

    Attributes:
        part: what is read: the token's or the position's embedding, a latent of an earlier attention layer or the
            error of its SAE, the whole output of an attention layer without SAE, an MLP's output, or constants.
        source: from which position. `layer`: whose output. `latent`: which latent.
    """

    part: Part
    value: float
    source: int | None = None
    layer: int | None = None
    latent: int | None = None

    def __str__(self) -> str:
        name = self.part if self.layer is None else f"{self.part} {self.layer}"
        name += "" if self.latent is None else f".{self.latent}"
        return f"{self.value:+.3f} {name}" + ("" if self.source is None else f" at {self.source}")


@dataclass(frozen=True)
class Attribution:
    """A latent's pre-activation at one position as a sum of terms, and the same of upstream latents.

    Attributes:
        pre: the pre-activation. `terms`: its summands, largest absolute value first.
        upstream: what the latents of the largest terms are made of in turn.
    """

    layer: int
    position: int
    latent: int
    pre: float
    terms: tuple[Term, ...]
    upstream: tuple["Attribution", ...]

    def total(self) -> float:
        """The sum of all terms: `pre`, up to rounding."""
        return sum(term.value for term in self.terms)

    def by_part(self) -> dict[Part, float]:
        """Sum of the terms of each part."""
        return {part: sum(t.value for t in self.terms if t.part == part) for part in get_args(Part)}

    def top(self, n: int = 10, part: Part | None = None) -> tuple[Term, ...]:
        """The largest terms, of one part or of all."""
        return tuple(t for t in self.terms if part in (None, t.part))[:n]

    def nodes(self) -> list["Attribution"]:
        """This one and all upstream, each before what it is made of."""
        return [self, *(node for above in self.upstream for node in above.nodes())]

    def edges(self) -> list[tuple["Attribution", "Attribution", float]]:
        """(upstream latent, the latent that reads it, what it adds), for all of the tree."""
        added = {(t.layer, t.source, t.latent): t.value for t in self.terms if t.part == "latent"}
        own = [(above, self, added[above.layer, above.position, above.latent]) for above in self.upstream]
        return [*own, *(edge for above in self.upstream for edge in above.edges())]

    def __str__(self) -> str:
        lines = [f"latent {self.layer}.{self.latent} at {self.position}: {self.pre:.3f}"]
        lines += [f"  {term}" for term in self.top(5)]
        return "\n".join(lines + [f"    {line}" for above in self.upstream for line in str(above).splitlines()])


@torch.no_grad()
def recursive_dfa(
    model: Any,
    saes: Mapping[int, SAE],
    tokens: Int[Tensor, " pos"],
    layer: int,
    position: int,
    latent: int,
    *,
    depth: int = 1,
    top: int = 3,
) -> Attribution:
    """Take a latent apart through earlier attention layers (recursive DFA; Kissane et al.).

    With patterns A and layer-norm scales frozen, the pre-activation is Σ_s r(s) · x(s) + constants, where
    r(s) = Σ_h A_h(d, s) W_V[h] W_enc[h, i] seen through the layer norm at s, and x(s) is the stream before the layer:
    embeddings, and every earlier layer's attention (by latent, where it has an SAE) and MLP.

    Args:
        saes: attention-output SAEs by layer; that of `layer` is needed.
        tokens: one prompt.
        depth: how many times upstream latents are followed; 0 for the terms of the latent itself.
        top: how many upstream latents of each, those of the largest terms by absolute value.

    Memory: layers · positions · 5 · d_model + positions · d_sae floats.

    Under post norms (Gemma 2 and 3, OLMo 2) their scales are frozen as well.

    Errors: `ValueError` for a model that `Anatomy` does not describe or whose values are clipped (OLMo), an SAE that
        does not read z of its layer, no SAE for `layer`, or a position or latent out of range.

    >>> from mechinterp.models import load
    >>> from mechinterp.sae import initial
    >>> params = initial("standard", 256, 512, seed=0)
    >>> saes = {layer: SAE("standard", params, hook=f"blocks.{layer}.attn.hook_z") for layer in (1, 3)}
    >>> found = recursive_dfa(load("lab", device="cpu"), saes, torch.tensor([0, 5, 9, 11]), 3, 2, 7, top=2)
    >>> abs(found.total() - found.pre) < 1e-4, [above.layer for above in found.upstream]
    (True, [1, 1])
    """
    if depth < 0 or top < 0:
        raise ValueError(f"depth and top must not be negative, got {depth} and {top}")
    cache = _record(model, saes, tokens, layer, position, torch.tensor([latent]))
    return _explain(Anatomy.of(model), saes, cache, (layer, position, latent), depth, top, {})


@torch.no_grad()
def upstream_residual(
    model: Any, sae: SAE, residual: SAE, tokens: Int[Tensor, " pos"], position: int, latent: int
) -> Float[Tensor, "source feature"]:
    """What latents of a residual-stream SAE before the layer add to a latent of its attention-output SAE, by position.

    f_j(s) W_dec[j] · r(s), with r as in `recursive_dfa`. What is missing to the pre-activation is the residual SAE's
    error, its b_dec, and constants. (Kissane et al. leave the layer norm's scale out.)

    Errors: `ValueError` as in `recursive_dfa`, and for an SAE that does not stand at the layer's `hook_resid_pre`.
    """
    layer = check_sae(model, sae, Z)
    if check_sae(model, residual, ("hook_resid_pre",)) != layer:
        raise ValueError(f"the residual SAE must stand before layer {layer}, not at {residual.hook}")
    cache = _record(model, {layer: sae}, tokens, layer, position, torch.tensor([latent]))
    reads, _ = _reads(Anatomy.of(model), sae, cache, layer, position, latent)
    f = residual.encode(cache["resid_pre", layer][: position + 1].to(residual.W_enc))
    return f * (reads.to(f) @ residual.W_dec.T)


def _record(model: Any, saes: Mapping[int, SAE], tokens: Tensor, layer: int, position: int, latents: Tensor) -> Cache:
    """Activations of one prompt, each [pos ...], up to a layer."""
    if tokens.ndim != 1:
        raise ValueError(f"tokens must be one prompt [pos], got {tuple(tokens.shape)}")
    check_ids(size(model), tokens)
    tokens = tokens.to(next(model.parameters()).device)
    anatomy = check_tokens(model, tokens[None], 1, torch.tensor([position], device=tokens.device), "position")
    if layer not in saes:
        raise ValueError(f"no SAE for layer {layer}; there are some for {', '.join(map(str, saes)) or 'none'}")
    for i, sae in saes.items():
        if check_sae(model, sae, Z) != i:
            raise ValueError(f"the SAE for layer {i} belongs to {sae.hook}")
    check_latents(saes[layer], latents)
    if any(block.clip is not None for block in anatomy.layers):
        raise ValueError("values of this model are clipped: what reads them is no sum of what was written")
    names = ("resid_pre", "query", "key", "z", "attn", "mlp_out")
    cache = trace(anatomy, tokens[None], lambda name, _, x: x[0] if name in names else None, stop=layer + 1)
    for i in range(layer):
        if i in saes:
            z = cache["z", i].flatten(1).to(saes[i].W_enc.dtype)
            f = saes[i].encode(z)
            cache["f", i], cache["error", i] = f.to_sparse(), z - saes[i].decode(f)
    return cache | {("tokens", 0): tokens}


def _wide(x: Tensor) -> Tensor:
    """Double precision, on the CPU: some accelerators have none."""
    return x.detach().cpu().double()


def _reads(
    anatomy: Anatomy, sae: SAE, cache: Cache, layer: int, position: int, latent: int
) -> tuple[Float[Tensor, "source d_model"], float]:
    """(r, c) with pre = Σ_s r(s) · x(s) + c."""
    block, places = anatomy.layers[layer], torch.arange(position + 1)
    columns, constant = encoder_map(sae, torch.tensor([latent], device=sae.W_enc.device))
    weight = _wide(columns).view(block.n_heads, -1)
    query, key = _wide(cache["query", layer][position]), _wide(block.expand(cache["key", layer][: position + 1]))
    scores = block.scores(query[None], key)[:, 0].masked_fill(block.hidden(position - places), -torch.inf)
    values = torch.stack([_wide(block.weight("v", h)) @ weight[h] for h in range(block.n_heads)])
    through = einsum(scores.softmax(-1), values, "head source, head d_model -> source d_model")
    c = constant.item()
    if block.v.bias is not None:
        c += float((_wide(block.expand(block.v.bias.unflatten(0, (-1, block.d_head)))) * weight).sum())
    if block.norm1.bias is not None:
        c += float((through @ _wide(block.norm1.bias)).sum())
    scale = _wide(block.norm1.scale(cache["resid_pre", layer][: position + 1].double()))
    if block.norm1.gain is not None:
        through = through * _wide(block.norm1.gain)
    through = through - through.mean(-1, keepdim=True) if block.norm1.centres else through
    return through / scale, c


def _explain(
    anatomy: Anatomy,
    saes: Mapping[int, SAE],
    cache: Cache,
    target: tuple[int, int, int],
    depth: int,
    top: int,
    known: dict[tuple[int, int, int, int], Attribution],
) -> Attribution:
    """The terms of one latent, and of `top` upstream ones; what is asked twice is in `known`."""
    layer, position, latent = target
    reads, constant = _reads(anatomy, saes[layer], cache, layer, position, latent)
    seen = slice(0, position + 1)
    terms: list[Term] = []
    earlier: list[tuple[float, tuple[int, int, int]]] = []

    def add(part: Part, values: Tensor, i: int | None = None) -> None:
        terms.extend(Term(part, value, s, i) for s, value in enumerate(values.tolist()))

    token = anatomy.embed(cache["tokens", 0][seen], positions=False)
    add("embedding", (_wide(token) * reads).sum(-1))
    if anatomy.position_table is not None:
        add("position", (_wide(anatomy.embed(cache["tokens", 0][seen]) - token) * reads).sum(-1))
    for i in range(layer):
        block = anatomy.layers[i]
        own = reads / _wide(block.post1.scale(cache["attn", i][seen]))  # a post norm's scale is frozen, too
        reads_z = own @ rearrange(_wide(block.writes()), "head d_head d_model -> d_model (head d_head)")
        if block.o.bias is not None:
            fixed = block.post1.frozen(block.o.bias, torch.ones((), device=anatomy.device))
            constant += float((own @ _wide(fixed)).sum())
        if block.post1.bias is not None:
            constant += float((reads @ _wide(block.post1.bias)).sum())
        if i in saes:
            constant += float((reads_z @ _wide(saes[i].b_dec)).sum())
            add("error", (_wide(cache["error", i][seen]) * reads_z).sum(-1), i)
            f = cache["f", i]
            on = f.indices()[0] <= position
            source, which = f.indices()[:, on]
            values = _wide(f.values()[on]) * (_wide(saes[i].W_dec[which]) * reads_z[source.cpu()]).sum(-1)
            found = list(zip(source.tolist(), which.tolist(), values.tolist(), strict=True))
            terms.extend(Term("latent", value, s, i, j) for s, j, value in found)
            earlier.extend((abs(value), (i, s, j)) for s, j, value in found)
        else:
            add("attention", (_wide(cache["z", i][seen]).flatten(1) * reads_z).sum(-1), i)
        add("mlp", (_wide(cache["mlp_out", i][seen]) * reads).sum(-1), i)
    terms.append(Term("bias", constant))
    terms.sort(key=lambda term: -abs(term.value))
    upstream = []
    for _, child in nlargest(top if depth > 0 else 0, earlier):
        if (*child, depth) not in known:
            known[*child, depth] = _explain(anatomy, saes, cache, child, depth - 1, top, known)
        upstream.append(known[*child, depth])
    z = cache["z", layer][position].flatten()
    pre = saes[layer].pre(z.to(saes[layer].W_enc.dtype))[latent].item()
    return Attribution(layer, position, latent, pre, tuple(terms), tuple(upstream))
