"""Switches for memory: the rule still acts, and the pictures are those of a plain run within the dtype's tolerance."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from generation_tools import tiny_folder, tiny_settings, tiny_spec

from pilotage.errors import UsageError
from pilotage.generation import RunSpec, generate, read_png, rerun, run
from pilotage.generation.memory import Memory, choose
from pilotage.generation.models import Loaded, open_model
from pilotage.generation.notes import notes
from pilotage.generation.placing import BACKENDS, _to, chosen, modules_of, place, placed_beside, quantisation
from pilotage.generation.settings import resolve

ONE = {"prompts": ["a red star"], "seeds": "0-1"}


def drawn(spec: RunSpec, model: Loaded | None = None) -> tuple[np.ndarray, dict[str, float]]:
    """Pictures (N, H, W, 3), and the evaluations of one."""
    samples = list(generate(spec, model=model))
    return np.stack([np.asarray(sample.image, dtype=np.int16) for sample in samples]), samples[0].evaluations


@functools.cache
def plain(guidance: str, dtype: str = "float32") -> tuple[np.ndarray, dict[str, float]]:
    return drawn(tiny_spec(**ONE, guidance=guidance, dtype=dtype))


def close(one: np.ndarray, other: np.ndarray, levels: int = 1, share: float = 0.001) -> bool:
    """The promise for another arithmetic: so many levels in such a share of the values."""
    difference = np.abs(one - other)
    return bool(difference.max() <= levels and (difference > 0).mean() <= share)


def acts(
    switches: dict[str, Any], guidance: str, *, dtype: str = "float32", levels: int = 1, share: float = 0.02
) -> None:
    """Under these switches the rule evaluates what it evaluates otherwise, and its pictures are those without them."""
    pictures, evaluations = drawn(tiny_spec(**ONE, guidance=guidance, dtype=dtype, memory=switches))
    expected, counted = plain(guidance, dtype)
    unguided, _ = plain("none", dtype)
    assert evaluations == counted
    assert close(pictures, expected, levels, share), np.abs(pictures - expected).max()
    assert not close(pictures, unguided, levels, share), "guided"


# -- each switch ----------------------------------------------------------------------------------------------

RULES = ("cfg:scale=5", "apg:scale=5", "pag:weight=3", "cfg:scale=5 + adaptive:threshold=0.9")


SWITCHES: tuple[dict[str, Any], ...] = (
    {"channels_last": True}, {"vae_slicing": True}, {"vae_tiling": True}, {"vae_slicing": True, "vae_tiling": True},
)  # fmt: skip


@pytest.mark.parametrize(
    ("switches", "guidance"),
    [  # those of the autoencoder come after the rule: every one of them with every rule in `make test-all`
        pytest.param(switches, rule, marks=[pytest.mark.full] if place and rule != RULES[0] else [])
        for place, switches in enumerate(SWITCHES)
        for rule in RULES
    ],
    ids=str,
)
def test_the_rule_acts_and_the_picture_stays(switches: dict[str, Any], guidance: str) -> None:
    acts(switches, guidance)


@pytest.mark.parametrize("guidance", ["cfg:scale=5", "apg:scale=5"])
def test_attention_in_slices(guidance: str) -> None:
    acts({"attention_slicing": True}, guidance)


def test_rules_that_change_attention_refuse_slices() -> None:
    with pytest.raises(UsageError, match="SlicedAttnProcessor does not use torch's scaled_dot_product_attention"):
        drawn(tiny_spec(**ONE, guidance="pag:weight=3", memory={"attention_slicing": True}))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_in_half_precision_too(dtype: str) -> None:
    acts({"channels_last": True, "vae_slicing": True}, "cfg:scale=5", dtype=dtype, levels=8, share=0.6)


@pytest.mark.parametrize("guidance", ["cfg:scale=5", pytest.param("pag:weight=3", marks=pytest.mark.full)])
def test_compiled(guidance: str) -> None:
    """The seams stand before the compiled network, not inside. The backend changes nothing here."""
    acts({"compile": "eager"}, guidance)


@pytest.mark.full
def test_compiled_by_inductor() -> None:
    acts({"compile": True}, "cfg:scale=5")


def _waiting(model: Loaded, spec: RunSpec, offload: str) -> None:
    """The hooks of a GPU, with the computer's own memory in its place. diffusers calls it cpu:0, which accelerate takes
    for another device when it moves layers; parts are not concerned."""
    from accelerate import cpu_offload

    if offload == "model":
        _to(model.pipe, "model", "cpu")
        return
    further = model.networks(spec, ("weak",)).values() if spec.weak else ()
    for module in (*modules_of(model.pipe).values(), *further):
        cpu_offload(module, torch.device("cpu"), offload_buffers=len(module._parameters) > 0)
        assert all(p.device.type == "meta" for p in module.parameters()), "the weights wait elsewhere"


@pytest.mark.parametrize("offload", ["model", "sequential"])
@pytest.mark.parametrize("guidance", ["pag:weight=3", "autoguidance:scale=2"])
def test_offloaded(offload: str, guidance: str) -> None:
    """The same bits."""
    weak = str(Path(tiny_folder()).parent / "weak")
    spec = tiny_spec(**ONE, guidance=guidance, weak=weak if "auto" in guidance else None)
    expected, counted = drawn(spec)
    model = open_model(spec)
    _waiting(model, spec, offload)
    for _ in range(2):  # diffusers takes its hooks off and puts them on again after every call
        pictures, evaluations = drawn(spec, model)
        assert evaluations == counted and np.array_equal(pictures, expected)
    unguided, _ = plain("none")
    assert not close(expected, unguided, share=0.02)


@pytest.mark.parametrize("offload", ["model", "sequential"])
def test_offloading_is_that_of_diffusers(offload: str) -> None:
    """On the device of the spec; what cannot be offloaded is refused."""
    asked: list[tuple[str, str]] = []

    class Pipe:
        def enable_model_cpu_offload(self, device: str) -> None:
            asked.append(("model", device))

        def enable_sequential_cpu_offload(self, device: str) -> None:
            asked.append(("sequential", device))

    _to(Pipe(), offload, "cuda:1")
    assert asked == [(offload, "cuda:1")]

    class Fixed:
        def enable_model_cpu_offload(self, device: str) -> None:
            raise ValueError("a device map\nis set")

        enable_sequential_cpu_offload = enable_model_cpu_offload

    with pytest.raises(UsageError, match=r"Fixed cannot be offloaded: a device map is set; leave memory.offload out"):
        _to(Fixed(), offload, "cuda:1")


def test_offload_on_the_cpu_has_no_effect_and_says_so() -> None:
    spec = tiny_spec(**ONE, memory={"offload": "sequential"}, device="cpu")
    assert any("memory.offload has no effect" in note for note in notes(spec))
    assert all(p.device.type == "cpu" for p in open_model(spec).pipe.unet.parameters())


def test_a_transformer_with_what_it_knows() -> None:
    import tiny

    def pictures(memory: Memory) -> tuple[np.ndarray, dict[str, int]]:
        from pilotage import attach

        case, weak = tiny.CASES["FluxPipeline"](), tiny.CASES["FluxPipeline"]()
        case.pipe.set_progress_bar_config(disable=True)
        place(case.pipe, memory, "cpu")
        with attach(case.pipe, "autoguidance:scale=2", networks={"weak": weak.pipe.transformer}) as seen:
            made = tiny.run(case, **case.off)
        return np.asarray(made), seen.evaluations

    expected, counted = pictures(Memory())
    for memory in (Memory(vae_slicing=True), Memory(channels_last=True)):
        found, evaluations = pictures(memory)
        assert evaluations == counted and np.allclose(found, expected, atol=1e-4)


# -- what does not go -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("memory", "message"),
    [
        ({"quantize": "bitsandbytes_4bit"}, "needs the package bitsandbytes, which is not installed; leave it out"),
        ({"quantize": "torchao:config=Int8WeightOnlyConfig"}, "needs the package torchao"),
        ({"quantize": "bits"}, "unknown quantisation 'bits'"),
        ({"compile": "indoctor"}, "torch knows no backend 'indoctor'"),
    ],
)
def test_what_is_not_there_is_refused_in_one_line(memory: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as raised:
        open_model(tiny_spec(memory=memory))
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_the_embedded_model_is_not_quantised() -> None:
    with pytest.raises(UsageError, match="embedded model is small"):
        open_model(RunSpec(prompts=["a"], memory={"quantize": "bitsandbytes_8bit"}))


def test_a_pipeline_without_the_part_says_so() -> None:
    class Bare:
        components: dict[str, Any] = {"net": torch.nn.Linear(1, 1)}  # noqa: RUF012

    for memory, message in (
        (Memory(vae_tiling=True), "knows no tiling"),
        (Memory(vae_slicing=True), "knows no slicing"),
        (Memory(attention_slicing=True), "knows no attention slicing"),
    ):
        with pytest.raises(UsageError, match=message):
            place(Bare(), memory, "cpu")


def test_quantisation_is_passed_on_as_diffusers_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a package that is said to be there, the network alone gets the configuration with its settings."""
    import diffusers

    given: dict[str, Any] = {}

    class Config:
        def __init__(self, **settings: Any):
            given["settings"] = settings

    class Pipeline:
        def __init__(self, quant_mapping: dict[str, Any]):
            given["parts"] = quant_mapping

    monkeypatch.setattr("pilotage.generation.placing.find_spec", lambda package: True)
    monkeypatch.setattr(diffusers, "BitsAndBytesConfig", Config)
    monkeypatch.setattr(diffusers, "PipelineQuantizationConfig", Pipeline)
    assert isinstance(quantisation("bitsandbytes_4bit:bnb_4bit_quant_type=nf4"), Pipeline)
    assert given["settings"] == {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    assert set(given["parts"]) == {"unet", "transformer", "transformer_2"}
    assert quantisation(None) is None and set(BACKENDS) == {"bitsandbytes_4bit", "bitsandbytes_8bit", "torchao"}


# -- the block in a spec ------------------------------------------------------------------------------------------


def test_the_block_and_its_short_forms(tmp_path: Path) -> None:
    assert RunSpec(memory="auto").memory == Memory(auto=True)
    assert RunSpec(memory="none").memory == RunSpec().memory == Memory()
    spec = resolve(RunSpec, None, None, {"memory": {"auto": True}}, ["memory.vae_tiling=true", "memory.compile=true"])
    assert spec.memory == Memory(auto=True, vae_tiling=True, compile="inductor")
    assert RunSpec(**yaml.safe_load(spec.as_yaml())) == spec and RunSpec(**spec.plain()) == spec
    assert "memory" not in RunSpec().as_yaml()
    for given, message in (
        ({"offlaod": "model"}, "unknown key 'memory.offlaod': did you mean memory.offload"),
        ({"offload": "disk"}, "memory.offload: must be 'none', 'model' or 'sequential'"),
        (7, "memory is auto, none, or a block"),
    ):
        with pytest.raises(UsageError) as raised:
            RunSpec(memory=given)
        assert message in str(raised.value)


def test_identity_holds_what_makes_other_pictures_and_nothing_else() -> None:
    same = Memory(auto=True, offload="model", vae_slicing=True, attention_slicing=True, channels_last=True, compile="x")
    assert RunSpec(memory=same).identity() == RunSpec().identity()
    tiled = RunSpec(memory={"vae_tiling": True}).identity()
    assert tiled == RunSpec().identity() | {"memory.vae_tiling": True}
    assert RunSpec(memory={"quantize": "torchao"}).identity()["memory.quantize"] == "torchao"


def test_a_folder_takes_other_switches_but_not_other_pictures(tmp_path: Path) -> None:
    settings = tiny_settings(output=str(tmp_path / "run"))
    assert run(RunSpec(**settings)).made == 6
    (tmp_path / "run" / "000002.png").unlink()
    assert run(RunSpec(**settings, memory={"vae_slicing": True})).made == 1
    with pytest.raises(UsageError, match=r"memory\.vae_tiling is None there and True here"):
        run(RunSpec(**settings, memory={"vae_tiling": True}))
    other = RunSpec(**settings | {"output": str(tmp_path / "tiled")}, memory={"vae_tiling": True})
    run(other)
    with pytest.raises(UsageError, match=r"memory\.vae_tiling is True there and None here"):
        run(other.changed(memory="none"))
    record, _ = read_png(tmp_path / "tiled" / "000000.png")
    assert record.spec.memory == Memory(vae_tiling=True)
    assert rerun(tmp_path / "tiled" / "000000.png", trust=True).largest == 0


# -- auto -----------------------------------------------------------------------------------------------------------

GB = 10**9
# Bytes in half precision of all parts and of the largest one, and the side of a tile: Stable Diffusion XL, and Flux.
SDXL, FLUX = (6.9 * GB, 5.1 * GB, 1024), (33.6 * GB, 23.8 * GB, 1024)
SLICED = {"vae_slicing": True}
TILED = SLICED | {"vae_tiling": True}
PARTS = {"offload": "model"}


@pytest.mark.parametrize(
    ("model", "free", "side", "pictures", "expected"),
    [
        (SDXL, 80, 1024, 1, {}),
        (SDXL, 12, 1024, 1, {}),
        (SDXL, 24, 1024, 8, SLICED),
        (SDXL, 9, 1024, 1, PARTS | SLICED),  # a tile is the whole picture, so that tiling would help nothing
        (SDXL, 24, 2048, 2, SLICED),
        (SDXL, 12, 2048, 1, TILED),
        (SDXL, 10, 2048, 1, PARTS | TILED),
        (SDXL, 4, 1024, 1, {"offload": "sequential"} | SLICED),
        (SDXL, 4, 2048, 1, {"offload": "sequential"} | TILED),
        (FLUX, 80, 1024, 1, {}),
        (FLUX, 40, 1024, 1, {}),
        (FLUX, 32, 1024, 1, PARTS | SLICED),
        (FLUX, 24, 1024, 1, {"offload": "sequential"} | SLICED),
        (FLUX, 0, 1024, 1, {"offload": "sequential"} | SLICED),
    ],
)
def test_auto_by_the_table(
    model: tuple[float, float, int], free: float, side: int, pictures: int, expected: dict[str, Any]
) -> None:
    weights, largest, tile = (int(size) for size in model)
    assert choose(int(free * GB), weights, largest, 2, side**2, tile**2, pictures, 2 * pictures) == expected


def test_less_memory_never_chooses_something_faster() -> None:
    order = [{}, SLICED, TILED, PARTS | SLICED, PARTS | TILED, {"offload": "sequential"} | TILED]
    for count in (1, 4, 16):
        seen = [choose(f * GB // 4, 7 * GB, 5 * GB, 2, 1536**2, 512**2, count, 2 * count) for f in range(600, 0, -1)]
        places = [order.index(settings) for settings in seen]
        assert places == sorted(places) and places[0] == 0 and places[-1] == 5


def test_auto_fills_in_what_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = open_model(tiny_spec()).pipe
    monkeypatch.setattr("pilotage.generation.placing.free_bytes", lambda device: 1000)
    spec = tiny_spec(memory={"auto": True, "compile": "eager"})
    found = chosen(spec.memory, pipe, spec, "cuda")
    assert found == Memory(auto=True, compile="eager", offload="sequential", vae_slicing=True)
    spec = tiny_spec(memory={"auto": True, "offload": "model"})
    assert chosen(spec.memory, pipe, spec, "cuda").offload == "model"
    assert chosen(spec.memory, pipe, spec, "cpu").vae_slicing
    assert chosen(Memory(), pipe, spec, "cuda") == Memory()
    monkeypatch.setattr("pilotage.generation.placing.free_bytes", lambda device: 10**12)
    assert chosen(Memory(auto=True), pipe, spec, "cuda") == Memory(auto=True)


def test_what_auto_chose_holds_for_the_whole_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Begun where memory is short and ended where it is not: the same switches. They stand in every picture."""
    from pilotage.generation import placing

    monkeypatch.setattr(placing, "choose", lambda *given, **more: {"vae_slicing": True, "vae_tiling": True})
    spec = tiny_spec(output=str(tmp_path / "run"), memory="auto")
    assert run(spec).made == 6
    kept = yaml.safe_load((tmp_path / "run" / "run.yaml").read_text())["spec"]["memory"]
    assert kept == {"vae_slicing": True, "vae_tiling": True}
    (tmp_path / "run" / "000005.png").unlink()
    monkeypatch.setattr(placing, "choose", lambda *given, **more: {})
    assert run(spec).made == 1 and run(spec).made == 0
    for number in (0, 5):
        assert read_png(tmp_path / "run" / f"{number:06d}.png")[0].spec.memory == Memory(**kept)
    with pytest.raises(UsageError, match=r"memory\.vae_tiling"):
        run(spec.changed(memory="none"))


def test_further_networks_get_the_same_switches() -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3))
    placed_beside(network, Memory(channels_last=True, compile="eager"), "cpu")
    assert network[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert network._compiled_call_impl is not None
