"""The embedded world: the same picture every time, true captions, splits that share nothing they should not."""

from __future__ import annotations

import numpy as np
import pytest

from pilotage.errors import UsageError
from pilotage.zoo import world


@pytest.mark.parametrize("split", world.SPLITS)
def test_parse_agrees_with_the_attributes(split):
    kinds = set()
    for index in range(2000):
        scene = world.scene(index, split)
        stated, true = world.parse(scene.caption), scene.attributes
        assert all(true[head] == name for head, name in stated.items()), scene.caption
        assert {"count", "shape", "colour"} <= set(stated)
        assert list(true) == list(world.ATTRIBUTES)
        assert all(name in world.ATTRIBUTES[head] for head, name in true.items())
        kinds.add(scene.kind)
    assert kinds == {"single", "group", "pair"}


def test_every_caption_word_is_in_the_vocabulary():
    words = {word for c in world.captions(range(2000)) for word in c.replace(",", " ").split()}
    assert words <= set(world.VOCABULARY)


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("two red stars on navy", "navy two star red none"),
        ("a blue ring left of a yellow heart on teal", UsageError),
        ("a blue ring left of a yellow heart on white", "white two ring blue heart yellow left"),
        ("On white, a yellow heart RIGHT of a blue ring.", "white two ring blue heart yellow left"),
        ("a yellow heart to the right of one blue ring", "two ring blue heart yellow left"),
        ("a red fish below an orange moon on a mint background", "mint two moon orange fish red above"),
        ("on sand, a big green fish", "sand one fish green big"),
        ("a small red star at the top on white", "white one star red small top"),
        ("three green fish", "three fish green none"),
        ("", UsageError),
        ("two red star on navy", UsageError),
        ("a purple star", UsageError),
    ],
)
def test_parse_by_hand(caption, expected):
    if expected is UsageError:
        with pytest.raises(UsageError) as caught:
            world.parse(caption)
        assert "\n" not in str(caught.value)
        assert "a blue ring left of a yellow heart on white" in str(caught.value)
    else:
        assert list(world.parse(caption).values()) == expected.split()


def test_pictures_are_deterministic_and_distinct():
    first, again = world.pictures(range(64)), world.pictures(range(64))
    assert first.dtype == np.uint8
    assert first.shape == (64, 32, 32, 3)
    assert np.array_equal(first, again)
    assert len({p.tobytes() for p in first}) == 64
    assert world.scene(5, "test") != world.scene(5, "train")
    assert world.pictures([3], size=64).shape == (1, 64, 64, 3)
    assert world.pictures([]).shape == (0, 32, 32, 3)


def test_a_picture_at_another_size_is_the_same_picture():
    small, large = world.scene(11).draw(32).astype(int), world.scene(11).draw(64).astype(int)
    halved = large.reshape(32, 2, 32, 2, 3).mean((1, 3))
    assert np.abs(halved - small).mean() < 4


def test_held_out_combinations_never_occur_elsewhere():
    def seen(split: str) -> list[set[tuple[str, str]]]:
        return [{thing.combination for thing in world.scene(i, split).objects} for i in range(2000)]

    assert not any(objects & world.HELD_OUT for split in ("train", "test") for objects in seen(split))
    assert all(objects & world.HELD_OUT for objects in seen("heldout"))
    assert len(world.HELD_OUT) == len(world.SHAPES)
    everything = set().union(*seen("train"))
    assert len(everything) == len(world.COLOURS) * len(world.SHAPES) - len(world.HELD_OUT)


def test_train_and_test_share_no_picture():
    train = {p.tobytes() for p in world.pictures(range(1500), "train")}
    assert not train & {p.tobytes() for p in world.pictures(range(1500), "test")}


def test_objects_can_be_told_from_their_background_and_from_each_other():
    for index in range(1500):
        scene = world.scene(index)
        assert all(world.separation(thing.colour, scene.background) >= 34 for thing in scene.objects)
        for i, one in enumerate(scene.objects):
            assert one.x - one.radius * 0.9 > 0
            assert one.x + one.radius * 0.9 < 1
            for two in scene.objects[:i]:
                assert np.hypot(one.x - two.x, one.y - two.y) > 2 * one.radius


def test_the_first_of_a_pair_is_left_or_above():
    for index in range(500):
        scene = world.scene(index)
        if scene.kind == "pair":
            one, two = scene.objects
            assert (one.x < two.x) if scene.relation == "left" else (one.y < two.y)
            assert (one.colour, one.shape) != (two.colour, two.shape)


def test_labels_are_class_numbers():
    labels = world.labels(range(200), "test")
    assert labels.dtype == np.int64
    assert labels.shape == (200, len(world.ATTRIBUTES))
    for row, index in zip(labels, range(200)):
        names = {head: names[k] for k, (head, names) in zip(row, world.ATTRIBUTES.items())}
        assert names == world.scene(index, "test").attributes
    assert (world.encode([{"shape": "star"}]) >= 0).sum() == 1


def test_an_unknown_split_is_refused_with_the_nearest():
    with pytest.raises(UsageError, match="heldout"):
        world.scene(0, "held-out")
