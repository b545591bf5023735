"""The traps of films and sounds: several networks, given frames, schedulers and guiders of their own kind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import diffusers as D
import pytest
import tiny_videos
import torch
from attach_tools import Elsewhere, OtherCondition
from diffusers.hooks import LayerSkipConfig
from tiny_parts import run

import pilotage
from pilotage import guidance
from pilotage.errors import UsageError
from pilotage.guidance.pipelines import adapter_of
from pilotage.guidance.pipelines.layouts import match_time
from pilotage.guidance.pipelines.shadow import shadow_of
from pilotage.guidance.pipelines.video_rows import REFUSED, UNPROVEN, VIDEOS
from pilotage.guidance.rule import Ask, Context, Guide, Point, Rule


@dataclass(frozen=True)
class Seen(Rule):
    """CFG that keeps what it saw of each step."""

    shapes: list[Any]
    passes: ClassVar[int] = 1
    needs: ClassVar[tuple[str, ...]] = ("cond", "uncond")

    def guide(self, ctx: Context) -> Guide:
        c, u = yield Ask(), Ask("uncond")
        self.shapes.append(tuple(ctx.x.shape))
        assert c.native.shape == u.native.shape == ctx.x.shape
        return c.like(u.native + 5.0 * (c.native - u.native))


@pytest.mark.parametrize("name", sorted(tiny_videos.CASES))
def test_every_row_knows_the_networks_time_and_conditioning(name: str) -> None:
    """The way from x and level to the network's arguments and back; and levels that fall."""
    case = tiny_videos.CASES[name]()
    for rule in (Elsewhere(), OtherCondition()):
        with pilotage.attach(case.pipe, rule) as attached:
            run(case, 3 if "strength" in case.call else 2)
    rhos = [step["rho"] for step in attached.steps]
    assert len(rhos) >= 2 and all(a > b for a, b in pairwise(rhos))


# -- several networks -------------------------------------------------------------------------------------------------


def test_the_seam_sits_on_both_experts_and_leaves_both() -> None:
    case = tiny_videos.wan_two_experts()
    networks = (case.pipe.transformer, case.pipe.transformer_2)
    calls = [0, 0]
    for n, network in enumerate(networks):
        network.patch_embedding.register_forward_hook(lambda *_, n=n: calls.__setitem__(n, calls[n] + 1))
    with pilotage.attach(case.pipe, "none"):
        assert all(shadow_of(network, "forward") for network in networks)
        run(case)
    assert calls == [2, 2]  # the boundary lies between the second and the third of four steps
    assert not any(shadow_of(network, "forward") for network in networks)


class Louder:
    """A patch that doubles the network's output; it remembers where it was put."""

    def __init__(self) -> None:
        self.networks: list[Any] = []

    @contextmanager
    def on(self, network: Any) -> Iterator[None]:
        self.networks.append(network)
        handle = network.proj_out.register_forward_hook(lambda module, args, out: 2 * out)
        try:
            yield
        finally:
            handle.remove()


@dataclass(frozen=True)
class Patched(Rule):
    patch: Louder
    passes: ClassVar[int] = 0

    def guide(self, ctx: Context) -> Guide:
        c, double = yield Ask(), Ask(patch=self.patch)
        assert torch.allclose(double.native, 2 * c.native, rtol=1e-5, atol=1e-6)
        return c


def test_a_patch_is_put_on_the_expert_that_is_called() -> None:
    case, patch = tiny_videos.wan_two_experts(), Louder()
    with pilotage.attach(case.pipe, Patched(patch)):
        assert torch.equal(run(case), run(case, **case.off))
    assert patch.networks[:4] == [case.pipe.transformer] * 2 + [case.pipe.transformer_2] * 2


def test_the_second_expert_may_be_alone() -> None:
    """diffusers allows a run of the low-noise network without the other one."""
    only = tiny_videos.wan_two_experts()
    only.pipe.transformer = None
    only.pipe.register_to_config(boundary_ratio=1.1)
    stock = run(only)
    with pilotage.attach(only.pipe, guidance.CFG(5.0)) as attached:
        assert torch.equal(run(only, guidance_scale=2.0), stock)
    assert attached.evaluations == {"cond": 8, "uncond": 8}


def test_the_second_scale_is_overruled_too() -> None:
    case = tiny_videos.wan_two_experts()
    stock = run(case, guidance_scale_2=5.0)
    with pilotage.attach(case.pipe, guidance.CFG(5.0)):
        assert torch.equal(run(case, guidance_scale=2.0, guidance_scale_2=3.0), stock)
    assert (run(case, guidance_scale_2=3.0) - stock).abs().max() > 1e-4


# -- given frames -----------------------------------------------------------------------------------------------------

GIVEN = {  # the shape of what the scheduler steps, and so of the rule's x
    "LTXImageToVideoPipeline": (2, 8, 1, 8, 8),
    "SanaImageToVideoPipeline": (2, 16, 1, 4, 4),
    "HunyuanVideoImageToVideoPipeline": (1, 4, 1, 2, 2),
    "Kandinsky5I2VPipeline": (2, 5, 2, 2, 4),
    "WanImageToVideoPipeline": (2, 16, 2, 2, 2),
    "CogVideoXImageToVideoPipeline": (2, 2, 4, 2, 2),
}


