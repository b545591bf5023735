"""Fitted grids: better than named ones on the exact mixture, kept in files, and refused where they do not belong."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from generation_tools import pilotage, tiny_folder
from torch import Tensor

from pilotage.errors import UsageError
from pilotage.generation.scheduling import scheduler_for
from pilotage.generation.spec import RunSpec
from pilotage.samplers import make_grid, sample
from pilotage.samplers.denoiser import ExactDenoiser
from pilotage.samplers.fit_grid import FittedGrid, _Unknowns, best_of, error, fit_grid
from pilotage.samplers.sampler import Levels
from pilotage.samplers.schedule import NoiseSchedule, RectifiedFlow, stable_diffusion_schedule
from pilotage.zoo import toy

SD = stable_diffusion_schedule()


def starts(count: int, seed: int) -> Tensor:
    return torch.randn(count, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def along(schedule: NoiseSchedule, x: Tensor, sampler: str) -> Callable[[Levels], Tensor]:
    return lambda levels: sample(ExactDenoiser(toy.g3(), schedule), x, sampler=sampler, grid=levels)


def fine(schedule: NoiseSchedule, x: Tensor) -> Tensor:
    grid = "exponential" if schedule is SD else "flow"
    return sample(ExactDenoiser(toy.g3(), schedule), x, sampler="heun", grid=grid, steps=200)


@pytest.mark.parametrize("sampler", ["dpmpp-2m", "heun"])
def test_six_fitted_steps_beat_the_named_grids_on_fresh_starts(sampler: str) -> None:
    x, fresh = starts(96, 0), starts(300, 1)
    run, check, aim = along(SD, x, sampler), along(SD, fresh, sampler), fine(SD, fresh)
    named = {line: make_grid(line, SD, 6) for line in ("exponential", "karras", "trailing")}
    begin, loss = best_of(run, fine(SD, x), list(named.values()))
    fit = fit_grid(run, fine(SD, x), SD, begin, iterations=15)
    assert fit.history[0] == pytest.approx(loss) and list(fit.history) == sorted(fit.history, reverse=True)
    assert fit.history[-1] == pytest.approx(error(run(fit.levels), fine(SD, x)), rel=1e-9)
    assert len(fit.levels) == 7 and fit.levels[0] == begin[0] and fit.levels[-1] == SD.clean
    assert list(fit.rhos) == sorted(fit.rhos, reverse=True)
    fitted = error(check(fit.levels), aim)
    for line, levels in named.items():
        assert 1.9 * fitted < error(check(levels), aim), line


def test_it_begins_at_pure_noise_too() -> None:
    schedule = RectifiedFlow()
    x, begin = starts(64, 2), make_grid("flow", schedule, 5)
    aim = fine(schedule, x)
    fit = fit_grid(along(schedule, x, "dpmpp-2m"), aim, schedule, begin, iterations=8)
    assert math.isinf(fit.rhos[0]) and all(math.isfinite(r) for r in fit.rhos[1:])
    assert fit.history[-1] < 0.6 * fit.history[0]


def test_unknowns_are_the_levels_in_other_words() -> None:
    begin = make_grid("karras + ends:low=0.05", SD, 7)
    unknowns = _Unknowns(SD, begin[0], begin[0].lam, SD.lam_max)
    again = unknowns.levels(unknowns.theta(begin))
    assert [l.rho for l in again] == pytest.approx([l.rho for l in begin], rel=1e-12)
    assert again[0] == begin[0] and again[-1] == SD.clean


def test_a_perfect_grid_is_left_alone() -> None:
    """The aim is what one of the candidates gives: nothing is better."""
    x, begin = starts(16, 3), make_grid("karras", SD, 4)
    run = along(SD, x, "dpmpp-2m")
    fit = fit_grid(run, run(begin), SD, begin, iterations=2)
    assert fit.history[-1] == 0 and fit.levels == begin
    with pytest.raises(UsageError, match="one step"):
        fit_grid(run, x, SD, make_grid("karras", SD, 1))


# -- files -------------------------------------------------------------------------------------------------------------


@pytest.fixture(name="file")
def _file(tmp_path: Path) -> Path:
    rhos = tuple(level.rho for level in make_grid("karras + shift:by=1.5", SD, 5)[:-1])
    path = tmp_path / "grid.json"
    FittedGrid("embedded", "dpmpp-2m", "cfg:scale=3", rhos, 0.2, 0.1).save(path)
    return path


def test_a_file_is_a_grid(file: Path) -> None:
    levels = make_grid(f"fitted:file={file}", SD, 5)
    assert tuple(level.rho for level in levels[:-1]) == pytest.approx(FittedGrid.load(file).rhos, rel=1e-12)
    assert levels[-1] == SD.clean
    assert make_grid(f"fitted:file={file} + skip:first=2", SD, 5) == levels[2:]
    again = file.with_name("again.json")
    FittedGrid.load(file).save(again)
    assert again.read_text() == file.read_text()


def test_pure_noise_is_written_as_a_word(tmp_path: Path) -> None:
    made = FittedGrid("m", "euler", "none", (math.inf, 2.0, 0.3))
    made.save(tmp_path / "g.json")
    assert '"inf"' in (tmp_path / "g.json").read_text() and FittedGrid.load(tmp_path / "g.json") == made
    assert make_grid(f"fitted:file={tmp_path / 'g.json'}", RectifiedFlow(), 3)[0].alpha == 0


def test_what_a_grid_was_not_fitted_for_is_refused(file: Path) -> None:
    import diffusers

    with pytest.raises(UsageError, match="fitted for 5 steps, not 6"):
        make_grid(f"fitted:file={file}", SD, 6)
    with pytest.raises(UsageError, match=r"schedule that begins at rho = 14\.61, not inf"):
        make_grid(f"fitted:file={file}", RectifiedFlow(), 5)
    stock = diffusers.DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    right = {
        "prompts": "a",
        "grid": f"fitted:file={file}",
        "steps": 5,
        "sampler": "dpmpp-2m",
        "guidance": "cfg:scale=3",
    }
    scheduler_for(RunSpec(**right), stock).set_timesteps(5)
    for wrong, said in (
        ({"guidance": "cfg:scale=5"}, "guidance 'cfg:scale=3', not 'cfg:scale=5'"),
        ({"sampler": "heun"}, "sampler 'dpmpp-2m', not 'heun'"),
        ({"model": "./other"}, "model 'embedded', not './other'"),
    ):
        with pytest.raises(UsageError, match=said):
            scheduler_for(RunSpec(**{**right, **wrong}), stock)


def test_bad_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs a setting file="):
        make_grid("fitted", SD, 5)
    with pytest.raises(UsageError, match="cannot read the fitted grid"):
        make_grid(f"fitted:file={tmp_path / 'none.json'}", SD, 5)
    for text in ("{}", "[]", "no json", '{"rhos": [1]}'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(UsageError, match="holds no fitted grid"):
            FittedGrid.load(tmp_path / "bad.json")
    (tmp_path / "bad.json").write_text('{"model": "", "sampler": "", "rule": "", "rhos": [1.0, 2.0]}')
    with pytest.raises(UsageError, match="do not fall"):
        FittedGrid.load(tmp_path / "bad.json")


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_command_fits_and_its_grid_is_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "grid.json"
    how = ["--model", str(tiny_folder()), "--guidance", "cfg:scale=3", "--sampler", "DPM++ 2M", "--steps", "3"]
    flags = ["a", "b", "--seeds", "0-2", *how]
    assert pilotage("fit-grid", *flags, "--file", str(file), "--fine", "8", "--iterations", "1") == 0
    out = capsys.readouterr().out
    assert "fitted" in out and f'--grid "fitted:file={file}"' in out
    fit = FittedGrid.load(file)
    assert (fit.steps, fit.sampler, fit.rule) == (3, "dpmpp-2m", "cfg:scale=3")
    run = ["generate", "a", *how, "--grid", f"fitted:file={file}", "-o", str(tmp_path / "run")]
    assert pilotage(*run) == 0
    assert pilotage(*run[:-1], str(tmp_path / "other"), "--steps", "4") == 2
    assert "fitted for 3 steps, not 4" in capsys.readouterr().err
    assert pilotage("fit-grid", *flags, "--sampler", "Euler a", "--file", str(file)) == 2
    assert "without fresh noise" in capsys.readouterr().err
