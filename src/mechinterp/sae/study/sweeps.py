"""The long runs behind the two chapters, by name: one resumable command each, results in the package.

    python -m mechinterp.sae.study laptop --text FOLDER --out FOLDER --export

reads text (`train*.txt.xz`, see `mechinterp.lab.corpus`), computes the activations of all sites, trains every sweep and
writes what the chapters read: the quality of each SAE on text that it has not seen. Kill it and start it again at any
moment; two at a time share their activations, with `--only`. Setting
`MALLOC_MMAP_THRESHOLD_` and `MALLOC_TRIM_THRESHOLD_` to 4294967296 makes it faster on Linux.
"""

import argparse
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from mechinterp.arithmetic import arithmetic
from mechinterp.datasets.text import from_hub, generated_rows, packed_rows, sample
from mechinterp.files import read_parts, write_parts
from mechinterp.sae.architectures import SAE
from mechinterp.sae.files import released
from mechinterp.sae.files.formats import save
from mechinterp.sae.metrics import Name, Site, evaluate, reconstruction, site
from mechinterp.sae.sites import activations, layer_of
from mechinterp.sae.store import Store, counted
from mechinterp.sae.study.plans import PLANS, SWEEPS, ScaleName, names, sweep
from mechinterp.sae.training import Trained, train

MEASURED = Path(__file__).with_name("measured")
LIBRARIES_FILE = MEASURED / "libraries.json"
INTERVALS: tuple[Name, ...] = ("l0", "fvu", "gamma", "delta_loss", "loss_recovered")
HeldOut = Site | Float[Tensor, "token d_in"]


