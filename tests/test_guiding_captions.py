"""Rules with a classifier on the embedded model, from the bare name: the guide, and what each row's caption states."""

from __future__ import annotations

import functools
from typing import Any

import guidance_toys as toys
import numpy as np
import pytest
import torch
from torch import Tensor

from pilotage import guidance, samplers
from pilotage.errors import UsageError
from pilotage.generation.notes import notes
from pilotage.generation.pictures import generate
from pilotage.generation.spec import RunSpec
from pilotage.guidance import gfcg
from pilotage.guidance.gfcg import caption_rivals
from pilotage.guidance.gradient import attributes, losses
from pilotage.guidance.gradient.attributes import aim_of_attribute, aim_of_captions, attribute_score, guide_at
from pilotage.guidance.pipelines import attach
from pilotage.zoo import embedded, rewording, world

CAPTIONS = ("two red stars on navy", "a blue ring left of a yellow heart on white", "a small green moon at the top")
NAMES = ("gfcg-reconstruction", "elucd", "classifier")


@pytest.fixture(scope="module")
def pipe() -> Any:
    made = embedded.load()
    made.set_progress_bar_config(disable=True)
    made.scheduler = samplers.DPMPP2M.from_config(made.scheduler.config)
    return made


def latents_of(pipe: Any, rule: Any, captions: tuple[str, ...] = CAPTIONS, **settings: Any) -> Tensor:
    noise = samplers.SeededNoise(range(len(captions) * settings.get("num_images_per_prompt", 1))).initial((4, 8, 8))
    settings = {"num_inference_steps": 4, "output_type": "latent", "latents": noise, **settings}
    with attach(pipe, rule, networks=settings.pop("networks", None)) as run:
        z = pipe(list(captions), **settings).images
    latents_of.evaluations = run.evaluations  # type: ignore[attr-defined]
    latents_of.steps = run.steps  # type: ignore[attr-defined]
    return z


def bare(name: str, settings: str = "") -> guidance.Rule:
    return guidance.parse(f"{name}:{settings}" if settings else name, embedded.guidance_defaults())


# -- the words --------------------------------------------------------------------------------------------------------


def test_every_caption_is_reworded_as_it_was_written() -> None:
    for split in world.SPLITS:
        for caption in world.captions(range(200), split):
            assert rewording.worded(world.parse(caption), rewording.wording_of(caption)) == caption


def test_one_attribute_is_exchanged_and_what_no_longer_fits_goes() -> None:
    for caption in world.captions(range(60), "test"):
        stated = world.parse(caption)
        for head, names in world.ATTRIBUTES.items():
            for name in names:
                other = rewording.exchanged(caption, head, name)
                possible = head in stated and "none" not in (name, stated[head])
                if not possible or (head == "count" and "shape2" in stated):
                    assert other is None
                elif other is not None:
                    read = world.parse(other)
                    assert read[head] == name
                    lost = {"count": {"size", "place", "relation"}, "size": {"place"}}.get(head, set())
                    assert all(read[h] == v for h, v in stated.items() if h != head and h not in lost)
    swapped = functools.partial(rewording.exchanged, "a red star left of a red heart on navy")
    assert swapped("shape", "heart") is None and swapped("colour", "blue") == "a blue star left of a red heart on navy"
    assert rewording.exchanged("a small red star at the top", "size", "big") == "a big red star"
    assert rewording.exchanged("A red star.", "colour", "orange") == "an orange star"
    assert rewording.exchanged("two red stars on navy", "count", "one") == "a red star on navy"


def test_the_aim_is_what_is_stated() -> None:
    aim = aim_of_captions(CAPTIONS)
    heads = list(world.ATTRIBUTES)
    for row, caption in zip(aim.tolist(), CAPTIONS, strict=True):
        said = {h: world.ATTRIBUTES[h][k] for h, k in zip(heads, row, strict=True) if k >= 0}
        assert said == world.parse(caption)
    star = aim_of_attribute("star")[0]
    assert star[heads.index("shape")] == world.SHAPES.index("star") and (star >= 0).sum() == 1


def test_the_score_is_the_log_probability_of_the_caption() -> None:
    guide = embedded.guide()
    z = toys.normal(3, 4, 8, 8, seed=4, dtype=torch.float32)
    wanted = guide.log_probability(z, torch.full((3,), 300.0), CAPTIONS)
    assert torch.allclose(attribute_score(guide_at(z, 300.0), aim_of_captions(CAPTIONS)), wanted, atol=1e-4)
    one = attribute_score(guide_at(z, 300.0), aim_of_attribute("star"))
    index = world.SHAPES.index("star")
    assert torch.allclose(one, guide_at(z, 300.0)["shape"].log_softmax(1)[:, index], atol=1e-5)
    joint = attribute_score(guide_at(z, 300.0), aim_of_attribute("star"), own=2.0, others=0.0)
    assert torch.allclose(joint, 2 * guide_at(z, 300.0)["shape"][:, index] - np.log(12), atol=1e-5)


