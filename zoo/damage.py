"""Pictures that are wrong in one known way each, to see which metric notices.

All take and give uint8 (N, H, W, 3) and round once, half to even. What is random has a seed of its own.
"""

from __future__ import annotations

import io
import itertools
from collections import Counter
from collections.abc import Callable

import numpy as np
from PIL import Image

from .world import Scene, scene

LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601


def blurred(pictures: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur with a deviation of sigma pixels, edges repeated."""
    reach = max(1, round(4 * sigma))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    found = pictures.astype(np.float64)
    for axis in (1, 2):
        padded = np.pad(found, [(reach, reach) if a == axis else (0, 0) for a in range(4)], mode="edge")
        size = found.shape[axis]
        found = sum(w * padded.take(range(i, i + size), axis) for i, w in enumerate(kernel / kernel.sum()))
    return _bytes(found)


def noisy(pictures: np.ndarray, levels: float, seed: int = 0) -> np.ndarray:
    """Gaussian noise with a deviation of so many of the 255 levels, independent in every channel."""
    rng = np.random.default_rng(seed)
    return _bytes(pictures + levels * rng.standard_normal(pictures.shape))


def saturated(pictures: np.ndarray, factor: float) -> np.ndarray:
    """Each pixel's distance from its own grey times factor: 0 is grey, above 1 gaudy."""
    grey = (pictures @ LUMA)[..., None]
    return _bytes(grey + factor * (pictures - grey))


def contrasted(pictures: np.ndarray, factor: float) -> np.ndarray:
    """Each pixel's distance from the mean colour of its picture times factor."""
    mean = pictures.mean((1, 2), keepdims=True)
    return _bytes(mean + factor * (pictures - mean))


def compressed(pictures: np.ndarray, quality: int) -> np.ndarray:
    """Through JPEG, as Pillow writes it, and back."""
    return np.stack([_through_jpeg(picture, quality) for picture in pictures])


def noise_pictures(count: int, size: int = 32, seed: int = 0) -> np.ndarray:
    """Pictures in which every byte is drawn evenly."""
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def numbers_where(wanted: Callable[[Scene], bool], count: int, first: int = 0, split: str = "test") -> list[int]:
    """Numbers of scenes from `first` on that are wanted, as many of each kind as among the `count` scenes from there.

    Without that care a lost colour is a loss of pairs as well, since a pair has two chances to show it.
    """
    room = Counter(scene(number, split).kind for number in range(first, first + count))
    found: list[int] = []
    for number in itertools.count(first):
        if len(found) == count:
            return found
        one = scene(number, split)
        if room[one.kind] and wanted(one):
            room[one.kind] -= 1
            found.append(number)
    raise AssertionError("numbers do not end")


def _through_jpeg(picture: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def _bytes(values: np.ndarray) -> np.ndarray:
    return np.rint(values).clip(0, 255).astype(np.uint8)
