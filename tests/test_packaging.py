"""The traps of folders at the top that are sub-packages of one import name."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
FOLDERS = {name.removeprefix("pilotage.").split(".")[0] for name in SETTINGS["package-dir"]} - {"pilotage"}


def run(code: str, cwd: Path, path: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(path), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, *flags, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the built wheel installed in it. Built from a copy, so that no stale build/ can help."""
    copy = tmp_path_factory.mktemp("clone")
    tracked = subprocess.check_output(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, text=True
    )
    for name in tracked.splitlines():
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((ROOT / name).read_bytes())
    wheels, target = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip"]
    subprocess.run([*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(wheels), str(copy)], check=True)
    with zipfile.ZipFile(next(wheels.glob("*.whl"))) as wheel:
        wheel.extractall(target)
    return target


def modules_below(folder: Path, prefix: str) -> list[str]:
    paths = (p.relative_to(folder).with_suffix("") for p in folder.rglob("*.py"))
    names = (".".join((prefix, *p.parts)) for p in paths)
    return sorted(name.removesuffix(".__init__") for name in names if not name.endswith(".__main__"))


def test_wheel_holds_every_module_and_imports_it_elsewhere(site: Path, tmp_path: Path) -> None:
    wanted = {m for folder in FOLDERS for m in modules_below(ROOT / folder, f"pilotage.{folder}")}
    assert wanted <= set(modules_below(site / "pilotage", "pilotage")), "list every sub-package in pyproject.toml"
    done = run(f"import importlib\nfor m in {sorted(wanted)!r}: importlib.import_module(m)", tmp_path, site, "-P")
    assert done.returncode == 0, done.stderr[-2000:]


def test_nothing_lands_beside_the_package(site: Path) -> None:
    top = {p.name for p in site.iterdir() if not p.name.endswith(".dist-info")}
    assert top == {"pilotage"}


def test_installed_package_works_with_the_clone_as_working_directory(site: Path) -> None:
    """`./pilotage` shadows the installed one; the package then finds its folders beside itself."""
    done = run("import pilotage, pilotage.guidance.cfg; print(pilotage.guidance.cfg.CFG(2.0).scale)", ROOT, site)
    assert done.returncode == 0 and done.stdout.strip() == "2.0", done.stderr[-2000:]


def test_package_data_is_shipped(site: Path) -> None:
    assert (site / "pilotage" / "py.typed").is_file()
    assert list((site / "pilotage" / "configs").glob("*.yaml")), "presets"


def test_no_absolute_import_of_our_own_folders() -> None:
    """An absolute `import guidance` would import a second copy."""
    wrong = []
    for folder in (*FOLDERS, "pilotage"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom) and node.level == 0:
                    names = [node.module or ""]
                wrong += [f"{path.relative_to(ROOT)}: {n}" for n in names if n.split(".")[0] in FOLDERS]
    assert not wrong


def test_import_pilotage_is_light(tmp_path: Path) -> None:
    code = (
        "import sys, pilotage; print([m for m in ('torch', 'transformers', 'diffusers', 'numpy') if m in sys.modules])"
    )
    assert run(code, tmp_path, ROOT).stdout.strip() == "[]"


def test_public_names_exist() -> None:
    """The contract of the lazy tables: every listed name can be had."""
    import pilotage

    for package in (pilotage, pilotage.samplers, pilotage.guidance, pilotage.evaluation, pilotage.generation):
        for name in package.__all__:
            assert getattr(package, name) is not None, f"{package.__name__}.{name}"


def test_torchvision_and_torch_fidelity_are_not_asked_for() -> None:
    text = (ROOT / "pyproject.toml").read_text() + (ROOT / "constraints.txt").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(w for extra in project["optional-dependencies"].values() for w in extra)]
    assert not [w for w in wanted if w.startswith(("torchvision", "torch-fidelity"))]
    assert "torchvision==" not in text and "torch-fidelity==" not in text
