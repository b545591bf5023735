"""What fine-tuning and distilling large models take of each GPU: counted, not run.

    python benchmarks/memory_on_paper.py [--only flux] [--check]

Networks, text encoders and VAEs are built from their published configurations without memory (the meta device; their
parameter counts are compared with the published ones), and a training step goes through them as fake tensors, so that
every activation is counted and nothing is computed. The arithmetic is `training.memory_plan`'s, which a run shows
before it starts. Settings are those of the presets: bfloat16, checkpoints in the network, AdamW, no average, one row
(two in the network where classifier-free guidance is trained through), LoRAs of rank 16 (fine-tuning) and 64
(distilling) on the attention. Fine-tuning has a base to come back to where all weights learn and decodes the picture
with a gradient; distilling has a student, a fake and a teacher. Norms compute in float32, as under autocast on a GPU.

--check: also the backward pass, the most bytes of tensors alive at once in both beside weights and gradients, and a
step without checkpoints in the network.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers as D
import torch
import transformers as T
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from pilotage.distill.head import _of_map as layers_of_map
from pilotage.training.lora import LoraSettings, add_lora
from pilotage.training.memory_plan import MemoryPlan, Sharded, gathered_bytes, of_parts, step_of

sys.path.append(str(Path(__file__).parent))
from adjoint_memory import Alive

GIB = 2**30
GPUS = (24, 40, 80)  # GB as on the box: the sizes of GPUs, of which nine tenths are taken as usable
HALF = torch.bfloat16


# -- models of published size ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """millions: of parameters, as published or as its checkpoint has them."""

    make: Callable[[], nn.Module]
    millions: float


def clip(width: int, layers: int, heads: int, projected: bool, act: str = "quick_gelu") -> nn.Module:
    config = T.CLIPTextConfig(
        hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers, num_attention_heads=heads,
        projection_dim=width, hidden_act=act,
    )  # fmt: skip
    cls = T.CLIPTextModelWithProjection if projected else T.CLIPTextModel
    made: nn.Module = cls(config)
    return made


def t5_xxl() -> nn.Module:
    config = T.T5Config(
        vocab_size=32128, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64,
        feed_forward_proj="gated-gelu", tie_word_embeddings=False,
    )  # fmt: skip
    made: nn.Module = T.T5EncoderModel(config)
    return made


def vae(channels: int = 4, quant: bool = True) -> nn.Module:
    made: nn.Module = D.AutoencoderKL(
        block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        use_quant_conv=quant, use_post_quant_conv=quant,
    )  # fmt: skip
    return made


CLIP_L, CLIP_L_PROJECTED = Part(lambda: clip(768, 12, 12, False), 123.1), Part(lambda: clip(768, 12, 12, True), 123.7)
BIG_G, XXL = Part(lambda: clip(1280, 32, 20, True, "gelu"), 694.7), Part(t5_xxl, 4762.3)
VAE_4, VAE_16 = Part(vae, 83.7), Part(lambda: vae(16, False), 83.8)


def sd15() -> nn.Module:
    made: nn.Module = D.UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    return made


def sdxl() -> nn.Module:
    made: nn.Module = D.UNet2DConditionModel(
        sample_size=128, block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10), attention_head_dim=(5, 10, 20), cross_attention_dim=2048,
        addition_embed_type="text_time", addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816,
        use_linear_projection=True,
    )  # fmt: skip
    return made


def sd3(layers: int = 24, norm: str | None = None) -> nn.Module:
    made: nn.Module = D.SD3Transformer2DModel(
        sample_size=128, patch_size=2, in_channels=16, out_channels=16, num_layers=layers, attention_head_dim=64,
        num_attention_heads=layers, joint_attention_dim=4096, caption_projection_dim=64 * layers,
        pooled_projection_dim=2048, pos_embed_max_size=192, qk_norm=norm,
    )  # fmt: skip
    return made


def flux() -> nn.Module:
    made: nn.Module = D.FluxTransformer2DModel(guidance_embeds=True)
    return made


def of_unet(network: Any, x: Tensor) -> Tensor:
    rows, width = len(x), network.config.cross_attention_dim
    further = {}
    if network.config.addition_embed_type:
        further = {"added_cond_kwargs": {"text_embeds": half(rows, 1280), "time_ids": half(rows, 6)}}
    found: Tensor = network(x, torch.ones(rows), half(rows, 77, width), return_dict=False, **further)[0]
    return found


def of_sd3(network: Any, x: Tensor) -> Tensor:
    rows = len(x)
    found: Tensor = network(
        x, half(rows, 333, 4096), half(rows, 2048), torch.ones(rows), return_dict=False
    )[0]  # fmt: skip
    return found


def of_flux(network: Any, x: Tensor) -> Tensor:
    rows, side = len(x), x.shape[-1] // 2
    tokens = x.unflatten(3, (side, 2)).unflatten(2, (side, 2)).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
    found: Tensor = network(
        tokens, half(rows, 512, 4096), half(rows, 768), torch.ones(rows), torch.zeros(side * side, 3),
        torch.zeros(512, 3), torch.full((rows,), 3.5), return_dict=False,
    )[0]  # fmt: skip
    return found


def half(*shape: int) -> Tensor:
    return torch.zeros(*shape, dtype=HALF)


@dataclass(frozen=True)
class Model:
    """side: of the pictures. guided: is classifier-free guidance trained through, two rows a picture?"""

    name: str
    network: Part
    call: Callable[[Any, Tensor], Tensor]
    side: int
    vae: Part
    encoders: tuple[Part, ...]
    guided: bool = True

    @property
    def channels(self) -> int:
        return 4 if self.vae is VAE_4 else 16


SD3_ENCODERS = (CLIP_L_PROJECTED, BIG_G, XXL)
MODELS = (
    Model("SD 1.5, 512", Part(sd15, 859.5), of_unet, 512, VAE_4, (CLIP_L,)),
    Model("SDXL, 1024", Part(sdxl, 2567.5), of_unet, 1024, VAE_4, (CLIP_L, BIG_G)),
    Model("SD3 medium, 1024", Part(sd3, 2028.3), of_sd3, 1024, VAE_16, SD3_ENCODERS),
    Model("SD3.5 large, 1024", Part(lambda: sd3(38, "rms_norm"), 8056.6), of_sd3, 1024, VAE_16, SD3_ENCODERS),
    Model("FLUX.1-dev, 512", Part(flux, 11901.4), of_flux, 512, VAE_16, (CLIP_L, XXL), guided=False),
    Model("FLUX.1-dev, 1024", Part(flux, 11901.4), of_flux, 1024, VAE_16, (CLIP_L, XXL), guided=False),
)


# -- without memory --------------------------------------------------------------------------------------------------


def on_meta(part: Part, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The module without its numbers; its size is checked against the published one."""
    with torch.device("meta"):
        made = replaced(part.make(), lambda old: old.detach().to(dtype)).requires_grad_(False)
    found = sum(p.numel() for p in made.parameters()) / 1e6
    assert abs(found / part.millions - 1) < 2e-3, f"{type(made).__name__}: {found:.1f} million, not {part.millions}"
    return made


