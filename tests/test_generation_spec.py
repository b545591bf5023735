"""RunSpec: what is accepted, how sources combine, how it is written."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from pilotage.errors import UsageError
from pilotage.generation.notes import notes
from pilotage.generation.prompts import read_prompts
from pilotage.generation.seeds import read_seeds, spell_seeds
from pilotage.generation.settings import presets, purpose_of, read_set, resolve
from pilotage.generation.spec import RunSpec, with_settings


@pytest.mark.parametrize(
    ("given", "seeds", "spelled"),
    [
        ("0-3", (0, 1, 2, 3), "0-3"),
        ("1,4,9-12", (1, 4, 9, 10, 11, 12), "1,4,9-12"),
        ("17:2", ("17:2",), "17:2"),
        ("17:0, 3", (17, 3), "17,3"),
        (5, (5,), "5"),
        ([3, "7-8", "9:1"], (3, 7, 8, "9:1"), "3,7-8,9:1"),
    ],
)
def test_seeds(given: object, seeds: tuple, spelled: str) -> None:
    assert read_seeds(given) == seeds
    assert spell_seeds(seeds) == spelled
    assert read_seeds(spelled) == seeds


@pytest.mark.parametrize("given", ["", "a", "-3", "3-1", "1.5", "3:", "0-99999999999", "1,1", [], "1-3,2"])
def test_seeds_refused(given: object) -> None:
    with pytest.raises(UsageError, match="seed"):
        read_seeds(given)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stpes": 3}, "unknown key 'stpes': did you mean steps"),
        ({"steps": "many"}, "steps: must be"),
        ({"steps": 0}, "steps: must be greater"),
        ({"guidance": "cfgg"}, "did you mean cfg"),
        ({"guidance": "cfg:scale=big"}, "must be a number"),
        ({"sampler": "eular"}, "did you mean euler"),
        ({"grid": "karas"}, "did you mean karras"),
        ({"width": 33}, "width: must be a multiple of 8"),
        ({"dtype": "float8"}, "dtype: must be"),
        ({"device": "gpu"}, "device"),
        ({"mask": "m.png"}, "a mask needs the picture"),
        ({"image": "i.png", "strength": 0.05, "steps": 10}, "no step at all"),
        ({"prompts": ["a", "b"], "seeds": "0-2", "paired": True}, "as many seeds as prompts"),
    ],
)
def test_one_line_for_what_is_wrong(settings: dict, message: str) -> None:
    with pytest.raises(UsageError) as raised:
        RunSpec(**settings)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_precedence_default_preset_file_flag(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("steps: 11\nsampler: heun\ncall: {eta: 0.5}\n")
    assert RunSpec().steps == 25
    assert RunSpec(model="./other").steps == 30  # the defaults suit the model
    spec = resolve(RunSpec, "sd15", file, {"sampler": "ddim", "seeds": None}, ["call.clip_skip=2", "negative=3"])
    assert spec.guidance == "cfg:scale=7.5" or spec.guidance == "cfg"  # preset
    assert spec.steps == 11  # file over preset
    assert spec.sampler == "ddim"  # flag over file
    assert spec.call == {"eta": 0.5, "clip_skip": 2}
    assert spec.seeds == (0,)


def test_the_head_of_a_run_folder_is_a_settings_file(tmp_path: Path) -> None:
    spec = RunSpec(prompts=["a"], seeds="3-5", steps=7)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({"spec": spec.plain(), "versions": {}}))
    assert resolve(RunSpec, config=tmp_path / "run.yaml") == spec


def test_yaml_round_trip() -> None:
    spec = RunSpec(
        prompts=["two red stars", 'é: "#1"'], seeds="0-3,9:1", guidance="apg + interval:low=0.3", grid="karras"
    )
    assert RunSpec(**yaml.safe_load(spec.as_yaml())) == spec
    assert RunSpec(**spec.plain()) == spec


def test_pictures_cross_or_pair() -> None:
    assert RunSpec(prompts=["a", "b"], seeds="0-1").pictures() == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    assert RunSpec(prompts=["a", "b"], seeds="0-1", paired=True).pictures() == [("a", 0), ("b", 1)]
    with pytest.raises(UsageError, match="no prompt"):
        RunSpec().pictures()


def test_settings_inside_settings() -> None:
    assert with_settings({"a": {"b": 1}}, {"a.c": 2}) == {"a": {"b": 1, "c": 2}}
    with pytest.raises(UsageError, match="no settings inside"):
        with_settings({"a": 1}, {"a.b": 2})
    assert read_set(["x=1", "y=a: b: c", "z=[1, 2]"]) == {"x": 1, "y": "a: b: c", "z": [1, 2]}
    with pytest.raises(UsageError, match="--set"):
        read_set(["steps"])


@pytest.mark.parametrize("name", presets())
def test_every_preset_is_valid_and_says_its_purpose(name: str) -> None:
    from pilotage.generation.comparison import CompareSpec

    assert len(purpose_of(presets()[name])) > 20
    assert resolve(CompareSpec, name).model


def test_prompt_files(tmp_path: Path) -> None:
    text, table = tmp_path / "p.txt", tmp_path / "p.csv"
    text.write_text("a red star\n\n two rings \n", encoding="utf-8-sig")
    assert read_prompts(text) == {"prompts": ["a red star", "two rings"]}
    table.write_text('prompt,seed\n"a, b",3\nc,17:2\n')
    assert read_prompts(table) == {"prompts": ["a, b", "c"], "seeds": ["3", "17:2"], "paired": True}
    table.write_text("text\nx\n")
    with pytest.raises(UsageError, match="column called prompt"):
        read_prompts(table)
    text.write_text("\n")
    with pytest.raises(UsageError, match="no prompts"):
        read_prompts(text)
    text.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(UsageError, match="UTF-8"):
        read_prompts(text)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"negative": "blue", "guidance": "none"}, "negative prompt has no effect"),
        ({"negative": "blue", "guidance": "cfg:scale=1"}, "negative prompt has no effect"),
        ({"negative": "blue", "guidance": "autoguidance"}, "negative prompt has no effect"),
        ({"weak": "w"}, "weak network has no effect"),
        ({"guidance": "none + interval:low=0.3"}, "modifiers"),
        ({"strength": 0.5}, "without image"),
        ({"rows_per_call": 8}, "without exact"),
        ({"lora_scale": 0.5}, "without lora"),
    ],
)
def test_inputs_without_effect_are_said(settings: dict, said: str) -> None:
    assert any(said in note for note in notes(RunSpec(**settings)))


@pytest.mark.parametrize(
    "settings", [{}, {"negative": "blue"}, {"negative": "blue", "guidance": "apg"}, {"guidance": "none"}]
)
def test_inputs_with_effect_are_not(settings: dict) -> None:
    assert notes(RunSpec(**settings)) == []
