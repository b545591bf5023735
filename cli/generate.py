"""pilotage generate"""

from __future__ import annotations

from pathlib import Path

from .options import Given, takes_spec


@takes_spec
def generate(given: Given) -> None:
    """Make pictures.

    The same command again resumes or finds everything done.

      pilotage generate "two red stars on navy"

      pilotage generate "a lighthouse" --model ./sd15 --guidance "apg:scale=10 + interval:low=0.3" --seeds 0-63

      pilotage generate --prompts captions.txt --preset embedded --exact -o runs/captions
    """
    from ..generation.folder import default_folder, run
    from ..generation.notes import notes
    from ..generation.pictures import Watch
    from ..generation.spec import RunSpec
    from .console import say_notes
    from .previews import preview_to
    from .progress import PictureProgress

    spec = given.resolve(RunSpec)
    if given.dry_run:
        print(spec.as_yaml(), end="")
        say_notes(notes(spec))
        return
    folder = Path(spec.output) if spec.output else default_folder(spec)
    say_notes(notes(spec))
    with PictureProgress(spec.batch_size) as bar:
        watch = Watch(bar.step, preview_to(folder) if spec.preview_every else None)
        done = run(spec, watch=watch, told=bar.picture, begun=lambda finished, of: bar.begin("pictures", finished, of))
    say_notes(done.notes)
    if not done.made:
        print(f"all {len(done.items)} pictures are in {done.folder} already")
        return
    evaluations = " + ".join(f"{count:.4g} {branch}" for branch, count in done.evaluations.items())
    print(f"{len(done.items)} picture{'s' * (len(done.items) > 1)} in {done.folder}: {evaluations} evaluations and "
          f"{done.seconds:.2f} s a picture")  # fmt: skip
