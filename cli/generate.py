"""pilotage generate"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .options import Given, takes_spec

if TYPE_CHECKING:
    from ..generation.folder import Finished


@takes_spec
def generate(given: Given) -> None:
    """Make pictures.

    The same command again resumes or finds everything done. Ctrl-C finishes the batch at hand, twice stops at once.

      pilotage generate "two red stars on navy"

      pilotage generate "a lighthouse" --model ./sd15 --guidance "apg:scale=10 + interval:low=0.3" --seeds 0-63

      pilotage generate --prompts captions.txt --preset embedded --exact -o runs/captions

      accelerate launch --num_processes 4 -m pilotage generate --prompts captions.txt -o runs/captions

      torchrun --nproc-per-node 2 -m pilotage generate --prompts captions.txt --threads 1    (without a GPU)
    """
    from ..evaluation.processes import Processes
    from ..generation.folder import Listener, default_folder, run
    from ..generation.notes import notes
    from ..generation.pictures import Watch
    from ..generation.spec import RunSpec
    from ..generation.stopping import patient
    from .console import say_notes
    from .previews import preview_to
    from .progress import PictureProgress

    spec = given.resolve(RunSpec)
    if given.dry_run:
        print(spec.as_yaml(), end="")
        say_notes(notes(spec))
        return
    processes = Processes.found()
    folder = Path(spec.output) if spec.output else default_folder(spec)
    say_notes(notes(spec) if processes.rank == 0 else ())
    with PictureProgress(spec.batch_size, shown=processes.rank == 0) as bar, patient(processes.world > 1) as stop:
        watch = Watch(bar.step, preview_to(folder) if spec.preview_every else None)
        done = run(spec, watch=watch, listener=Listener(bar.begin_pictures, bar.picture, bar.reached, stop))
    if processes.rank == 0:
        _tell(done)


def _tell(done: Finished) -> None:
    from .console import say_notes

    say_notes(done.notes)
    if not done.made:
        print(f"all {len(done.items)} pictures are in {done.folder} already")
        return
    evaluations = " + ".join(f"{count:.4g} {branch}" for branch, count in done.evaluations.items())
    print(f"{len(done.items)} picture{'s' * (len(done.items) > 1)} in {done.folder}: {evaluations} evaluations and "
          f"{done.seconds:.2f} s a picture")  # fmt: skip