def text_rows(scale: ScaleName, text: str) -> Int[Tensor, "row pos"]:
    """All rows of a scale's training text, in a random order; sweeps read them from the first on.

    At lab scale half of them are generated documents, as in the model's own training. The last ones are kept for the
    next sweep, as long as the files stay as they are.

    Args:
        text: a folder with files `train*.txt` or `train*.txt.xz` (`mechinterp.lab.corpus` makes one), or a dataset of
            the hub.
    """
    found = hashlib.sha256()
    for path in sorted(Path(text).glob("train*.txt*")) if Path(text).is_dir() else ():
        found.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    plan = PLANS[scale]
    n = max(plan.rows, plan.attention_rows)
    return _text_rows(plan.model, n, n // 2 if plan.generated else 0, plan.length, text, found.hexdigest())


@lru_cache(maxsize=1)
def _text_rows(model: str, n: int, generated: int, length: int, text: str, content: str) -> Tensor:
    from mechinterp.lab.mixture import read_texts
    from mechinterp.models import load_tokenizer

    tokenizer = load_tokenizer(model)
    if not Path(text).is_dir():
        return packed_rows(tokenizer, from_hub(text, documents=n), n, length)
    texts = list(read_texts(Path(text)))
    real = packed_rows(tokenizer, texts, n - generated, length, per_text=-(-n // max(1, len(texts))))
    rows = torch.cat([real, generated_rows(tokenizer, generated, length, seed=1)]) if generated else real
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]


def run_sweep(
    name: str, scale: ScaleName, model: Any, rows: Int[Tensor, "row pos"], out: Path | None = None
) -> Trained:
    """Train a named sweep on the first of these rows.

    Args:
        out: folder in which it goes on where it was killed: checkpoints in `out/scale/name`, activations in
            `out/scale/cache`, for all sweeps.
    """
    plan, wanted = PLANS[scale], sweep(name, scale)
    folder = None if out is None else out / scale / name.replace(" ", "_")
    cache = None if out is None else out / scale / "cache"
    store = Store(model, rows[: wanted.rows], wanted.hooks, batch=plan.batch, block=plan.block, cache=cache)
    return train(wanted.specs, store, wanted.config, folder=folder, save_every=240)


def fill(scale: ScaleName, model: Any, rows: Int[Tensor, "row pos"], out: Path, only: Sequence[str]) -> None:
    """Compute the activations of some sweeps into `out/scale/cache`: the rows that all of them read in one pass."""
    plan, wanted = PLANS[scale], [sweep(name, scale) for name in only]
    for n in sorted({one.rows for one in wanted}):
        hooks = tuple(dict.fromkeys(hook for one in wanted if one.rows >= n for hook in one.hooks))
        Store(model, rows[:n], hooks, batch=plan.batch, block=plan.block, cache=out / scale / "cache").fill()


def held_out_rows(model: Any, scale: ScaleName) -> Int[Tensor, "row pos"]:
    """Rows that neither the model nor the SAEs have seen: the package's sample, and generated ones where they train."""
    plan = PLANS[scale]
    n = plan.held_out // 2 if plan.generated else 0
    real = packed_rows(model.tokenizer, sample(), plan.held_out - n, 256)
    return torch.cat([real, generated_rows(model.tokenizer, n, 256, seed=99)]) if n else real


def sweep_sites(trained: Trained) -> list[str]:
    """The hooks of a sweep's SAEs, each once."""
    return list(dict.fromkeys(spec.hook for spec in trained.specs))


def in_model(name: str) -> bool:
    """Whether a sweep's SAEs are put into the model, one pass each, or measured on activations alone."""
    return name.split()[0] in ("mlp", "resid", "attention")


def held_out(hook: str, spliced: bool, *, scale: ScaleName, model: Any) -> HeldOut:
    """What SAEs are measured on: a site of the model, or activations alone where no cost is asked for."""
    rows = held_out_rows(model, scale)
    if spliced:
        return site(model, rows, hook)
    x = activations(model, rows, [hook])[hook]
    return x[counted(model, rows).to(x.device)]


def summary(trained: Trained, model: Any, on: Mapping[str, HeldOut]) -> dict[str, Any]:
    """A sweep as it stands in the package: its settings, and the quality of every SAE on held-out text, by hook.

    For each SAE: its spec, the measures of `metrics.Quality` with intervals over rows and the increase in loss by row
    (on activations alone, the measures of `metrics.Reconstruction`); and of its latents the share that fires on more
    than 1 % and on more than 10 % of the tokens, and a histogram of log10 density from -5 to 0 in steps of a quarter.
    """
    saes = []
    for spec, sae in tqdm(list(zip(trained.specs, trained.saes, strict=True)), desc="evaluating", unit="SAE"):
        density, found = _measured(model, sae, on[spec.hook])
        bins = density[density > 0].log10().clamp(-4.99, -0.01).histc(20, min=-5, max=0)
        saes.append(
            asdict(spec)
            | found
            | {"over_1": _digits((density > 0.01).float().mean().item())}
            | {"over_10": _digits((density > 0.1).float().mean().item())}
            | {"density": bins.int().tolist()}
        )
    losses = {
        hook: {name: _digits(float(getattr(at, name).sum() / at.predicted.sum())) for name in ("clean", "zero", "mean")}
        for hook, at in on.items()
        if hook in sweep_sites(trained) and isinstance(at, Site)
    }
    facts = trained.saes[0].facts
    return {"config": facts["config"], "tokens": facts["tokens"], "loss": losses, "saes": saes}


def _measured(model: Any, sae: SAE, at: HeldOut) -> tuple[Tensor, dict[str, Any]]:
    """Density of every latent, and the measures of one SAE."""
    if not isinstance(at, Site):
        alone = reconstruction(sae, at)
        facts = {name: _digits(getattr(alone, name)) for name in ("l0", "fvu", "gamma")}
        return alone.density, facts | {"dead": _digits((alone.density == 0).float().mean().item())}
    found = evaluate(model, sae, at)
    facts = {name: _digits(value) for name, value in found.facts().items()}
    intervals = {name: [_digits(x) for x in found.estimate(name).interval or ()] for name in INTERVALS}
    rows = [_digits(x) for x in (found.cost / at.predicted.cpu().mean()).tolist()]  # their mean is delta_loss
    return found.density, facts | {"interval": intervals, "rows": rows}


def _digits(x: float) -> float | None:
    return float(f"{x:.5g}") if math.isfinite(x) else None


def export(scale: ScaleName, only: Sequence[str], model: Any, rows: Int[Tensor, "row pos"], out: Path) -> Path:
    """Summarise finished sweeps into the package's file of a scale (others in it stay), and ship some SAEs."""
    path = MEASURED / f"{scale}.json"
    found = read_parts(path)
    at = lru_cache(partial(held_out, scale=scale, model=model))
    for name in only:
        trained = run_sweep(name, scale, model, rows, out)
        found[name] = summary(trained, model, {hook: at(hook, in_model(name)) for hook in sweep_sites(trained)})
        for folder, sae in examples(name, trained) if PLANS[scale].ships else ():
            save(sae, released.SHIPPED / PLANS[scale].model / folder, dtype=torch.float16)
        write_parts(path, {name: found[name] for name in SWEEPS if name in found}, first="kind")
    return path


def examples(name: str, trained: Trained) -> Iterator[tuple[str, SAE]]:
    """What is shipped: attention SAEs, and of each kind on a frontier the one of seed 0 with an L0 nearest 24."""
    first, *rest = name.split()
    if name == "attention":
        for spec, sae in zip(trained.specs, trained.saes, strict=True):
            yield f"attention-{layer_of(spec.hook)}", sae
    elif first in ("mlp", "resid"):
        l0 = trained.history["l0"][-5:].mean(0)
        own = [i for i, spec in enumerate(trained.specs) if spec.seed == 0]
        yield f"{first}-{rest[0]}", trained.saes[min(own, key=lambda i: abs(math.log(float(l0[i]) / 24)))]


@dataclass(frozen=True)
class Measured:
    """A committed sweep. `saes` are dictionaries as `summary` makes them; `loss`: of the model, by hook."""

    config: dict[str, Any]
    tokens: int
    loss: dict[str, dict[str, float]]
    saes: list[dict[str, Any]]

    def choose(self, **where: Any) -> list[dict[str, Any]]:
        """The SAEs that agree with `where`.

        Errors: `ValueError` if there are none.
        """
        found = [sae for sae in self.saes if all(sae[key] == value for key, value in where.items())]
        if not found:
            raise ValueError(f"no SAE of this sweep has {where}")
        return found


def measured(name: str, scale: ScaleName) -> Measured:
    """A sweep that comes with the package, made by `python -m mechinterp.sae.study`.

    Errors: `ValueError` if that sweep has not been run at that scale.
    """
    sweep(name, scale)
    found = read_parts(MEASURED / f"{scale}.json")
    if name not in found:
        raise ValueError(
            f"sweep {name!r} has not been run at {scale} scale: python -m mechinterp.sae.study {scale} "
            f"--only {name!r} --text FOLDER --out FOLDER --export"
        )
    return Measured(**found[name])


def by_library(kind: str, steps: int) -> dict[str, list[dict[str, Any]]]:
    """SAEs of the lab model that this package, SAELens and dictionary_learning trained, for `frontier.curve`.

    The libraries had the same activations and budget of tuning; `benchmarks/sae_training.py --export` makes them.

    Returns: by library, with "ours" first; for each SAE sparsity (in the library's units), seed, lr, l0, fvu and
    added_loss, nats.

    Errors: `ValueError` for a kind or a number of steps that has not been run.
    """
    found = read_parts(LIBRARIES_FILE)
    if f"{kind} {steps}" not in found:
        raise ValueError(f"no comparison of {kind} SAEs with {steps} steps; there are: {', '.join(found) or 'none'}")
    return found[f"{kind} {steps}"]


def live(name: str, scale: ScaleName, model: Any, rows: Int[Tensor, "row pos"], out: Path) -> Measured:
    """A sweep trained and measured on the spot, for scales at which that takes seconds."""
    trained = run_sweep(name, scale, model, rows, out)
    at = partial(held_out, scale=scale, model=model)
    return Measured(**summary(trained, model, {hook: at(hook, in_model(name)) for hook in sweep_sites(trained)}))


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: train the sweeps of a scale, resumable."""
    from mechinterp.models import load

    parser = argparse.ArgumentParser("python -m mechinterp.sae.study", description=main.__doc__)
    parser.add_argument("scale", choices=list(PLANS))
    parser.add_argument("--text", required=True, help="folder with train*.txt[.xz], or a dataset of the hub")
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoints and activations")
    parser.add_argument("--only", nargs="+", choices=SWEEPS, help="some sweeps; all of the scale by default")
    parser.add_argument("--device", default=None)
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 takes all")
    parser.add_argument("--export", action="store_true", help="evaluate, and write the results into the package")
    args = parser.parse_args(arguments)
    only = args.only or names(args.scale)
    with arithmetic(threads=args.threads):
        model, rows = load(PLANS[args.scale].model, device=args.device), text_rows(args.scale, args.text)
        fill(args.scale, model, rows, args.out, only)
        for name in only:
            run_sweep(name, args.scale, model, rows, args.out)
        if args.export:
            print(export(args.scale, only, model, rows, args.out))
