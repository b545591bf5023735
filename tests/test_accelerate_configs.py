"""What ships for `accelerate launch`: accelerate reads each file and would start what its comments say."""

from __future__ import annotations

import argparse
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate import FullyShardedDataParallelPlugin
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_multi_gpu_env

FOLDER = Path(str(files("pilotage.configs"))) / "accelerate"
FILES = sorted(FOLDER.glob("*.yaml"))
SHARDED = [path for path in FILES if path.stem.startswith("fsdp")]
names = lambda path: path.stem  # noqa: E731
FREE_PORT = ("--main_process_port", "0")


def launched(path: Path, *flags: str) -> argparse.Namespace:
    """What accelerate makes of a file and flags."""
    given = ["--config_file", str(path), *FREE_PORT, *flags, "-m", "pilotage", "finetune"]
    args: argparse.Namespace = _validate_launch_command(launch_command_parser().parse_args(given))[0]
    return args


def environment(path: Path, *flags: str) -> dict[str, str]:
    """Of the processes it would start."""
    found: dict[str, str] = prepare_multi_gpu_env(launched(path, *flags))
    return found


def plugin(path: Path, monkeypatch: pytest.MonkeyPatch, *flags: str) -> Any:
    """How a process reads the variables that it is given."""
    for name, value in environment(path, *flags).items():
        if name.startswith(("ACCELERATE_", "FSDP_", "PARALLELISM_")):
            monkeypatch.setenv(name, value)
    return FullyShardedDataParallelPlugin()


def test_these_files_ship() -> None:
    packaged = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))
    assert "accelerate/*.yaml" in packaged["tool"]["setuptools"]["package-data"]["pilotage.configs"]
    assert {path.stem for path in FILES} == {"fsdp", "fsdp-hosts", "fsdp-offload", "gpus"}


@pytest.mark.parametrize("path", FILES, ids=names)
def test_accelerate_knows_every_key(path: Path) -> None:
    found = load_config_from_file(str(path))  # refuses unknown keys outside of fsdp_config
    assert found.mixed_precision == "no", "ours stands in the training's own settings"
    assert found.num_processes % found.num_machines == 0 and not found.use_cpu
    known = vars(launch_command_parser().parse_args(["x.py"]))
    assert set(found.fsdp_config) <= set(known), "a misspelt key would be passed over without a word"
    assert path.read_text(encoding="utf-8").startswith("# "), "says when to take it"


@pytest.mark.parametrize("path", FILES, ids=names)
def test_flags_go_before_the_file(path: Path) -> None:
    args = launched(path, "--num_processes", "4", "--num_machines", "1")
    assert (args.num_processes, args.num_machines) == (4, 1)
    assert environment(path)["ACCELERATE_MIXED_PRECISION"] == "no"


def test_a_process_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACCELERATE_USE_FSDP", raising=False)
    args = launched(FOLDER / "gpus.yaml")
    assert args.multi_gpu and not args.use_fsdp and (args.num_processes, args.num_machines) == (8, 1)
    assert "ACCELERATE_USE_FSDP" not in environment(FOLDER / "gpus.yaml")


@pytest.mark.parametrize("path", SHARDED, ids=names)
def test_sharded_by_the_second_version(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_config_from_file(str(path)).distributed_type == DistributedType.FSDP
    given = environment(path)
    assert given["ACCELERATE_USE_FSDP"] == "true" and given["FSDP_VERSION"] == "2"
    assert given["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "false", "transformers would leave text encoders empty"
    assert "ACCELERATE_USE_DEEPSPEED" not in given
    found = plugin(path, monkeypatch)
    assert found.fsdp_version == 2 and found.reshard_after_forward is True
    assert found.transformer_cls_names_to_wrap is None, "the network's own blocks"
    offloads = type(found.cpu_offload).__name__ == "CPUOffloadPolicy"
    assert offloads == (path.stem == "fsdp-offload")


def test_blocks_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    found = plugin(FOLDER / "fsdp.yaml", monkeypatch, "--fsdp_transformer_layer_cls_to_wrap", "OneBlock,OtherBlock")
    assert found.transformer_cls_names_to_wrap == ["OneBlock", "OtherBlock"]


def test_two_hosts_of_eight() -> None:
    args = launched(FOLDER / "fsdp-hosts.yaml", "--machine_rank", "1", "--main_process_ip", "first")
    given = prepare_multi_gpu_env(args)
    assert (args.nnodes, args.nproc_per_node, args.node_rank) == ("2", "8", 1)
    assert args.rdzv_endpoint.startswith("first:") and args.rdzv_backend == "static"
    assert "ACCELERATE_USE_PARALLELISM_CONFIG" not in given, "one piece for each of the 16"


def test_a_copy_on_each_host(tmp_path: Path) -> None:
    """The lines that stand there as a comment, taken in."""
    text = (FOLDER / "fsdp-hosts.yaml").read_text(encoding="utf-8")
    head, mark, tail = text.partition("# parallelism_config:")
    path = tmp_path / "copies.yaml"
    path.write_text(head + "\n".join(line.removeprefix("# ") for line in (mark + tail).splitlines()), encoding="utf-8")
    assert yaml.safe_load(path.read_text(encoding="utf-8"))["parallelism_config"]
    given = environment(path, "--main_process_ip", "first")
    assert given["PARALLELISM_CONFIG_DP_REPLICATE_SIZE"] == "2" and given["PARALLELISM_CONFIG_DP_SHARD_SIZE"] == "8"
    assert given["ACCELERATE_USE_PARALLELISM_CONFIG"] == "true" and given["FSDP_VERSION"] == "2"
