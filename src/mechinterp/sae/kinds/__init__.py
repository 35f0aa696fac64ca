"""The kinds of SAE, one file each: all that is particular to a kind stands there, and nowhere else is it asked for.

| kind | activation | source |
|---|---|---|
| standard | relu(pre) | Bricken et al. 2023 |
| gated | relu(exp(r_mag) pre + b_mag) where pre + b_gate > 0 (no b_enc) | arXiv:2404.16014, section 3 |
| jumprelu | pre where pre > threshold | arXiv:2407.14435, equation 1 |
| topk | relu of the k largest pre of a token | arXiv:2406.04093, section 2.3 |
| batchtopk | relu of the batch · k largest pre of a batch; once trained it is a jumprelu | arXiv:2412.06410 |
"""

from mechinterp.sae.kinds.base import Gradients, Kind, Loss, Options, Params
from mechinterp.sae.kinds.batchtopk import BatchTopK
from mechinterp.sae.kinds.gated import Gated
from mechinterp.sae.kinds.jumprelu import JumpReLU
from mechinterp.sae.kinds.standard import Standard
from mechinterp.sae.kinds.topk import TopK

KINDS: dict[str, Kind] = {kind.name: kind for kind in (Standard(), Gated(), JumpReLU(), TopK(), BatchTopK())}
"""All kinds by name. One of your own is a subclass of `Kind`, entered here."""


def kind_named(name: str) -> Kind:
    """The kind of a name.

    Errors: `ValueError` naming those there are.

    >>> kind_named("jumprelu").own
    ('b_enc', 'threshold')
    """
    if name not in KINDS:
        raise ValueError(f"unknown kind of SAE {name!r}; choose one of {', '.join(KINDS)}")
    return KINDS[name]


__all__ = ["KINDS", "Gradients", "Kind", "Loss", "Options", "Params", "kind_named"]