# -- rivals -----------------------------------------------------------------------------------------------------------


def confident(captions: tuple[str, ...]) -> dict[str, Tensor]:
    """Logits of a classifier that sees all that is stated."""
    aim = aim_of_captions(captions)
    return {
        head: 9.0 * torch.nn.functional.one_hot(aim[:, i].clamp(min=0), len(names)).float()
        for i, (head, names) in enumerate(world.ATTRIBUTES.items())
    }


def texts_of(found: gfcg.Rivals) -> Tensor:
    return found.conditions["encoder_hidden_states"]


def test_the_most_confused_attribute_has_the_rival() -> None:
    logits = confident(CAPTIONS)
    logits["colour"][0, list(world.COLOURS).index("pink")] = 8.5
    logits["shape"][0, world.SHAPES.index("heart")] = 8.0
    logits["relation"][1] = torch.tensor([50.0, 1.0, 2.0])  # "none" is nobody's rival
    logits["background"][2] = torch.linspace(0, 30, 8)  # the caption says nothing of it
    logits["place"][2, world.ATTRIBUTES["place"].index("left")] = 9.5
    found = caption_rivals(CAPTIONS, logits, 0.9)
    wanted = (
        "two pink stars on navy",
        "a blue ring above a yellow heart on white",
        "a small green moon at the left",
    )
    assert torch.equal(texts_of(found), torch.stack([embedded.text_embedding(text) for text in wanted]))
    odds = torch.tensor([8.5 - 9, 2 - 1, 0.5]).double()
    assert torch.allclose(found.confusion, odds.sigmoid(), atol=1e-6) and found.confused.all()
    sure = caption_rivals(CAPTIONS, confident(CAPTIONS), 0.9)
    assert not sure.confused.any() and (sure.confusion < 1e-3).all()
    for row, caption in enumerate(CAPTIONS):  # a row is the same alone
        alone = caption_rivals((caption,), {head: v[row : row + 1] for head, v in logits.items()}, 0.9)
        assert torch.equal(texts_of(alone)[0], texts_of(found)[row]) and alone.labels[0] == found.labels[row]


def test_embeddings_are_those_of_the_pipeline(pipe: Any) -> None:
    with torch.no_grad():
        wanted = pipe.encode_prompt(list(CAPTIONS), "cpu", 1, False)[0]
    assert torch.allclose(torch.stack([embedded.text_embedding(c) for c in CAPTIONS]), wanted, atol=1e-5)


