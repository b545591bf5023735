"""A network made worse, for autoguidance: dropout, fewer tokens, few bits. Against the same thing done by hand."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pilotage
from pilotage.errors import UsageError
from pilotage.guidance import Autoguidance, quantised
from pilotage.guidance.attention.layers import attentions
from pilotage.guidance.attention.patch import Attend, Scene
from pilotage.guidance.attention.weaker import DroppedOut, FewerTokens
from pilotage.guidance.weak_copy import rounded


def inputs() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    text = torch.randn(2, 7, 32, generator=generator)
    return dict(sample=torch.randn(2, 4, 8, 8, generator=generator), timestep=500, encoder_hidden_states=text)


def answer(network: Any, **changes: Any) -> Tensor:
    with torch.no_grad():
        return network(**{**inputs(), **changes}).sample


# -- patches ----------------------------------------------------------------------------------------------------------


def test_dropout_is_that_of_the_attention_outputs() -> None:
    """Every self-attention's output with a share of zeros, the others larger, as a copy with hooks has it."""
    network, seen = tiny.unet(), []
    handles = [
        layer.register_forward_hook(lambda module, args, out: seen.append(out)) for _, layer in attentions(network)
    ]
    with DroppedOut("", 0.3, 5).on(network):
        worse = answer(network)
    for handle in handles:
        handle.remove()
    zeros = torch.cat([(out == 0).flatten() for out in seen]).float().mean()
    assert abs(float(zeros) - 0.3) < 0.03
    for out in seen:
        assert torch.equal(out[0] == 0, out[1] == 0)  # all rows share a draw
    byhand = copy.deepcopy(network)
    masks = iter([(out != 0)[:1] for out in seen])
    for _, layer in attentions(byhand):
        layer.register_forward_hook(lambda module, args, out: out * next(masks) / 0.7)
    assert torch.allclose(answer(byhand), worse, atol=1e-5) and (worse - answer(network)).abs().max() > 1e-4


