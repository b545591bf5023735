"""pilotage doctor"""

from __future__ import annotations

import typer


def doctor() -> None:
    """Look at this machine: versions, threads, devices, memory, and known trouble. Exits with 1 when there is some."""
    from ..generation.health import facts, troubles
    from .console import print_table

    print_table("", ["what", "found"], [[name, value] for name, value in facts()])
    found = troubles()
    for trouble in found:
        print(f"trouble: {trouble}")
    if found:
        raise typer.Exit(1)
    print("no known trouble")
