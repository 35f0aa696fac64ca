"""SAEs that are ready for use: those in the package, by name, and where published ones are.

The package's own are of the lab model and of SmolLM2, made by `python -m mechinterp.sae.study`. Published ones are the
attention-output SAEs of GPT-2 small (Kissane et al., arXiv:2406.17759, Table 1).
"""

from pathlib import Path

from mechinterp.sae.architectures import SAE
from mechinterp.sae.files.formats import load

SHIPPED = Path(__file__).with_name("shipped")
"""Folders of the package's own SAEs, by model."""

_REPOSITORY = "ckkissane/attn-saes-gpt2-small-all-layers"
_RUNS = (
    ("1.80e+00", 24576, "1.00e-06", 9),
    ("8.00e-01", 24576, "1.00e-06", 5),
    ("1.00e+00", 24576, "1.00e-06", 4),
    ("9.00e-01", 24576, "1.00e-06", 9),
    ("1.10e+00", 24576, "1.00e-06", 7),
    ("1.00e+00", 49152, "1.00e-06", 9),
    ("1.10e+00", 24576, "1.00e-06", 9),
    ("1.10e+00", 49152, "1.00e-06", 9),
    ("1.30e+00", 24576, "1.00e-05", 6),
    ("1.20e+00", 24576, "1.00e-06", 9),
    ("1.30e+00", 24576, "1.00e-05", 9),
    ("3.00e+00", 24576, "3.16e-06", 9),
)
"""By layer: sparsity coefficient, latents, density below which a latent was dead, version."""


def attention_gpt2(layer: int) -> str:
    """The name of a layer's SAE for `sae.load`.

    Errors: `ValueError` for a layer that GPT-2 small does not have.

    >>> attention_gpt2(5).rpartition("_lr")[0]
    'ckkissane/attn-saes-gpt2-small-all-layers:gpt2-small_L5_Hcat_z'
    """
    if not 0 <= layer < len(_RUNS):
        raise ValueError(f"GPT-2 small has the layers 0..{len(_RUNS) - 1}, not {layer}")
    l1, width, dead, version = _RUNS[layer]
    run = f"gpt2-small_L{layer}_Hcat_z_lr1.20e-03_l1{l1}_ds{width}_bs4096_dc{dead}_rsanthropic_rie25000_nr4_v{version}"
    return f"{_REPOSITORY}:{run}.pt"


def names() -> list[str]:
    """The SAEs in the package.

    >>> names()[:2]
    ['lab/attention-0', 'lab/attention-1']
    """
    return sorted(path.parent.relative_to(SHIPPED).as_posix() for path in SHIPPED.glob("*/*/cfg.json"))


def shipped(name: str) -> SAE:
    """An SAE of the package.

    Errors: `ValueError` naming those there are.

    >>> shipped("lab/attention-2").hook
    'blocks.2.attn.hook_z'
    """
    if name not in names():
        raise ValueError(f"no SAE {name!r} in the package; there are {', '.join(names()) or 'none'}")
    return load(SHIPPED / name)
