"""pilotage fit-linear-ag"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import Given, takes_spec

if TYPE_CHECKING:
    from ..generation.models import Loaded
    from ..generation.spec import RunSpec
    from .progress import PictureProgress


@takes_spec
def fit_linear_ag(
    given: Given,
    file: Annotated[Path, typer.Option("--file", "-f", help="Where the coefficients go.")] = Path("linear.json"),
    ridge: Annotated[float, typer.Option(help="Holds the coefficients small; times the mean power.")] = 1e-6,
) -> None:
    """Fit the coefficients with which `linear` estimates null predictions.

    They belong to the model, rule, sampler, steps and negative prompt given here, and are refused with others.

      pilotage fit-linear-ag --prompts captions.txt --guidance "cfg:scale=3" --steps 25 --file linear.json

      pilotage generate "two red stars on navy" --guidance "cfg:scale=3 + linear:file=linear.json"
    """
    from ..errors import UsageError
    from ..generation.environment import threads
    from ..generation.models import open_model
    from ..generation.scheduling import scheduler_for
    from ..generation.spec import RunSpec
    from ..guidance.fitting import fit_linear
    from ..guidance.grammar import parse
    from .progress import PictureProgress

    spec = given.resolve(RunSpec)
    if spec.output:
        raise UsageError("fit-linear-ag makes no run folder; say where the coefficients go with --file")
    if spec.teleport:
        raise UsageError("coefficients are fitted to whole runs; leave teleport out")
    if given.dry_run:
        print(spec.as_yaml(), end="")
        return
    _check_folder(file)
    pictures = spec.pictures()
    model = open_model(spec)
    model.pipe.scheduler = scheduler_for(spec, model.scheduler)
    networks = model.networks(spec, parse(spec.guidance).needs)
    with threads(spec.threads), PictureProgress(len(pictures)) as bar:
        bar.begin("pictures", 0, len(pictures))
        calls = _calls(spec, model, bar)
        fitted = fit_linear(model.pipe, calls, spec.guidance, model=spec.model, networks=networks, ridge=ridge)
    fitted.save(file)
    worst = max(fitted.residual[1:], default=0.0)  # the first step is never estimated
    print(f"{file}: {fitted.steps} steps fitted on {len(pictures)} picture{'s' * (len(pictures) > 1)}; at most "
          f"{worst:.2%} of a null prediction is left unexplained")  # fmt: skip
    print(f'use: --guidance "{spec.guidance} + linear:file={file}"')


def _calls(spec: RunSpec, model: Loaded, bar: PictureProgress) -> Iterator[dict[str, Any]]:
    """The arguments of each call of the pipeline; the bar follows."""
    import inspect

    from ..generation.call import call_arguments, pictures_of
    from ..guidance.grammar import parse
    from ..guidance.pipelines import adapter_of

    pictures, inputs, pipe = spec.pictures(), pictures_of(spec), model.pipe
    on, needs = adapter_of(pipe).on_settings, parse(spec.guidance).needs
    takes = inspect.signature(type(pipe).__call__).parameters
    for start in range(0, len(pictures), spec.batch_size):
        part = pictures[start : start + spec.batch_size]
        prompts, seeds = zip(*part, strict=True)

        def after_step(pipe: Any, step: int, time: Any, tensors: Any, before: int = start, now: int = len(part)) -> Any:
            steps = len(pipe.scheduler.timesteps)
            bar.step(before * steps + now * (step + 1), len(pictures) * steps)
            return tensors

        told = {"callback_on_step_end": after_step} if "callback_on_step_end" in takes else {}
        yield call_arguments(spec, pipe, on, needs, prompts, seeds, inputs) | told


def _check_folder(file: Path) -> None:
    """Before the work, not after it."""
    from ..errors import UsageError

    if file.is_dir() or not file.absolute().parent.is_dir():
        raise UsageError(f"cannot write {file}; give --file a name in a folder that is there")