def test_gfcg_shows_the_network_the_rival_prompt(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the second call of each step is given, and that it is the formula of the rule."""
    logits = confident(CAPTIONS)
    logits["colour"][0, list(world.COLOURS).index("pink")] = 8.9  # only the first row is confused
    monkeypatch.setattr(gfcg, "guide_at", lambda z, time: logits)
    calls: list[Tensor] = []
    hook = pipe.unet.mid_block.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(kwargs["encoder_hidden_states"].clone()), with_kwargs=True
    )
    try:
        latents_of(pipe, bare("gfcg-reconstruction", "sure=0.4"), num_inference_steps=1)  # p_target is about 1/2
        assert [len(text) for text in calls] == [3], "a row whose target leads with enough is not confused"
        calls.clear()
        latents_of(pipe, bare("gfcg-reconstruction"), num_inference_steps=1)
    finally:
        hook.remove()
    assert [len(text) for text in calls] == [3, 1]
    assert torch.equal(calls[1][0], embedded.text_embedding("two pink stars on navy"))
    assert latents_of.steps[0]["scale"].tolist() == pytest.approx([2.90, 1.0, 1.0], abs=0.01)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "form, count", [("alone", None), ("cfg", {"cond", "uncond"}), ("autoguidance", {"cond", "weak"})]
)
def test_forms_in_the_pipeline(pipe: Any, form: str, count: set[str] | None) -> None:
    weak = embedded.load_weak()
    rule = bare("gfcg-reconstruction", f"form={form}")
    z = latents_of(pipe, rule, networks={"weak": weak}, guidance_scale=2.0)
    used = dict(latents_of.evaluations)  # type: ignore[attr-defined]
    assert z.isfinite().all() and not z.requires_grad
    if form == "alone":
        assert set(used) == {"cond"} and 12 <= used["cond"] <= 24
    else:
        assert sum(used.values()) == 24 and set(used) <= count
    if form == "autoguidance":
        latents_of(pipe, "autoguidance:scale=3", networks={"weak": weak}, guidance_scale=2.0)
        assert used == latents_of.evaluations == {"cond": 12, "weak": 12}  # type: ignore[attr-defined]


def test_noisy_latents_go_to_the_classifier_with_their_level() -> None:
    x, level = toys.normal(2, 3, 4, seed=1), toys.SD.level(500.0)
    heard: list[Any] = []

    def classifier(x: Tensor, level: Any) -> Tensor:
        heard.append((x, level))
        return torch.tensor([[0.0, 1.0], [3.0, 1.0]])

    rule = guidance.GFCGReconstruction(classifier, 0, 3.0, conditions=toys.normal(2, 3, 4, seed=8), reads="noisy")
    made = toys.guided(rule, (2, 3, 4))
    made(x, level)
    assert torch.equal(heard[0][0], x) and heard[0][1] == level and made.evaluations == {"cond": 4}


# -- from the bare name -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_bare_name_works_and_never_loads_the_judge(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> Any:
        raise AssertionError("the judge scores; it must not guide")

    monkeypatch.setattr(embedded, "judge", refused)
    losses.embedded_network.cache_clear()
    spec = RunSpec(prompts=CAPTIONS[:2], guidance=name, steps=3, seeds=(5,))
    assert "target=caption" in spec.guidance and "classifier=guide" in spec.guidance
    assert not [note for note in notes(spec) if "no effect" in note]
    made = list(generate(spec))
    plain = list(generate(RunSpec(prompts=CAPTIONS[:2], guidance="none", steps=3, seeds=(5,))))
    for one, other in zip(made, plain, strict=True):
        assert (np.asarray(one.image) != np.asarray(other.image)).any()
    if name != "gfcg-reconstruction":
        assert made[0].evaluations == {"cond": 3}
    elsewhere = RunSpec(model="owner/name", prompts=CAPTIONS[:1], guidance=name)
    assert "guide" not in elsewhere.guidance


@pytest.mark.parametrize("name", NAMES)
def test_a_row_aims_at_its_own_caption(pipe: Any, name: str) -> None:
    """In a batch as alone, and with several pictures of a prompt."""
    whole = latents_of(pipe, bare(name))
    twice = latents_of(pipe, bare(name), CAPTIONS[:1], num_images_per_prompt=2)
    assert torch.allclose(twice[0], whole[0], atol=1e-4) and not torch.allclose(twice[1], whole[1], atol=1e-2)
    for row in range(1, 3):
        noise = samplers.SeededNoise([row]).initial((4, 8, 8))
        alone = latents_of(pipe, bare(name), CAPTIONS[row : row + 1], latents=noise)
        assert torch.allclose(alone[0], whole[row], atol=1e-3)


@pytest.mark.parametrize("name", ["elucd", "classifier"])
def test_guidance_raises_what_the_guide_believes(pipe: Any, name: str) -> None:
    """At the strengths that the model brings, with as many steps as they are for."""
    run = functools.partial(latents_of, pipe, captions=CAPTIONS[:2], num_inference_steps=12)
    for aim, settings in ((aim_of_captions(CAPTIONS[:2]), ""), (aim_of_attribute("star"), "target=star")):
        before, after = (attribute_score(guide_at(run(rule), 0.0), aim) for rule in ("none", bare(name, settings)))
        assert (after > before).all() and after.mean() > before.mean() + 0.3


def test_what_is_refused(pipe: Any) -> None:
    x = toys.normal(2, 3, 4, seed=1)
    for bad, words in (
        (lambda: guidance.parse("gfcg-reconstruction:classifier=judge"), "unknown classifier 'judge'"),
        (lambda: bare("gfcg-reconstruction", "target=star"), "takes target=caption"),
        (lambda: guidance.parse("elucd:classifier=guide,target=stra"), "did you mean star"),
        (lambda: latents_of(pipe, bare("elucd"), ("two purple unicorns",)), "unknown word 'purple'"),
        (lambda: guide_at(x, 0.0), "reads latents"),
        (lambda: toys.guided(bare("gfcg-reconstruction"), (2, 3, 4))(x, toys.SD.level(500.0)), "was given prompts"),
        (lambda: attributes.aim_of("caption", None, "elucd"), "name an attribute"),
    ):
        with pytest.raises(UsageError, match=words):
            bad()
    embeds = torch.stack([embedded.text_embedding(c) for c in CAPTIONS[:1]])
    with attach(pipe, bare("classifier")), pytest.raises(UsageError, match="was given prompts"):
        pipe(prompt_embeds=embeds, num_inference_steps=2, output_type="latent", guidance_scale=1.0)