@pytest.mark.parametrize("name", sorted(GIVEN))
def test_a_rule_sees_what_the_scheduler_steps(name: str) -> None:
    """Not the frames or channels that are given: their norms would be part of every norm."""
    case, shapes = tiny_videos.CASES[name](), []  # type: ignore[var-annotated]
    stock = run(case, 2)
    with pilotage.attach(case.pipe, Seen(shapes)):
        assert torch.equal(run(case, 2), stock)
    assert shapes == [GIVEN[name]] * 2
    with pilotage.attach(case.pipe, "cfg++:lam=0.4"):
        assert run(case, 2).isfinite().all()


def test_the_time_of_a_step_is_that_of_its_noisiest_tokens() -> None:
    times = [1000.0, 750.0, 500.0, 250.0]
    assert match_time(torch.tensor([[0.0, 750.0, 750.0]]), times, float) == 1
    case = tiny_videos.ltx_condition()
    with pilotage.attach(case.pipe, guidance.CFG(5.0)) as attached:
        run(case, denoise_strength=0.75)
    rhos = [step["rho"] for step in attached.steps]
    assert len(rhos) == 3 and rhos == sorted(rhos, reverse=True) and rhos[0] < float("inf")


def test_given_tokens_keep_their_time_at_another_level() -> None:
    case = tiny_videos.wan_given_first_frame()
    seen: list[torch.Tensor] = []
    case.pipe.transformer.condition_embedder.timesteps_proj.register_forward_hook(
        lambda m, args, out: seen.append(args[0])
    )

    @dataclass(frozen=True)
    class AtHalf(Rule):
        passes: ClassVar[int] = 0

        def guide(self, ctx: Context) -> Guide:
            (c,) = yield (Ask(at=Point(ctx.x, ctx.schedule.level_of_rho(1.0))),)
            return c

    with pilotage.attach(case.pipe, AtHalf()):
        run(case, 2)
    assert all(set(times.unique().tolist()) == {0.0, 500.0} for times in seen) and len(seen) == 2


# -- schedulers and guiders -------------------------------------------------------------------------------------------


def test_cogvideox_dpm_is_stepped_by_the_names_of_its_arguments() -> None:
    case = tiny_videos.cog_dpm()
    with pilotage.attach(case.pipe, "cfg:scale=5 + interval:low=0.5") as attached:
        ours = run(case)
    assert ours.isfinite().all() and attached.evaluations["uncond"] < attached.evaluations["cond"] == 8


def test_a_guider_of_three_branches_is_refused() -> None:
    case = tiny_videos.motif_text_to_video()
    pipe = case.pipe
    call = {k: v for k, v in case.call.items() if k != "guidance_scale"}
    skipped = LayerSkipConfig(indices=[0], fqn="transformer_blocks")
    pipe.guider = D.SkipLayerGuidance(
        guidance_scale=5.0, skip_layer_guidance_start=0.0, skip_layer_guidance_stop=1.0, skip_layer_config=skipped
    )
    stock = type(pipe).__mro__[2].__call__
    with pytest.raises(UsageError, match="more network calls"), pilotage.attach(pipe, guidance.CFG(5.0)):
        stock(pipe, **call, num_inference_steps=2)
    pipe.guider = D.ClassifierFreeGuidance(guidance_scale=1.0)  # one branch alone
    with pytest.raises(UsageError, match="a guider of two"), pilotage.attach(pipe, guidance.CFG(5.0)):
        stock(pipe, **call, num_inference_steps=2)


def test_a_film_in_segments_keeps_the_record_of_the_last() -> None:
    """The timesteps are set before each segment, and once more at the end."""
    case = tiny_videos.wan_animate()
    case.call |= dict(pose_video=tiny_videos.FILM * 2, face_video=tiny_videos.FILM * 2)
    stock = run(case, 2)
    with pilotage.attach(case.pipe, guidance.CFG(5.0)) as attached:
        assert torch.equal(run(case, 2), stock)
    assert attached.evaluations == {"cond": 4, "uncond": 4} and len(attached.steps) == 2


def test_ace_step_stops_guiding_where_its_own_interval_ends() -> None:
    case = tiny_videos.ace_step()
    with pilotage.attach(case.pipe, guidance.CFG(5.0)) as attached:
        run(case, cfg_interval_end=0.3)
    assert attached.evaluations == {"cond": 8, "uncond": 6}
    with pytest.raises(UsageError, match="cfg_interval_start=0"), pilotage.attach(case.pipe, guidance.CFG(5.0)):
        run(case, cfg_interval_start=0.3)
    with pilotage.attach(case.pipe, guidance.CFG(5.0)):
        run(case)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_cannot_be_steered_is_refused_with_a_way_out(name: str) -> None:
    pipe = type(name, (), {})()
    with pytest.raises(UsageError, match="use "):
        adapter_of(pipe)
    assert hasattr(D, name) and name not in VIDEOS


def test_the_lists_name_real_classes_once() -> None:
    for name in (*VIDEOS, *UNPROVEN, *REFUSED):
        assert hasattr(D, name), name
    assert not set(VIDEOS) & set(UNPROVEN) and not set(REFUSED) & set(UNPROVEN)
