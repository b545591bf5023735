"""The estimate of memory: what adds up, what is cut, and what was measured on the same networks."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tiny_parts import stable_diffusion, unet
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from pilotage.finetune.spec import FinetuneSpec
from pilotage.training.lora import LoraSettings, add_lora
from pilotage.training.memory_plan import MemoryPlan, Sharded, gathered_bytes, of_parts, piece, plan, saved_bytes
from pilotage.training.pipeline_learner import PipelineLearner


def planned(
    settings: dict[str, Any] | None = None, pipe: Any = None, base: Any = None, **changes: Any
) -> tuple[MemoryPlan, PipelineLearner]:
    told: dict[str, Any] = dict(prompts=["a red star"], reward="brightness", guidance="none", steps=4, rows=4)
    learner = PipelineLearner(pipe or stable_diffusion(), base=base, **(settings or {}))
    parts = [part for part in learner.pipe.components.values() if isinstance(part, nn.Module)]
    return plan(learner, FinetuneSpec(**{**told, **changes}), [*parts, *learner.further_modules()]), learner


def bytes_of(tensors: Any) -> int:
    return sum(t.numel() * t.element_size() for t in {id(t): t for t in tensors}.values())


# -- activations -----------------------------------------------------------------------------------------------------


def test_saved_bytes_are_those_of_the_graph() -> None:
    x, weight = torch.randn(4, 8, requires_grad=True), nn.Parameter(torch.randn(8, 8))
    assert saved_bytes(lambda: (x @ weight).tanh(), [weight]) == 2 * 4 * 8 * 4, "x, and the tanh"
    assert saved_bytes(lambda: (x @ weight).tanh()) == (2 * 4 * 8 + 8 * 8) * 4


def test_rows_multiply_activations_and_nothing_else() -> None:
    few, many = planned()[0], planned(rows=8)[0]
    assert many.step == 2 * few.step and many.decode == 2 * few.decode
    assert many.weights == few.weights and many.training == few.training


def test_guidance_that_is_trained_through_is_two_rows() -> None:
    guided, learner = planned(guidance="cfg:scale=3")
    alone = planned()[0]
    assert guided.step > 1.9 * alone.step
    told = FinetuneSpec(prompts=["a star"], reward="brightness", guidance="cfg:scale=3", steps=4, rows=4)
    parts = [part for part in learner.pipe.components.values() if isinstance(part, nn.Module)]
    assert plan(learner, told, parts, guidance="none").step == alone.step


def test_weights_in_half_precision_are_kept_once_for_all_rows() -> None:
    """Autocast casts each weight that learns, and the backward pass keeps the copy."""
    one, two, four = (
        planned({"lora": None, "precision": "bf16"}, train="all", precision="bf16", rows=n)[0] for n in (1, 2, 4)
    )
    assert four.step - two.step == 2 * (two.step - one.step)
    assert four.step < 4 * one.step


def test_checkpoints_store_inputs_and_one_block_is_computed_again() -> None:
    plain, learner = planned()
    stored, checkpointed = planned({"network_checkpoints": True})
    assert stored.weights == plain.weights and 0 < stored.decode < plain.decode
    assert stored.step < plain.step / 2
    states = 5 * 4 * 4 * bytes_of([torch.zeros(learner.shape)]) // 4
    before = saved_bytes_of(checkpointed)
    assert stored.step > 4 * before + states, "the largest block comes on top of the inputs"


def saved_bytes_of(learner: PipelineLearner) -> int:
    """Of one row, without what is computed again."""
    levels = learner.levels("trailing", 4)
    x, denoiser = learner.start(["0"], levels).requires_grad_(), learner.denoiser([""])
    return saved_bytes(
        lambda: denoiser(x, levels[0]).native, [*learner.network.parameters(), *learner.network.buffers()]
    )


def test_the_functions_of_checkpoints_are_put_back() -> None:
    _, learner = planned({"network_checkpoints": True})
    on = [part for part in learner.network.modules() if getattr(part, "gradient_checkpointing", False)]
    assert on and all(part._gradient_checkpointing_func == learner._block for part in on)


def test_offload_leaves_the_states_what_is_computed_again_and_the_decoder() -> None:
    plain, _ = planned()
    away, learner = planned(offload=True)
    assert away.step == 5 * 4 * bytes_of([torch.zeros(learner.shape)])
    assert away.decode == plain.decode, "the decoder is computed again in the backward pass, which offloads nothing"


# -- weights ---------------------------------------------------------------------------------------------------------


def test_everything_that_is_loaded_counts_once() -> None:
    found, learner = planned()
    trained = sum(p.numel() for p in learner.parameters)
    parts = [part for part in learner.pipe.components.values() if isinstance(part, nn.Module)]
    assert found.weights == bytes_of([t for part in parts for t in (*part.parameters(), *part.buffers())])
    assert found.training == 12 * trained and found.updating == 4 * trained
    assert planned(ema=0.9)[0].training == 16 * trained


def test_what_learns_beside_the_learner_has_gradients_but_no_average() -> None:
    _, learner = planned()
    head = [nn.Parameter(torch.zeros(10, 3))]
    told = FinetuneSpec(prompts=["a star"], reward="brightness", guidance="none", steps=4, rows=4, ema=0.9)
    more = plan(learner, told, [], further=head)
    assert more.training == 16 * sum(p.numel() for p in learner.parameters) + 12 * 30


@pytest.mark.parametrize(
    ("shape", "processes", "numbers"),
    [((8, 3), 2, 12), ((7, 3), 2, 12), ((1, 5), 4, 5), ((6,), 4, 2), ((), 3, 1), ((0, 4), 2, 0)],
)
def test_a_piece_is_the_largest(shape: tuple[int, ...], processes: int, numbers: int) -> None:
    assert piece(torch.zeros(shape), processes) == numbers


def test_what_is_cut_shrinks_and_the_rest_does_not() -> None:
    cut, whole = nn.Parameter(torch.zeros(8, 4)), nn.Parameter(torch.zeros(5))
    frozen = torch.zeros(16, 2, dtype=torch.bfloat16)
    alone = of_parts([cut, whole, frozen], [cut, whole])
    shared = of_parts([cut, whole, frozen], [cut, whole], sharded=Sharded(4, [cut, frozen], gathered=100))
    assert alone.weights == 128 + 20 + 64 and alone.training == 12 * 37
    assert shared.weights == 32 + 20 + 16 and shared.training == 12 * (8 + 5)
    assert shared.peak == shared.weights + shared.training + 100
    away = of_parts([cut, whole, frozen], [cut, whole], sharded=Sharded(4, [cut, frozen], offload=True))
    assert away.weights == 20 and away.training == 12 * 5 and away.host == 32 + 16 + 12 * 8


def test_meta_tensors_have_sizes() -> None:
    with torch.device("meta"):
        layer = nn.Linear(1000, 1000, bias=False)
    parameters: list[Tensor] = list(layer.parameters())
    assert of_parts(parameters, parameters, sharded=Sharded(8, parameters)).training == 12 * 125_000


# -- what is gathered ------------------------------------------------------------------------------------------------


def chain(*widths: int) -> tuple[nn.Sequential, list[nn.Module]]:
    """Blocks of 10 times these numbers, and 7 numbers beside them; nothing learns."""
    blocks: list[nn.Module] = [nn.Linear(width, 10, bias=False) for width in widths]
    return nn.Sequential(*blocks, nn.Linear(7, 1, bias=False)).requires_grad_(False), blocks


def test_gathered_are_the_rest_and_the_largest_blocks() -> None:
    network, blocks = chain(1, 2, 3, 4)
    assert gathered_bytes([(network, blocks)]) == 4 * (20 + 30 + 40 + 7)
    assert gathered_bytes([(network, blocks[:1])]) == 4 * (10 + 20 + 30 + 40 + 7), "one block, and the rest"
    assert gathered_bytes([(network, blocks), chain(5)]) == 4 * (20 + 30 + 40 + 7), "one network at a time"


def test_what_learns_is_gathered_with_its_gradients() -> None:
    network, blocks = chain(1, 2, 3, 4)
    network.requires_grad_(True)
    assert gathered_bytes([(network, blocks)]) == 2 * 4 * (30 + 40 + 7)
    assert gathered_bytes([(network, blocks), chain(99, 99, 99)]) == 4 * (7 + 3 * 990)


def test_a_tensor_belongs_to_the_innermost_block() -> None:
    inner, beside = nn.Linear(3, 10, bias=False), nn.Linear(1, 10, bias=False)
    outer = nn.Sequential(inner, beside)
    network = nn.Sequential(outer, nn.Linear(1, 2, bias=False)).requires_grad_(False)
    assert gathered_bytes([(network, [outer, inner])]) == 4 * (30 + 10 + 2)


# -- measured, on one of several processes of which the others are pretended -----------------------------------------


@pytest.fixture
def two() -> Iterator[Any]:
    """A mesh of two processes; this is the first, and what is sent goes nowhere."""
    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    try:
        yield dist.device_mesh.init_device_mesh("cpu", (2,))
    finally:
        dist.destroy_process_group()


class Living(TorchDispatchMode):
    """The most bytes alive at once of the storages that operations touch, as large as they are at that moment."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int, weakref.ref[Any]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self.see, (out, args, kwargs))
        alive = [storage() for storage in self.seen.values()]
        self.peak = max(self.peak, sum(storage.nbytes() for storage in alive if storage is not None))
        return out

    def see(self, tensor: Tensor) -> None:
        storage = local(tensor).untyped_storage()
        self.seen[storage._cdata] = weakref.ref(storage)


