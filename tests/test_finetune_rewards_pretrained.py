"""The rewards of pretrained networks, on tiny random ones in a folder: against the reference, gradients, files."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_parts import clip_tokenizer
from torch import Tensor, nn
from transformers import BertConfig, BertTokenizer, CLIPConfig, CLIPModel
from transformers.models.blip.configuration_blip import BlipTextConfig, BlipVisionConfig
from transformers.models.blip.modeling_blip import BlipVisionModel
from transformers.models.blip.modeling_blip_text import BlipTextModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from pilotage.errors import UsageError
from pilotage.evaluation.features.clip import DEVIATION, MEAN, pooled
from pilotage.finetune.rewards import Reward, open_rewards
from pilotage.finetune.rewards.clip_tower import clip_tower
from pilotage.finetune.rewards.imagereward import blip_of
from pilotage.finetune.rewards.open_clip import renamed
from pilotage.finetune.rewards.sight import Sight
from pilotage.finetune.rewards.weights import linear_head

SIDE, WIDTH, DIM = 32, 32, 24
PROMPTS = ["a cat", "two dogs and a very small bird", ""]
HEAD = {0: 16, 2: 12, 4: 8, 6: 4, 7: 1}  # number of the layer -> its outputs


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make().eval().requires_grad_(False)


@pytest.fixture(scope="module")
def network() -> CLIPModel:
    layers = {"hidden_size": WIDTH, "intermediate_size": 37, "num_attention_heads": 4, "num_hidden_layers": 2}
    words = {"vocab_size": 514, "bos_token_id": 512, "eos_token_id": 513, "pad_token_id": 513}
    vision = {"image_size": SIDE, "patch_size": 8}
    config = CLIPConfig(text_config=layers | words, vision_config=layers | vision, projection_dim=DIM)
    return seeded(lambda: CLIPModel(config))


@pytest.fixture(scope="module")
def folder(network: CLIPModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip")
    network.save_pretrained(path)
    clip_tokenizer().save_pretrained(path)
    return path


def head_tensors(width: int, seed: int = 0) -> dict[str, Tensor]:
    random, found = torch.Generator().manual_seed(seed), {}
    for number, outputs in HEAD.items():
        found[f"layers.{number}.weight"] = torch.randn(outputs, width, generator=random) / width**0.5
        found[f"layers.{number}.bias"] = torch.randn(outputs, generator=random)
        width = outputs
    return found


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("head") / "head.pth"
    torch.save(head_tensors(DIM), file)
    return file


@pytest.fixture(scope="module")
def imagereward_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("imagereward") / "ImageReward.pt"
    torch.save(blip_tensors(), file)
    return file


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bert")
    letters = [chr(c) for c in range(97, 123)]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *("##" + c for c in letters)]
    words += [a + b for a in letters[:10] for b in letters]
    BertTokenizer(vocab={word: i for i, word in enumerate(words)}).save_pretrained(path)
    BertConfig().save_pretrained(path)
    return path


def bytes_of(rows: int = 3, height: int = 40, width: int = 56) -> Tensor:
    """uint8 pictures with edges and some noise."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (rows, height // 8, width // 8, 3)).repeat(8, 1).repeat(8, 2)
    noisy = coarse + rng.integers(-20, 20, coarse.shape)
    return torch.from_numpy(noisy.clip(0, 255).astype(np.uint8)).permute(0, 3, 1, 2)


def images(pictures: Tensor) -> list[Image.Image]:
    return [Image.fromarray(p) for p in pictures.permute(0, 2, 3, 1).numpy()]


