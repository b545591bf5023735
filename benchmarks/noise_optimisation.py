"""Gradients through sampling at work: the initial noise of the embedded model, optimised for what its picture shows.

    python benchmarks/noise_optimisation.py reward [--wish navy] [--iterations 15]
    python benchmarks/noise_optimisation.py blend [--pictures 18 74] [--iterations 25]

reward: noise of a few captions by DOODL until the guiding classifier sees the wish, an attribute that the captions
leave open, in the end of the run; the judge, which gives no gradient, says whether it is there. blend: the noise of two
pictures by an exact inversion, half-way between them on the sphere, and from there until the features of the picture
are as near to the one as to the other. Pictures are saved under docs/pictures/: before above after; and first,
half-way, optimised, second.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from pilotage.guidance.gradient.attributes import aim_of_attribute, attribute_score, guide_at
from pilotage.guidance.gradient.losses import head_of
from pilotage.guidance.optimise import DOODL, Problem
from pilotage.guidance.pipelines.denoiser import denoiser_of
from pilotage.samplers import SeededNoise, adjoint, make_grid
from pilotage.samplers.inversion import invert, make_inversion
from pilotage.zoo import embedded, world

PICTURES = Path(__file__).parent.parent / "docs" / "pictures"
CAPTIONS = ("a red star", "a yellow fish", "an orange heart", "two pink rings")


def decode_with(pipe: Any) -> Any:
    """Latents -> pictures (B, 3, 32, 32) in [0, 1], with a gradient."""
    pipe.vae.requires_grad_(False)
    return lambda z: (pipe.vae.decode(z / pipe.vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)


def save(name: str, *rows: Tensor, scale: int = 3) -> None:
    """Rows of pictures, one above the other, enlarged, as a PNG of 64 colours."""
    sheet = torch.cat([torch.cat(list(row), dim=2) for row in rows], dim=1)
    array = (sheet.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
    image = Image.fromarray(array).resize((array.shape[1] * scale, array.shape[0] * scale), Image.Resampling.NEAREST)
    PICTURES.mkdir(exist_ok=True)
    image.quantize(64).save(PICTURES / name, optimize=True)
    print(f"saved docs/pictures/{name}")


def seen(judge: Any, pictures: Tensor, head: str) -> list[str]:
    """What the judge reads off each picture."""
    numbers = judge.predict((pictures * 255).round().to(torch.uint8))[head]
    return [world.ATTRIBUTES[head][int(n)] for n in numbers]


def reward(pipe: Any, wish: str, iterations: int) -> None:
    decode, judge = decode_with(pipe), embedded.judge()
    denoiser = denoiser_of(pipe, list(CAPTIONS), "cfg:scale=3")
    aim = aim_of_attribute(wish)
    head, _ = head_of(wish)

    def loss(z: Tensor) -> Tensor:
        return -attribute_score(guide_at(z, 0.0), aim.expand(len(z), -1))

    problem = Problem(denoiser, loss, sampler="dpmpp-2m", grid="exponential", steps=12, decode=decode)
    x = SeededNoise(range(len(CAPTIONS))).initial((4, 8, 8)) * problem.levels[0].sigma
    found = DOODL(iterations=iterations, rate=0.15).optimise(
        problem, x, told=lambda i, values: print(f"{i:3d}  {values.mean():8.3f}", flush=True)
    )
    with torch.no_grad():
        before = decode(problem.run(x))
    assert found.picture is not None
    print("captions     ", *CAPTIONS, sep="\n  ")
    print(f"judge, {head}, before: {seen(judge, before, head)}")
    print(f"judge, {head}, after:  {seen(judge, found.picture, head)}")
    save("optimised-noise.png", before, found.picture)


def between(a: Tensor, b: Tensor) -> Tensor:
    """Half-way on the sphere, row by row."""
    one, other = a.flatten(1), b.flatten(1)
    angle = torch.cosine_similarity(one, other).clamp(-1, 1).arccos()
    share = (torch.sin(angle / 2) / torch.sin(angle)).reshape(-1, 1)
    return ((one + other) * share).reshape(a.shape)


def blend(pipe: Any, indices: list[int], iterations: int) -> None:
    decode, features = decode_with(pipe), embedded.features()
    scenes = [world.scene(i, "test") for i in indices]
    drawn = torch.stack([torch.from_numpy(scene.draw().copy()) for scene in scenes]).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        latents = pipe.vae.encode(2 * drawn - 1).latent_dist.mode() * pipe.vae.config.scaling_factor
    denoiser = denoiser_of(pipe, "", "none")
    levels = make_grid("exponential", denoiser.schedule, 16)
    how = make_inversion("bdia")
    noises = how.noise(invert(denoiser, latents, levels, method=how))
    with torch.no_grad():
        goals = features.embed(2 * decode(latents) - 1)

    def apart(z: Tensor) -> Tensor:
        """Squared distances in feature space to both, (B, 2)."""
        made = features.embed(2 * decode(z) - 1)
        return (made[:, None] - goals).square().sum(2) / (goals[:1] - goals[1:]).square().sum(1)

    x = between(noises[:1], noises[1:]).detach()
    radius, shown = x.norm(), []
    x.requires_grad_()
    method = torch.optim.Adam([x], lr=0.05)
    for i in range(iterations + 1):
        end = adjoint.sample(denoiser, x, method="reversible", sampler=how, grid=levels, parameters=())
        distances = apart(end)
        if i in (0, iterations):
            shown.append(decode(end.detach()))
            print(f"{i:3d}  squared distances to the two, in units of their own: {distances[0].tolist()}", flush=True)
        if i == iterations:
            break
        method.zero_grad()
        (distances.sum() + (distances[:, 0] - distances[:, 1]).square().sum()).backward()
        method.step()
        with torch.no_grad():
            x *= radius / x.norm()
    pictures = torch.cat([decode(latents[:1]), *shown, decode(latents[1:])])
    print([scene.caption for scene in scenes])
    save("blended-noise.png", pictures.detach())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("reward", "blend"))
    parser.add_argument("--wish", default="navy")
    parser.add_argument("--pictures", type=int, nargs=2, default=(18, 74))
    parser.add_argument("--iterations", type=int, default=20)
    args = parser.parse_args()
    pipe = embedded.load()
    pipe.unet.requires_grad_(False)
    if args.what == "reward":
        reward(pipe, args.wish, args.iterations)
    else:
        blend(pipe, list(args.pictures), args.iterations)


if __name__ == "__main__":
    main()
