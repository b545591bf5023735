"""Every command of the README runs as it is written, in the order in which it is written."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from generation_tools import ROOT, pilotage

TEXT = (ROOT / "README.md").read_text()
COMMANDS = [
    shlex.split(line, comments=True)[1:]
    for block in re.findall(r"```bash\n(.*?)```", TEXT, re.S)
    for line in block.splitlines()
    if line.startswith("pilotage ")
]
REAL = "embedded:test:2000"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("readme")


def test_the_readme_shows_what_there_is_to_see() -> None:
    shown = {"generate", "rerun", "compare", "score", "explain", "list", "doctor", "fit-linear-ag"}
    assert {command[0] for command in COMMANDS} >= shown
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", TEXT):
        assert (ROOT / target).exists(), f"README.md points to {target}, which is not there"


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_command_of_the_readme(
    command: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    if "--allow-download" in command:  # the settings only: tests download nothing
        command = [*command, "--dry-run"]
    command = ["embedded:test:140" if word == REAL else word for word in command]  # the same, sooner
    if command[0] in ("finetune", "distill"):  # the same, sooner
        soon = {"updates": 1, "batch": 2, "held_out": "embedded:heldout:2", "held_out_seeds": 2, "steps": 2}
        soon |= {"data": "embedded:train:4"} if command[0] == "distill" else {}
        command = [*command, *(word for item in soon.items() for word in ("--set", "{}={}".format(*item)))]
    code = pilotage(*command)
    out, err = capsys.readouterr()
    assert (code, bool(out)) == (0, True), err
