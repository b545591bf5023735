"""The shipped weights: small, unaltered, sharp enough, and following captions when guided."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from pilotage.errors import UsageError
from pilotage.zoo import embedded, world

CAPTIONS = world.captions(range(16), "test")


@pytest.fixture(scope="module", autouse=True)
def _threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", name="pipe")
def _pipe():
    pipe = embedded.load()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module", name="judge")
def _judge():
    return embedded.judge()


def _generate(pipe, scale: float, steps: int = 20) -> np.ndarray:
    generators = [torch.Generator().manual_seed(i) for i in range(len(CAPTIONS))]
    out = pipe(CAPTIONS, num_inference_steps=steps, guidance_scale=scale, generator=generators, output_type="np")
    return (out.images * 255).round().astype(np.uint8)


def _to_model(pictures: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def test_weights_fit_in_twenty_megabytes_and_match_their_hashes():
    files = [p for p in embedded.WEIGHTS.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) <= 20_000_000
    hashes = json.loads((embedded.WEIGHTS / "hashes.json").read_text())
    names = {p.relative_to(embedded.WEIGHTS).as_posix() for p in files} - {"hashes.json"}
    assert names == set(hashes)
    for name, value in hashes.items():
        assert hashlib.sha256((embedded.WEIGHTS / name).read_bytes()).hexdigest() == value
    assert all(p.suffix in (".safetensors", ".json") for p in files)


def test_autoencoder_is_sharp_and_its_latents_are_standard(pipe):
    x = _to_model(world.pictures(range(128), "test"))
    with torch.no_grad():
        z = pipe.vae.encode(x).latent_dist.mode()
        decoded = pipe.vae.decode(z / pipe.vae.config.scaling_factor).sample.clamp(-1, 1)
    psnr = -10 * torch.log10(((decoded - x) / 2).square().mean())
    assert psnr > 34
    assert z.shape == (128, 4, 8, 8)
    assert pipe.vae.config.scaling_factor == 1.0
    assert z.mean((0, 2, 3)).abs().max() < 0.1
    assert (z.std((0, 2, 3)) - 1).abs().max() < 0.1


def test_scheduler_and_tokenizer_are_as_the_model_was_trained(pipe):
    config = pipe.scheduler.config
    assert config.prediction_type == "v_prediction"
    assert config.timestep_spacing == "trailing"
    assert not config.clip_sample
    assert not config.set_alpha_to_one
    ids = pipe.tokenizer(["Two RED stars, on navy!", "a sofa"], padding="max_length").input_ids
    assert np.asarray(ids).shape == (2, 24)
    words = [pipe.tokenizer.convert_ids_to_tokens(row) for row in ids]
    assert words[0][:8] == ["<start>", "two", "red", "stars", "on", "navy", "<end>", "<pad>"]
    assert words[1][:4] == ["<start>", "a", "<unk>", "<end>"]


@pytest.mark.parametrize("split", ["test", "heldout"])
def test_judge_ceiling(judge, pipe, split):
    pictures, labels = world.pictures(range(256), split), world.labels(range(256), split)
    with torch.no_grad():
        decoded = pipe.vae.decode(pipe.vae.encode(_to_model(pictures)).latent_dist.mode()).sample.clamp(-1, 1)
    soft = ((decoded + 1) * 127.5).round().to(torch.uint8)
    for batch, floor in ((pictures, 0.98), (soft, 0.95)):
        predicted = judge.predict(batch)
        for i, head in enumerate(world.ATTRIBUTES):
            assert float((predicted[head].numpy() == labels[:, i]).mean()) >= floor, head
    truth = judge.adherence(torch.from_numpy(pictures).permute(0, 3, 1, 2), world.captions(range(256), split))
    assert truth["all"].mean() > 0.95
    assert np.isnan(truth["shape2"]).any()


def test_adherence_notices_a_wrong_caption(judge):
    wrong = judge.adherence(world.pictures([0, 1], "test"), ["three pink moons on navy"] * 2)
    assert wrong["all"].tolist() == [0.0, 0.0]
    assert np.isnan(wrong["size"]).all()
    with pytest.raises(UsageError, match="one caption a picture"):
        judge.adherence(world.pictures([0]), [])
    with pytest.raises(UsageError, match="uint8"):
        judge.predict(np.zeros((1, 3, 32, 32), np.float32))


def test_guided_pictures_follow_their_captions(pipe, judge):
    right = judge.adherence(_generate(pipe, 3.0), CAPTIONS)
    assert right["all"].mean() >= 0.6
    assert np.nanmean(right["colour"]) >= 0.85
    assert np.nanmean(right["background"]) >= 0.85


def test_the_weak_model_is_weaker(pipe):
    # Its v prediction errs more, at a middle level, on pictures that neither has seen.
    x = _to_model(world.pictures(range(64), "test"))
    weak = embedded.load_weak()
    ids = pipe.tokenizer(world.captions(range(64), "test"), padding="max_length", return_tensors="pt").input_ids
    errors = {}
    with torch.no_grad():
        z, states = pipe.vae.encode(x).latent_dist.mode(), pipe.text_encoder(ids)[0]
        e, t = torch.randn(z.shape, generator=torch.Generator().manual_seed(0)), torch.full((64,), 500)
        trained = DDIMScheduler.from_config(pipe.scheduler.config)
        noisy, target = trained.add_noise(z, e, t), trained.get_velocity(z, e, t)
        for name, unet in (("strong", pipe.unet), ("weak", weak)):
            errors[name] = float((unet(noisy, t, encoder_hidden_states=states).sample - target).square().mean())
    assert errors["strong"] < 0.97 * errors["weak"]


def test_guide_reads_latents_and_its_gradient_helps(pipe):
    guide = embedded.guide()
    captions = world.captions(range(64), "test")
    with torch.no_grad():
        z = pipe.vae.encode(_to_model(world.pictures(range(64), "test"))).latent_dist.mode()
    t = torch.full((64,), 100)
    labels = torch.from_numpy(world.labels(range(64), "test"))
    logits = guide(z, t)
    colour = list(world.ATTRIBUTES).index("colour")
    assert float((logits["colour"].argmax(1) == labels[:, colour]).float().mean()) > 0.85
    z = z.clone().requires_grad_()
    other = captions[1:] + captions[:1]
    before = guide.log_probability(z, t, other)
    (gradient,) = torch.autograd.grad(before.sum(), z)
    after = guide.log_probability((z + 0.05 * gradient).detach(), t, other)
    assert float((after > before).float().mean()) > 0.9


def test_features_tell_shapes_apart_better_than_pixels():
    network = embedded.features()
    pictures = world.pictures(range(600), "test")
    shape = torch.from_numpy(world.labels(range(600), "test")[:, list(world.ATTRIBUTES).index("shape")])
    embedded_pictures = network(pictures)
    assert embedded_pictures.shape == (600, 64)
    assert embedded_pictures.dtype == torch.float32
    scores = {}
    for name, x in (("features", embedded_pictures), ("pixels", torch.from_numpy(pictures).float().flatten(1))):
        nearest = torch.cdist(x, x).fill_diagonal_(torch.inf).topk(5, largest=False).indices
        scores[name] = float((shape[nearest].mode(1).values == shape).float().mean())
    assert scores["features"] >= scores["pixels"] + 0.1


def test_tampered_or_missing_weights_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(embedded, "WEIGHTS", tmp_path)
    with pytest.raises(UsageError, match="missing"):
        embedded.judge()
    (tmp_path / "judge.safetensors").write_bytes(b"other")
    (tmp_path / "hashes.json").write_text(json.dumps({"judge.safetensors": "0" * 64}))
    with pytest.raises(UsageError, match="hash"):
        embedded.judge()