def replaced(network: nn.Module, make: Callable[[nn.Parameter], Tensor]) -> nn.Module:
    """With other parameters; tied ones stay tied. Module.to would swap tensors, which fake ones do not bear."""
    made: dict[int, nn.Parameter] = {}
    for module in network.modules():
        for name, old in module._parameters.items():
            if old is not None and id(old) not in made:
                made[id(old)] = nn.Parameter(make(old), requires_grad=old.requires_grad)
            module._parameters[name] = None if old is None else made[id(old)]
    return network


def as_fake(network: nn.Module) -> nn.Module:
    """Its tensors in the fake mode that is on, as if they were on the CPU."""
    for module in network.modules():
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else torch.empty(buffer.shape, dtype=buffer.dtype)
    return replaced(network, lambda old: torch.empty(old.shape, dtype=old.dtype))


@contextmanager
def norms_in_float32() -> Iterator[None]:
    """As autocast has it on a GPU; on the CPU it leaves them as they are."""
    before = nn.functional.layer_norm, nn.functional.group_norm

    def layer(x: Tensor, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Tensor:
        return before[0](x.float(), shape, full(weight), full(bias), eps)

    def group(x: Tensor, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Tensor:
        return before[1](x.float(), groups, full(weight), full(bias), eps)

    nn.functional.layer_norm, nn.functional.group_norm = layer, group
    try:
        yield
    finally:
        nn.functional.layer_norm, nn.functional.group_norm = before


def full(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.float()


@dataclass(frozen=True)
class Counted:
    """Bytes of one step: what `memory_plan` counts, and, if asked, the most alive at once in both passes."""

    step: int
    alive: int = 0


def a_step(model: Model, learns: LoraSettings | None, rows: int, check: bool, checkpoints: bool = True) -> Counted:
    network: Any = on_meta(model.network, HALF if learns else torch.float32)
    if learns is None:
        network.requires_grad_(True)
    else:
        add_lora(network, learns, 0)
    with FakeTensorMode(), norms_in_float32():
        as_fake(network)
        if checkpoints:
            network.enable_gradient_checkpointing()
        network.train()  # some networks store inputs only in training; nothing here has dropout
        kept = [*network.parameters(), *network.buffers()]
        x = torch.zeros(rows, model.channels, model.side // 8, model.side // 8, requires_grad=True)

        def run() -> Tensor:
            with torch.autocast("cpu", HALF, cache_enabled=False):
                return model.call(network, x.to(HALF if learns else torch.float32))

        step = step_of(run, network, kept).both
        if not check:
            return Counted(step)
        with Alive() as alive:
            alive.sizes |= {tensor.untyped_storage()._cdata: 0 for tensor in kept}  # views of weights are no bytes
            for parameter in network.parameters():
                parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
            gradients = alive.now
            run().sum().backward()
        return Counted(step, alive.peak - gradients)


def a_picture(model: Model) -> int:
    """Bytes of decoding one with a gradient, in float32 and with checkpoints."""
    decoder: Any = on_meta(model.vae)
    decoder.enable_gradient_checkpointing()
    with FakeTensorMode():
        as_fake(decoder)
        x = torch.zeros(1, model.channels, model.side // 8, model.side // 8, requires_grad=True)
        return step_of(lambda: decoder.decode(x, return_dict=False)[0], decoder, decoder.parameters()).both


# -- the tables ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """rank: of the adapters, None where all weights learn. decodes: with a gradient. roles: that learn."""

    name: str
    rank: int | None
    roles: int
    decodes: bool


WORKS = (
    Work("fine-tune, LoRA", 16, 1, True),
    Work("fine-tune, all", None, 1, True),
    Work("distil, LoRA", 64, 2, False),
    Work("distil, all", None, 2, False),
)
SETUPS = (("one GPU", 1, False), ("8 GPUs", 8, False), ("8, offloaded", 8, True))


def loaded(model: Model, work: Work) -> tuple[list[nn.Module], list[Tensor], list[Tensor]]:
    """(networks, the parameters that are sharded, those of them that learn). With adapters they are bfloat16."""
    copies = 1 if work.rank else work.roles + 1  # and the base, or the teacher
    networks = [on_meta(model.network, HALF if work.rank else torch.float32) for _ in range(copies)]
    cut = [parameter for network in networks for parameter in network.parameters()]
    if work.rank is None:
        learning = [p.requires_grad_() for network in networks[: work.roles] for p in network.parameters()]
        return networks, cut, learning
    return networks, cut, []


def blocks_of(network: Any) -> list[nn.Module]:
    return [part for part in network.modules() if type(part).__name__ in network._no_split_modules]


def head_of(model: Model) -> list[Tensor]:
    """Of the discriminator, on what the network has in its middle."""
    config: Any = on_meta(model.network).config
    side = model.side // 8
    if hasattr(config, "block_out_channels"):
        depth = 2 ** (len(config.block_out_channels) - 1)
        shape = config.block_out_channels[-1], side // depth, side // depth
    else:
        shape = config.num_attention_heads * config.attention_head_dim, side // 2, side // 2
    with torch.device("meta"):
        return list(layers_of_map(shape, None).parameters())


def planned(model: Model, work: Work, step: int, picture: int, processes: int, offload: bool) -> tuple[MemoryPlan, int]:
    """And bytes of the parts beside the network."""
    networks, cut, learning = loaded(model, work)
    blocks = [(network, blocks_of(network)) for network in networks]
    gathered = gathered_bytes(blocks) if processes > 1 else 0
    if work.rank:
        learning = [p for i in range(work.roles) for p in add_lora(networks[0], LoraSettings(work.rank), i, f"role{i}")]
    head = [] if work.decodes else head_of(model)
    encoders = [p for part in model.encoders for p in on_meta(part, HALF if work.rank else torch.float32).parameters()]
    others = [*encoders, *on_meta(model.vae).parameters()]
    sharded = Sharded(processes, cut, gathered, offload)
    held = [*cut, *learning, *head, *others]
    found = of_parts(held, [*learning, *head], step=step, decode=picture if work.decodes else 0, sharded=sharded)
    return found, sum(p.numel() * p.element_size() for p in [*others, *head])


def line(name: str, found: MemoryPlan, other: int) -> str:
    columns = [
        found.weights - other, found.training, found.step, found.decode, found.gathered, other, found.peak
    ]  # fmt: skip
    fits = next((f"{size}" for size in GPUS if found.peak <= 0.9 * size * GIB), "none")
    return f"| {name} | {' | '.join(f'{size / GIB:.1f}' for size in columns)} | {fits} | {found.host / GIB:.1f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="a part of a model's name")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    D.utils.logging.set_verbosity_error()
    for model in (model for model in MODELS if args.only.lower() in model.name.lower()):
        print(f"\n{model.name}: network of {model.network.millions / 1000:.2f} billion\n")
        print("| | weights | gradients, optimiser | a step | decoding | gathered | other parts | peak | fits | host |")
        print("|---|---|---|---|---|---|---|---|---|---|")
        picture = a_picture(model)
        for work in WORKS:
            learns = LoraSettings(work.rank) if work.rank else None
            counted = a_step(model, learns, 2 if model.guided and work.decodes else 1, args.check)
            for name, processes, offload in SETUPS:
                found, other = planned(model, work, counted.step, picture, processes, offload)
                print(line(f"{work.name}, {name}", found, other), flush=True)
            if args.check:
                plain = a_step(model, learns, 1, False, checkpoints=False).step
                sizes = " ".join(f"{size / GIB:.2f}" for size in (counted.step, counted.alive, plain))
                print(f"<!-- {work.name}: counted, alive, one row without checkpoints: {sizes} GiB -->", flush=True)


if __name__ == "__main__":
    main()
