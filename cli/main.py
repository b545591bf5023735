"""The command `pilotage`. Commands are thin: they parse, call, and print. Heavy imports wait until one runs."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Sequence
from typing import Annotated

import typer

from ..errors import UsageError
from ..version import __version__
from . import (
    compare,
    demo,
    distill,
    doctor,
    explain,
    finetune,
    fit_grid,
    fit_linear_ag,
    fit_teleport,
    generate,
    invert,
    list,
    mix_lora,
    rank,
    rerun,
    score,
    stats,
    status,
)
from .console import say_error

app = typer.Typer(
    name="pilotage",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _add(name: str, command: Callable[..., None]) -> None:
    """With the paragraphs of its docstring on lines of their own: typer keeps every line's end as it is written."""
    text = inspect.cleandoc(command.__doc__ or "")
    app.command(name, help="\n\n".join(re.sub(r"\s*\n\s*", " ", each) for each in text.split("\n\n")))(command)


_add("generate", generate.generate)
_add("rerun", rerun.rerun)
_add("invert", invert.invert)
_add("rank", rank.rank)
_add("compare", compare.compare)
_add("score", score.score)
_add("finetune", finetune.finetune)
_add("mix-lora", mix_lora.mix_lora)
_add("distill", distill.distill)
_add("stats", stats.stats)
_add("status", status.status)
_add("list", list.list_)
_add("explain", explain.explain)
_add("fit-grid", fit_grid.fit_grid)
_add("fit-linear-ag", fit_linear_ag.fit_linear_ag)
_add("fit-teleport", fit_teleport.fit_teleport)
_add("doctor", doctor.doctor)
_add("demo", demo.demo)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"pilotage {__version__}")
        raise typer.Exit


@app.callback()
def pilotage(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Steer diffusion and flow models: guidance rules, samplers and evaluation on top of diffusers.

    pilotage generate "two red stars on navy"

    pilotage demo
    """


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code: 0, 2 for bad input, 130 when stopped."""
    try:
        code = app(arguments, standalone_mode=False)
    except UsageError as error:
        say_error(str(error))
        return 2
    except KeyboardInterrupt:
        code = 130
    except OSError as error:
        return _disk_trouble(error)
    except Exception as error:
        return _of_typer(error)
    if code == 130:
        print("stopped; the same command resumes", file=sys.stderr)
    return code if isinstance(code, int) else 0


def _disk_trouble(error: OSError) -> int:
    """What reached us from deep inside; our own writing says more."""
    import errno

    if error.errno == errno.EPIPE:  # the reader, such as `head`, has gone
        sys.stderr.close()
        return 1
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
        raise error
    say_error(f"{error.strerror}{f': {error.filename}' if error.filename else ''}; the same command resumes")
    return 2


def _of_typer(error: Exception) -> int:
    """A wrong option or value, in one line. Anything else is a bug and shows its traceback."""
    message = getattr(error, "format_message", None)
    if message is None:
        raise error
    text = message()
    if text:
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "pilotage"
        say_error(f"{text.rstrip('.')}; see {command} --help")
    return getattr(error, "exit_code", 2)


def main() -> None:
    sys.exit(run())


if __name__ == "__main__":
    main()
