"""The chapter's long runs, by name and scale: which networks, for how long."""

from dataclasses import dataclass

from mechinterp.grokking.model import Shape
from mechinterp.grokking.runs import Run
from mechinterp.grokking.training import Config

ScaleName = str


@dataclass(frozen=True)
class Plan:
    """Sizes of all sweeps at one scale. Sizes count training pairs; epochs are full-batch steps."""

    shape: Shape
    size: int
    decay: float
    decays: tuple[float, ...]
    seeds: tuple[int, ...]
    main_epochs: int
    grokked_size: int
    grokked_epochs: int
    smaller: tuple[int, ...]
    ungrokking_epochs: int
    random_sizes: tuple[int, ...]
    random_decays: tuple[float, ...]
    random_epochs: int
    random_seeds: tuple[int, ...]
    semi_sizes: tuple[int, ...]
    semi_decay: float
    semi_epochs: int
    plenty_size: int
    scratch_sizes: tuple[int, ...]
    scratch_epochs: int
    undecayed_sizes: tuple[int, ...]
    noise: tuple[float, ...] = (0.1, 0.25)


PLANS = {
    "lab": Plan(
        shape=Shape(p=53, d_model=64, n_heads=4, d_mlp=256),
        size=1124,
        decay=3.0,
        decays=(2.0, 3.0, 5.0),
        seeds=(0, 1, 2),
        main_epochs=10000,
        grokked_size=1404,
        grokked_epochs=3000,
        smaller=(150, 210, 300, 420, 590, 830, 1160, 1800),
        ungrokking_epochs=4000,
        random_sizes=(150, 300, 600, 1100, 1800),
        random_decays=(1.0, 2.0, 4.0),
        random_epochs=4000,
        random_seeds=(0, 1, 2),
        semi_sizes=(650, 750, 850, 950),
        semi_decay=5.0,
        semi_epochs=16000,
        plenty_size=2528,
        scratch_sizes=(2400,),
        scratch_epochs=4000,
        undecayed_sizes=(150, 210, 300, 420, 590),
    ),
    "paper": Plan(
        shape=Shape(),
        size=3830,
        decay=1.0,
        decays=(0.5, 1.0, 2.0),
        seeds=(0, 1, 2),
        main_epochs=20000,
        grokked_size=6384,
        grokked_epochs=3000,
        smaller=(390, 488, 610, 764, 955, 1194, 1494, 2400),
        ungrokking_epochs=5000,
        random_sizes=(200, 300, 420, 600, 1000, 1600, 2600),
        random_decays=(0.5, 1.0, 2.0),
        random_epochs=5000,
        random_seeds=(0, 1),
        semi_sizes=(1600, 2000),
        semi_decay=2.0,
        semi_epochs=20000,
        plenty_size=11492,
        scratch_sizes=(9000,),
        scratch_epochs=6000,
        undecayed_sizes=(390, 764),
    ),
}
SWEEPS = (
    "mainline",
    "plenty",
    "grokked",
    "generalising",
    "ungrokking",
    "undecayed",
    "memorising",
    "semigrokking",
    "noise",
)
FROM_GROKKED = ("ungrokking", "undecayed", "noise")
"""Sweeps that go on from the networks of "grokked"."""


def sweep(name: str, scale: ScaleName) -> tuple[list[Run], Config]:
    """Runs and configuration of a named sweep.

    Errors: `ValueError` for an unknown name or scale.

    >>> runs, config = sweep("mainline", "paper")
    >>> runs[0].size, config.shape.p
    (3830, 113)
    """
    if scale not in PLANS or name not in SWEEPS:
        raise ValueError(f"no sweep {name!r} at scale {scale!r}; sweeps {', '.join(SWEEPS)}, scales lab, paper")
    plan = PLANS[scale]
    by_decay = [(seed, decay) for decay in plan.decays for seed in plan.seeds]
    match name:
        case "mainline":
            runs = [Run(plan.size, seed, plan.decay) for seed in plan.seeds]
            config = Config(plan.main_epochs, plan.shape, stop_accuracy=0.99, stop_after=plan.main_epochs // 8)
        case "plenty":
            runs = [Run(plan.plenty_size, seed, plan.decay) for seed in plan.seeds]
            config = Config(1500, plan.shape, every=20, stop_accuracy=0.99)
        case "generalising":
            runs = [Run(size, seed, decay) for seed, decay in by_decay for size in plan.scratch_sizes]
            config = Config(plan.scratch_epochs, plan.shape)
        case "undecayed":
            runs = [Run(size, seed, 0.0) for seed in plan.seeds for size in plan.undecayed_sizes]
            config = Config(plan.ungrokking_epochs, plan.shape)
        case "grokked":
            runs = [Run(plan.grokked_size, seed, decay) for seed, decay in by_decay]
            config = Config(plan.grokked_epochs, plan.shape)
        case "ungrokking":
            runs = [Run(size, seed, decay) for seed, decay in by_decay for size in plan.smaller]
            config = Config(plan.ungrokking_epochs, plan.shape)
        case "memorising":
            runs = [
                Run(size, seed, decay, random_labels=1.0)
                for size in plan.random_sizes
                for decay in plan.random_decays
                for seed in plan.random_seeds
            ]
            config = Config(plan.random_epochs, plan.shape)
        case "semigrokking":
            runs = [Run(size, seed, plan.semi_decay) for size in plan.semi_sizes for seed in plan.seeds]
            config = Config(plan.semi_epochs, plan.shape, every=200)
        case _:
            runs = [
                Run(size, seed, plan.decay, random_labels=fraction)
                for fraction in plan.noise
                for seed in plan.seeds
                for size in plan.smaller
            ]
            config = Config(plan.ungrokking_epochs, plan.shape)
    return runs, config
