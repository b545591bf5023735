"""pilotage mix-lora"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def mix_lora(
    parts: Annotated[list[str], typer.Argument(help="FOLDER:WEIGHT of each LoRA; weights usually sum to 1.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder of the mixture.")],
    scale: Annotated[float, typer.Option(help="Of the whole change; 0 is the base model.")] = 1.0,
) -> None:
    """Mix LoRAs that were trained for different rewards into one, or make one weaker.

    What is summed is the change of the weights, which is exact.

      pilotage mix-lora runs/aesthetic/lora:0.7 runs/adherence/lora:0.3 --output runs/mixed

      pilotage generate "a prompt" --lora runs/mixed
    """
    from ..errors import UsageError
    from ..training.lora import mixed, save_lora

    named = []
    for part in parts:
        folder, colon, weight = part.rpartition(":")
        try:
            named.append((folder, float(weight)))
        except ValueError:
            raise UsageError(f"cannot read {part!r}; write FOLDER:WEIGHT, such as runs/a/lora:0.7") from None
        if not colon or not folder:
            raise UsageError(f"cannot read {part!r}; write FOLDER:WEIGHT, such as runs/a/lora:0.7")
    state = mixed(named, scale)
    print(f"{save_lora(state, output)}: {len(named)} adapters of {len(state) // 2} layers; use it with --lora {output}")