# -- what the network sees --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(40, 56), (57, 41), (16, 24), (32, 32), (224, 224)])
def test_pictures_go_as_through_clips_processor(height: int, width: int) -> None:
    """Within 1e-2 of the range, where Pillow rounds to bytes twice."""
    pictures = bytes_of(2, height // 8 * 8, width // 8 * 8)
    processor = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    wanted = torch.as_tensor(np.stack(processor(images=images(pictures))["pixel_values"]))
    found = Sight(SIDE)(pictures / 255)
    deviation = torch.tensor(DEVIATION)[:, None, None]
    assert ((found - wanted) * deviation).abs().max() < 1e-2


@pytest.mark.parametrize(("height", "width"), [(40, 56), (64, 24), (32, 32)])
def test_hpsv2_pads_what_is_not_square(height: int, width: int) -> None:
    pictures = bytes_of(2, height, width)
    scale = SIDE / max(height, width)
    small = round(width * scale), round(height * scale)
    wanted = []
    for image in images(pictures):
        canvas = Image.new("RGB", (SIDE, SIDE))
        canvas.paste(image.resize(small, Image.Resampling.BICUBIC), ((SIDE - small[0]) // 2, (SIDE - small[1]) // 2))
        wanted.append(torch.from_numpy(np.array(canvas)).permute(2, 0, 1) / 255)
    mean, deviation = (torch.tensor(v)[:, None, None] for v in (MEAN, DEVIATION))
    found = Sight(SIDE, "pad")(pictures / 255) * deviation + mean
    assert (found - torch.stack(wanted)).abs().max() < 1e-2


def test_squares_are_cropped_and_padded_alike() -> None:
    pictures = bytes_of(1, 48, 48) / 255
    assert torch.equal(Sight(SIDE)(pictures), Sight(SIDE, "pad")(pictures))


# -- scores -----------------------------------------------------------------------------------------------------------


def reference_cosines(network: CLIPModel, pictures: Tensor) -> Tensor:
    """By transformers' own processor, all captions padded together."""
    processor = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    values = torch.as_tensor(np.stack(processor(images=images(pictures))["pixel_values"]))
    tokens = clip_tokenizer()(PROMPTS, padding=True, return_tensors="pt")
    seen, read = pooled(network.get_image_features(pixel_values=values)), pooled(network.get_text_features(**tokens))
    return nn.functional.cosine_similarity(seen, read)


def test_cosines_are_those_of_the_reference(network: CLIPModel, folder: Path) -> None:
    pictures = bytes_of(3, 48, 48)
    wanted = reference_cosines(network, pictures)
    lines = {
        f"clip-score:model={folder}": 1.0,
        f"hpsv2:model={folder}": 1.0,
        f"hpsv2.1:model={folder}": 1.0,
        f"pickscore:model={folder},tokenizer={folder}": float(network.logit_scale.exp()),
    }
    for line, scale in lines.items():
        found = open_rewards(line)(pictures / 255, PROMPTS)
        assert found.shape == (3,) and (found / scale - wanted).abs().max() < 0.02, line  # 1e-2 of -1..1


def test_prefix(folder: Path) -> None:
    pictures = bytes_of() / 255
    prefixed = open_rewards(f"clip-score:model={folder},prefix='A photo depicts '")
    plain = open_rewards(f"clip-score:model={folder}")
    assert torch.equal(prefixed(pictures, PROMPTS), plain(pictures, ["A photo depicts " + p for p in PROMPTS]))


def test_long_prompts_are_cut(folder: Path) -> None:
    reward, pictures = open_rewards(f"clip-score:model={folder}"), bytes_of(1) / 255
    assert torch.equal(reward(pictures, ["a " * 80]), reward(pictures, ["a " * 90]))


def test_aesthetic_is_a_linear_head_on_the_unit_embedding(network: CLIPModel, folder: Path, head: Path) -> None:
    pictures = bytes_of(3, SIDE, SIDE)
    reward = open_rewards(f"aesthetic:weights={head},model={folder}")
    mean, deviation = (torch.tensor(v)[:, None, None] for v in (MEAN, DEVIATION))
    values = pooled(network.get_image_features(pixel_values=(pictures / 255 - mean) / deviation))
    values = values / values.norm(dim=1, keepdim=True)
    for number in HEAD:
        tensors = head_tensors(DIM)
        values = values @ tensors[f"layers.{number}.weight"].T + tensors[f"layers.{number}.bias"]
    torch.testing.assert_close(reward(pictures / 255, [""] * 3), values[:, 0], rtol=1e-4, atol=1e-5)
    assert not reward.needs_prompt


def test_head_named_by_the_environment(folder: Path, head: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PILOTAGE_AESTHETIC", str(head))
    assert open_rewards(f"aesthetic:model={folder}").name == "aesthetic"


@pytest.fixture(scope="module")
def rewards(folder: Path, head: Path, bert: Path, imagereward_file: Path) -> dict[str, Reward]:
    lines = {
        "clip-score": f"clip-score:model={folder}",
        "pickscore": f"pickscore:model={folder},tokenizer={folder}",
        "hpsv2": f"hpsv2:model={folder}",
        "aesthetic": f"aesthetic:weights={head},model={folder}",
        "imagereward": f"imagereward:weights={imagereward_file},tokenizer={bert}",
    }
    return {name: open_rewards(line) for name, line in lines.items()}


NAMES = ["clip-score", "pickscore", "hpsv2", "aesthetic", "imagereward"]


@pytest.mark.parametrize("name", NAMES)
def test_no_row_sees_its_neighbours(name: str, rewards: dict[str, Reward]) -> None:
    reward, pictures = rewards[name], bytes_of() / 255
    whole = reward(pictures, PROMPTS)
    alone = torch.cat([reward(p[None], [t]) for p, t in zip(pictures, PROMPTS)])
    torch.testing.assert_close(whole, alone, rtol=1e-4, atol=1e-5)
    assert len(set(whole.tolist())) == 3


@pytest.mark.parametrize("name", NAMES)
def test_what_a_reward_says_of_itself(name: str, rewards: dict[str, Reward]) -> None:
    reward = rewards[name]
    assert reward.name == name and reward.differentiable and reward.needs_prompt == (name != "aesthetic")
    assert reward.range and reward.licence and "bicubic to 32" in reward.preprocessing and "-" in reward.model


def test_other_weights_are_another_judge(rewards: dict[str, Reward], tmp_path: Path, network: CLIPModel) -> None:
    other = CLIPModel(network.config)
    other.load_state_dict({k: v + (k == "logit_scale") for k, v in network.state_dict().items()})
    other.save_pretrained(tmp_path)
    clip_tokenizer().save_pretrained(tmp_path)
    assert rewards["clip-score"].model == rewards["hpsv2"].model  # the same weights under two names
    assert rewards["clip-score"].model != open_rewards(f"clip-score:model={tmp_path}").model


# -- gradients --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_constant_pictures_have_finite_gradients(name: str, value: float, rewards: dict[str, Reward]) -> None:
    pictures = torch.full((2, 3, 40, 40), value, requires_grad=True)
    scores = rewards[name](pictures, PROMPTS[:2])
    scores.sum().backward()
    assert torch.isfinite(scores).all() and pictures.grad is not None
    assert torch.isfinite(pictures.grad).all() and pictures.grad.abs().max() > 0


def slopes_agree(scores: Callable[[Tensor], Tensor], pictures: Tensor) -> None:
    """The gradient along three directions against central differences, float64."""
    at = pictures.clone().requires_grad_()
    (slope,) = torch.autograd.grad(scores(at).sum(), at)
    random = torch.Generator().manual_seed(2)
    for _ in range(3):
        way, step = torch.randn(pictures.shape, generator=random, dtype=torch.float64), 1e-5
        difference = (scores(pictures + step * way) - scores(pictures - step * way)).sum() / (2 * step)
        torch.testing.assert_close((slope * way).sum(), difference, rtol=1e-5, atol=1e-8)


def smooth(side: int = 32) -> Tensor:
    """Float64 pictures away from 0 and 1, so that nothing is cut off."""
    noise = torch.rand(2, 3, 5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    resized = nn.functional.interpolate(noise, (side, side), mode="bilinear", align_corners=False)
    return 0.2 + 0.6 * resized


@pytest.mark.parametrize("fit", ["crop", "pad"])
@pytest.mark.parametrize("side", [20, 32, 56])
def test_gradient_through_clip(folder: Path, fit: str, side: int) -> None:
    tower = clip_tower(str(folder), fit=fit)
    tower.network.double()
    slopes_agree(lambda pictures: tower.cosines(pictures, PROMPTS[:2]), smooth(side))


def test_gradient_through_the_head(folder: Path) -> None:
    tower, head = clip_tower(str(folder)), linear_head(head_tensors(DIM), DIM, "a head").double()
    tower.network.double()
    slopes_agree(lambda pictures: head(tower.of_pictures(pictures))[:, 0], smooth())


def test_prompts_read_under_inference_mode_serve_training(folder: Path) -> None:
    """Embeddings of prompts are kept; sampling may have read them first."""
    reward, pictures = open_rewards(f"clip-score:model={folder}"), bytes_of() / 255
    with torch.inference_mode():
        before = reward(pictures, PROMPTS)
    at = pictures.clone().requires_grad_()
    after = reward(at, PROMPTS)
    after.sum().backward()
    assert at.grad is not None and at.grad.abs().max() > 0 and torch.equal(after, before)


def test_nothing_of_the_judge_learns(rewards: dict[str, Reward], folder: Path) -> None:
    tower = clip_tower(str(folder))
    assert not any(p.requires_grad for p in tower.network.parameters()) and not tower.network.training


# -- open_clip's weights ----------------------------------------------------------------------------------------------


def to_open_clip(network: CLIPModel) -> dict[str, Tensor]:
    """What open_clip would call the weights of a CLIPModel, written from its modules."""
    found: dict[str, Tensor] = {"logit_scale": network.logit_scale.data}

    def layer(name: str, module: nn.Module) -> None:
        found.update({f"{name}.{key}": value.data for key, value in module.named_parameters()})

    for prefix, tower in (("visual.", network.vision_model), ("", network.text_model)):
        for i, block in enumerate(tower.encoder.layers):
            own, attention = f"{prefix}transformer.resblocks.{i}", block.self_attn
            for kind in ("weight", "bias"):
                fused = [getattr(getattr(attention, f"{part}_proj"), kind).data for part in "qkv"]
                found[f"{own}.attn.in_proj_{kind}"] = torch.cat(fused)
            layer(f"{own}.attn.out_proj", attention.out_proj)
            layer(f"{own}.ln_1", block.layer_norm1)
            layer(f"{own}.ln_2", block.layer_norm2)
            layer(f"{own}.mlp.c_fc", block.mlp.fc1)
            layer(f"{own}.mlp.c_proj", block.mlp.fc2)
    eyes, reader = network.vision_model, network.text_model
    found["visual.class_embedding"] = eyes.embeddings.class_embedding.data
    found["visual.positional_embedding"] = eyes.embeddings.position_embedding.weight.data
    found["visual.proj"] = network.visual_projection.weight.data.T
    found["text_projection"] = network.text_projection.weight.data.T
    found["positional_embedding"] = reader.embeddings.position_embedding.weight.data
    layer("visual.conv1", eyes.embeddings.patch_embedding)
    layer("visual.ln_pre", eyes.pre_layrnorm)
    layer("visual.ln_post", eyes.post_layernorm)
    layer("token_embedding", reader.embeddings.token_embedding)
    layer("ln_final", reader.final_layer_norm)
    return found


def test_a_block_of_open_clip(network: CLIPModel) -> None:
    """torch's attention, which open_clip has, with the fused projection: the same as the block of transformers."""
    block = network.vision_model.encoder.layers[0]
    tensors = to_open_clip(network)
    attention = nn.MultiheadAttention(WIDTH, 4, batch_first=True)
    prefix = "visual.transformer.resblocks.0.attn."
    attention.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
    x = torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(0))
    found = block.self_attn(x)[0]
    torch.testing.assert_close(attention(x, x, x, need_weights=False)[0], found, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("wrapped", [True, False])
def test_hpsv2_from_an_open_clip_file(network: CLIPModel, folder: Path, tmp_path: Path, wrapped: bool) -> None:
    other = seeded(lambda: CLIPModel(network.config))
    with torch.no_grad():
        for number, weights in enumerate(other.parameters()):
            weights.add_(0.02 * torch.randn(weights.shape, generator=torch.Generator().manual_seed(number)))
    tensors = to_open_clip(other)
    torch.save({"state_dict": tensors, "epoch": 3} if wrapped else tensors, tmp_path / "hps.pt")
    other.save_pretrained(tmp_path / "hf")
    clip_tokenizer().save_pretrained(tmp_path / "hf")
    pictures = bytes_of() / 255
    found = open_rewards(f"hpsv2:weights={tmp_path / 'hps.pt'},model={folder}")
    wanted = open_rewards(f"hpsv2:model={tmp_path / 'hf'}")
    assert torch.equal(found(pictures, PROMPTS), wanted(pictures, PROMPTS)) and found.model == wanted.model
    assert set(renamed(tensors)) == set(network.state_dict())


# -- ImageReward ------------------------------------------------------------------------------------------------------


def blip_tensors() -> dict[str, Tensor]:
    """Random weights under the names of ImageReward's file, drawn here: width 64, two layers each, 32 px."""
    random, found = torch.Generator().manual_seed(0), {}

    def draw(name: str, *shape: int) -> None:
        found[name] = torch.randn(shape, generator=random) / max(shape[-1], 8) ** 0.5

    def linear(name: str, outputs: int, inputs: int) -> None:
        draw(f"{name}.weight", outputs, inputs)
        draw(f"{name}.bias", outputs)

    def norm(name: str, width: int) -> None:
        draw(f"{name}.weight", width)
        found[f"{name}.weight"] += 1
        draw(f"{name}.bias", width)

    eyes, reader = "blip.visual_encoder", "blip.text_encoder"
    draw(f"{eyes}.cls_token", 1, 1, 128)
    draw(f"{eyes}.pos_embed", 1, 5, 128)
    draw(f"{eyes}.patch_embed.proj.weight", 128, 3, 16, 16)
    draw(f"{eyes}.patch_embed.proj.bias", 128)
    for i in range(2):
        own = f"{eyes}.blocks.{i}"
        norm(f"{own}.norm1", 128)
        norm(f"{own}.norm2", 128)
        linear(f"{own}.attn.qkv", 384, 128)
        linear(f"{own}.attn.proj", 128, 128)
        linear(f"{own}.mlp.fc1", 512, 128)
        linear(f"{own}.mlp.fc2", 128, 512)
    norm(f"{eyes}.norm", 128)
    draw(f"{reader}.embeddings.word_embeddings.weight", 400, 64)
    draw(f"{reader}.embeddings.position_embeddings.weight", 40, 64)
    found[f"{reader}.embeddings.position_ids"] = torch.arange(40)[None]
    norm(f"{reader}.embeddings.LayerNorm", 64)
    for i in range(2):
        own = f"{reader}.encoder.layer.{i}"
        for kind, seen in (("attention", 64), ("crossattention", 128)):
            linear(f"{own}.{kind}.self.query", 64, 64)
            linear(f"{own}.{kind}.self.key", 64, seen)
            linear(f"{own}.{kind}.self.value", 64, seen)
            linear(f"{own}.{kind}.output.dense", 64, 64)
            norm(f"{own}.{kind}.output.LayerNorm", 64)
        linear(f"{own}.intermediate.dense", 96, 64)
        linear(f"{own}.output.dense", 64, 96)
        norm(f"{own}.output.LayerNorm", 64)
    linear("blip.vision_proj", 16, 128)  # of BLIP's own training, not used
    linear("blip.text_proj", 16, 64)
    return found | {f"mlp.{name}": value for name, value in head_tensors(64).items()}


class Reference:
    """ImageReward's forward pass, written out from the formulas of ViT and BERT with torch's functions alone."""

    def __init__(self, tensors: dict[str, Tensor]):
        self.tensors = tensors

    def linear(self, x: Tensor, name: str) -> Tensor:
        return nn.functional.linear(x, self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"])

    def norm(self, x: Tensor, name: str, eps: float) -> Tensor:
        own = self.tensors
        return nn.functional.layer_norm(x, x.shape[-1:], own[f"{name}.weight"], own[f"{name}.bias"], eps)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        heads = [x.unflatten(-1, (-1, 64)).transpose(1, 2) for x in (query, key, value)]
        weights = heads[0] @ heads[1].transpose(-1, -2) / math.sqrt(64)
        if mask is not None:
            weights = weights.masked_fill(mask[:, None, None] == 0, -torch.inf)
        return (weights.softmax(-1) @ heads[2]).transpose(1, 2).flatten(2)

    def see(self, values: Tensor) -> Tensor:
        own, eyes = self.tensors, "blip.visual_encoder"
        patch = f"{eyes}.patch_embed.proj"
        x = nn.functional.conv2d(values, own[f"{patch}.weight"], own[f"{patch}.bias"], stride=16)
        x = torch.cat([own[f"{eyes}.cls_token"].expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], 1)
        x = x + own[f"{eyes}.pos_embed"]
        for i in range(2):
            block = f"{eyes}.blocks.{i}"
            query, key, value = self.linear(self.norm(x, f"{block}.norm1", 1e-6), f"{block}.attn.qkv").chunk(3, -1)
            x = x + self.linear(self.attend(query, key, value), f"{block}.attn.proj")
            hidden = nn.functional.gelu(self.linear(self.norm(x, f"{block}.norm2", 1e-6), f"{block}.mlp.fc1"))
            x = x + self.linear(hidden, f"{block}.mlp.fc2")
        return self.norm(x, f"{eyes}.norm", 1e-6)

    def read(self, ids: Tensor, mask: Tensor, seen: Tensor) -> Tensor:
        reader = "blip.text_encoder"
        places = self.tensors[f"{reader}.embeddings.position_embeddings.weight"][: ids.shape[1]]
        x = self.tensors[f"{reader}.embeddings.word_embeddings.weight"][ids] + places
        x = self.norm(x, f"{reader}.embeddings.LayerNorm", 1e-12)
        for i in range(2):
            layer = f"{reader}.encoder.layer.{i}"
            for kind, source, hidden in (("attention", None, mask), ("crossattention", seen, None)):
                looked = x if source is None else source
                own = f"{layer}.{kind}"
                query = self.linear(x, f"{own}.self.query")
                key, value = (self.linear(looked, f"{own}.self.{part}") for part in ("key", "value"))
                found = self.linear(self.attend(query, key, value, hidden), f"{own}.output.dense")
                x = self.norm(x + found, f"{own}.output.LayerNorm", 1e-12)
            hidden_layer = nn.functional.gelu(self.linear(x, f"{layer}.intermediate.dense"))
            x = self.norm(x + self.linear(hidden_layer, f"{layer}.output.dense"), f"{layer}.output.LayerNorm", 1e-12)
        return x[:, 0]

    def __call__(self, values: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.read(ids, mask, self.see(values))
        for number in HEAD:
            x = self.linear(x, f"mlp.layers.{number}")
        return (x[:, 0] - 0.16717362830052426) / 1.0333394966054072


def test_imagereward_is_the_networks_written_out(imagereward_file: Path, bert: Path) -> None:
    pictures = bytes_of(3, SIDE, SIDE) / 255
    reward = open_rewards(f"imagereward:weights={imagereward_file},tokenizer={bert}")
    tokens = BertTokenizer.from_pretrained(bert)(
        PROMPTS, padding="max_length", truncation=True, max_length=35, return_tensors="pt"
    )
    mean, deviation = (torch.tensor(v)[:, None, None] for v in (MEAN, DEVIATION))
    wanted = Reference(blip_tensors())((pictures - mean) / deviation, tokens["input_ids"], tokens["attention_mask"])
    found = reward(pictures, PROMPTS)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
    assert wanted.std() > 0.01  # the reference does see a difference


def test_gradient_through_imagereward(bert: Path) -> None:
    blip = blip_of(blip_tensors(), partial(BertTokenizer.from_pretrained, bert))
    for network in (blip.eyes, blip.reader, blip.head):
        network.double()
    slopes_agree(lambda pictures: blip.scores(pictures, PROMPTS[:2]), smooth())


def test_names_of_transformers_blip() -> None:
    """The names that the file is brought to are all that transformers' networks have."""
    blip = blip_of(blip_tensors(), lambda: None)
    assert isinstance(blip.eyes, BlipVisionModel) and isinstance(blip.reader, BlipTextModel)
    assert isinstance(blip.eyes.config, BlipVisionConfig) and isinstance(blip.reader.config, BlipTextConfig)
    assert blip.eyes.config.num_attention_heads == 2 and blip.reader.config.num_attention_heads == 1
    assert not any(p.requires_grad for net in (blip.eyes, blip.reader, blip.head) for p in net.parameters())


# -- what is refused --------------------------------------------------------------------------------------------------


def test_what_is_refused(folder: Path, head: Path, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PILOTAGE_AESTHETIC", raising=False)
    wide, cut, text = tmp_path / "wide.pth", tmp_path / "cut.pth", tmp_path / "text.pth"
    torch.save(head_tensors(DIM + 1), wide)
    torch.save({k: v for k, v in head_tensors(DIM).items() if ".7." not in k}, cut)
    text.write_text("weights")
    for line, said in {
        "aesthetic": "is not shipped",
        f"aesthetic:weights={tmp_path}/none.pth,model={folder}": "there is no file",
        f"aesthetic:weights={text},model={folder}": "does not hold",
        f"aesthetic:weights={wide},model={folder}": "give the model that it belongs to",
        f"aesthetic:weights={cut},model={folder}": "not the weights",
        f"aesthetic:weights={head},model={bert}": "is a bert model, not clip",
        "clip-score:model=openai/clip-vit-large-patch14": "allow_download=true",
        "clip-score:model=nowhere": "there is no model",
        "pickscore": "allow_download=true",
        "hpsv2": "hpsv2:weights=HPS_v2_compressed.pt",
        "hpsv2.1": "hpsv2.1:weights=HPS_v2.1_compressed.pt",
        f"hpsv2:weights={head},model={folder}": "not the weights of an open_clip model",
        "imagereward": "imagereward:weights=FILE",
        f"imagereward:weights={head}": "not the weights of ImageReward",
        f"similarity:reference={text}": "cannot read the picture",
    }.items():
        with pytest.raises(UsageError) as caught:
            open_rewards(line)
        assert said in str(caught.value) and "\n" not in str(caught.value), (line, str(caught.value))


def test_similarity_by_clip(folder: Path, tmp_path: Path) -> None:
    pictures = bytes_of(3, 48, 48)
    images(pictures)[1].save(tmp_path / "one.png")
    reward = open_rewards(f"similarity:reference={tmp_path / 'one.png'},features=clip,model={folder}")
    found = reward(pictures / 255, [""] * 3).tolist()
    assert found[1] == pytest.approx(1, abs=1e-5) and max(found[0], found[2]) < 0.9999 and reward.model != "none"