def local(tensor: Any) -> Tensor:
    return getattr(tensor, "_local_tensor", tensor)


def held_by(tensors: Sequence[Tensor]) -> int:
    """Bytes of their storages."""
    storages = {id(t): local(t).untyped_storage() for t in tensors}.values()
    return sum({storage._cdata: storage.nbytes() for storage in storages}.values())


def cut(network: nn.Module, blocks: Sequence[nn.Module], mesh: Any) -> None:
    for block in (*blocks, network):
        fully_shard(block, mesh=mesh, reshard_after_forward=True)


def like(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """Whole ones without memory."""
    return [nn.Parameter(p.detach().to("meta"), requires_grad=p.requires_grad) for p in parameters]


@pytest.mark.parametrize("adapters", [False, True])
def test_a_process_holds_what_was_said(two: Any, adapters: bool) -> None:
    """Weights, gradients and AdamW's state of a tiny UNet, sharded by two: to the byte."""
    network = unet().requires_grad_(not adapters)
    whole = like(network.parameters())
    blocks = [part for part in network.modules() if type(part).__name__ in network._no_split_modules]
    cut(network, blocks[::-1], two)
    learns = add_lora(network, LoraSettings(rank=4), 0) if adapters else list(network.parameters())
    own = like(learns) if adapters else []
    said = of_parts([*whole, *own], own or whole, sharded=Sharded(2, whole))

    assert held_by(list(network.parameters())) == said.weights
    optimiser = torch.optim.AdamW(learns, lr=1e-3)
    for parameter in learns:
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    moments = [moment for state in optimiser.state.values() for name, moment in state.items() if name != "step"]
    assert held_by([p.grad for p in learns if p.grad is not None]) + held_by(moments) == said.training


@pytest.mark.parametrize("settings", [{}, {"network_checkpoints": True}, {"lora": None}])
def test_a_plan_of_sharded_networks(two: Any, settings: dict[str, Any]) -> None:
    """As of whole ones, but for what is cut and what is gathered, also where a pass has left something whole."""
    everything = "lora" in settings
    train, networks = ("all", 2) if everything else ("lora", 1)
    whole, _ = planned(settings, train=train)
    pipe = stable_diffusion()
    base = copy.deepcopy(pipe.unet)
    cuts = sum(p.numel() for p in base.parameters())
    padding = cuts // 100  # of odd numbers of rows
    for network in (pipe.unet, base):
        blocks = [part for part in network.modules() if type(part).__name__ in network._no_split_modules]
        cut(network, blocks[::-1], two)
    found, learner = planned(settings, pipe, base if everything else None, train=train)
    parts = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    told = FinetuneSpec(prompts=["a red star"], reward="brightness", guidance="none", steps=4, rows=4, train=train)
    assert plan(learner, told, [*parts, *learner.further_modules()]) == found
    assert (found.step, found.decode) == (whole.step, whole.decode)
    assert 0 <= found.weights - (whole.weights - networks * cuts * 4 / 2) <= networks * padding * 4
    assert 0 <= found.training - whole.training / (2 if everything else 1) <= padding * 12 * everything
    assert 0 < found.gathered < 2 * networks * cuts * 4 and whole.gathered == found.host == 0


class Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.first, self.second = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


@pytest.mark.parametrize("learns", [False, True])
def test_what_is_gathered_was_said(two: Any, learns: bool) -> None:
    """The peak of both passes beside the pieces, with activations that are nothing."""
    blocks = [Block(256) for _ in range(6)]
    network = nn.Sequential(*blocks, nn.Linear(256, 256, bias=False)).requires_grad_(learns)
    said = gathered_bytes([(network, blocks)])
    cut(network, blocks, two)
    pieces = held_by(list(network.parameters()))
    x = torch.zeros(1, 256, requires_grad=True)
    with Living() as living:
        network(x).sum().backward()
    gradients = held_by([p.grad for p in network.parameters() if p.grad is not None])
    assert living.peak - pieces - gradients <= 1.02 * said
    assert living.peak - pieces >= (0.9 if learns else 0.98) * said