def test_fewer_tokens_are_seen() -> None:
    """As attention with a mask over the keys that are left out; text, in cross-attention, is seen whole."""
    network, keys = tiny.unet(), {}
    stock = F.scaled_dot_product_attention

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is stock:
                query, key = (*args, *(kwargs or {}).values())[:2]
                keys.setdefault(query.shape[2], []).append(key.shape[2])
            return func(*args, **(kwargs or {}))

    with Watch(), FewerTokens("", 0.5, 5).on(network):
        worse = answer(network)
    assert all(found == n // 2 for n, several in keys.items() for found in several if found != 7)
    assert any(7 in several for several in keys.values())
    assert (worse - answer(network)).abs().max() > 1e-4
    with FewerTokens("", 0.0, 5).on(network):
        assert torch.equal(answer(network), answer(network))


class Recorded(Attend):
    """An attention that answers with the keys it is given."""

    def run(self, **changes: Any) -> Any:
        return changes["key"][0, 0, :, 0].tolist(), changes


@pytest.mark.parametrize("pictures", [slice(6, None), slice(0, 10), slice(None)])
def test_text_in_the_same_sequence_is_seen_whole(pictures: slice) -> None:
    tokens = torch.arange(16.0)[None, None, :, None]
    mask = torch.arange(16.0).expand(1, 1, 16, 16)
    call = Recorded(tokens, tokens, tokens, {"attn_mask": mask})
    seen, changes = FewerTokens("", 0.4, 5).attended(call, pictures, "some.layer", Scene())
    every = set(range(16))
    shown = set(range(16)[pictures])
    assert every - shown <= set(seen) and seen == sorted(seen)
    assert len(shown & set(seen)) == round(0.6 * len(shown))
    assert changes["attn_mask"][0, 0, 0].tolist() == seen == changes["value"][0, 0, :, 0].tolist()


def test_joint_attention_is_known() -> None:
    case = tiny.stable_diffusion_3()
    with pilotage.attach(case.pipe, "none"):
        plain = tiny.run(case, 2)
    with pilotage.attach(case.pipe, "autoguidance:weak=tokens,drop=0.5"):
        assert (tiny.run(case, 2) - plain).abs().max() > 1e-4


@pytest.mark.parametrize("patch", [DroppedOut("", 0.3, 5), FewerTokens("", 0.3, 5)])
def test_a_draw_belongs_to_the_seed_and_the_layer(patch: Any) -> None:
    network = tiny.unet()
    before = torch.random.get_rng_state()
    with patch.on(network):
        first, second = answer(network), answer(network)  # a call that was split has one draw
        halves = [answer(network, **{k: v[i : i + 1] for k, v in inputs().items() if k != "timestep"}) for i in (0, 1)]
    assert torch.equal(first, second) and torch.allclose(torch.cat(halves), first, atol=1e-5)
    assert torch.equal(torch.random.get_rng_state(), before)
    with type(patch)("", 0.3, 6).on(network):
        assert not torch.equal(answer(network), first)
    assert not [name for name, part in network.named_modules() if "forward" in part.__dict__]


@pytest.mark.parametrize("weak", ["dropout", "tokens"])
def test_autoguidance_by_a_worse_version(weak: str) -> None:
    case = tiny.text_to_image()

    def made(**settings: Any) -> Tensor:
        with pilotage.attach(case.pipe, Autoguidance(2.0, weak=weak, **settings)) as run:
            out = tiny.run(case)
        assert run.evaluations == {"cond": 16}
        return out

    with pilotage.attach(case.pipe, "none"):
        plain = tiny.run(case)
    assert torch.allclose(made(drop=0.0), plain, atol=1e-5)
    assert (made() - plain).abs().max() > 1e-4 and torch.equal(made(), made())
    assert not torch.equal(made(seed=1), made()) and not torch.equal(made(layers="0"), made())


# -- a copy -----------------------------------------------------------------------------------------------------------


def test_weights_are_rounded_to_even_steps_an_output() -> None:
    weight = torch.randn(5, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    weight[4] = 0
    for bits in (2, 4, 8):
        made, most = rounded(weight, bits), 2 ** (bits - 1) - 1
        step = weight.flatten(1).abs().amax(1) / most
        assert ((made - weight).flatten(1).abs().amax(1) <= step / 2 + 1e-6).all()
        counts = (made[:4].flatten(1) / step[:4, None]).round()
        assert torch.allclose(made[:4].flatten(1), counts * step[:4, None], atol=1e-6)
        assert counts.abs().max() == most and (made[4] == 0).all()
    half = rounded(weight.half(), 4)
    assert half.dtype == torch.float16


def test_a_quantised_copy_is_worse_with_fewer_bits_and_guides() -> None:
    case = tiny.text_to_image()
    network = case.pipe.unet
    before = {name: value.clone() for name, value in network.state_dict().items()}
    apart = [float((answer(quantised(network, bits)) - answer(network)).abs().max()) for bits in (2, 4, 8, 16)]
    assert apart == sorted(apart, reverse=True) and apart[-1] < 1e-2 * apart[0] and apart[2] > 0
    weak = quantised(network, 3)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(p.requires_grad for p in weak.parameters()) and type(weak) is type(network)
    norms = [(a.weight, b.weight) for a, b in zip(network.modules(), weak.modules()) if isinstance(a, nn.GroupNorm)]
    assert norms and all(torch.equal(a, b) for a, b in norms)
    with pilotage.attach(case.pipe, "autoguidance:scale=2", networks={"weak": weak}) as run:
        guided = tiny.run(case)
    with pilotage.attach(case.pipe, "none"):
        assert (tiny.run(case) - guided).abs().max() > 1e-3
    assert run.evaluations == {"cond": 8, "weak": 8}
    for bits in (1, 17):
        with pytest.raises(UsageError, match="2 to 16 bits"):
            quantised(network, bits)
