"""What an update of f-distill costs: its time against that of the network passes in it, and the memory of its modes.

    python benchmarks/distill_cost.py

Time: CPU seconds of an update (one step of the critics, one of the student, the optimisers' steps) over those of just
the passes through networks that it must do, with the same rows in a call, interleaved. Memory: the peak of an update
(tensors alive, counted) with weights, gradients and Adam's state, over that of training the teacher's network alone.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from pilotage.distill import DistillSpec, Opened, open_run
from pilotage.distill.method import DistillContext, Pictures

sys.path.append(str(Path(__file__).parent))
from adjoint_memory import Alive

BATCH, STRATA, PROMPT = 32, 4, "a red circle on white"
ROWS = BATCH // STRATA
LINE = f"f-distill:critic_steps=1,strata={STRATA}"


def opened(train: str, fake: str = "as the student") -> Opened:
    return open_run(DistillSpec(method=LINE, train=train, fake=fake, device="cpu", features=None, lora={"rank": 16}))


def context(of: Opened, state: dict[str, Any], update: int) -> DistillContext:
    def dealt(draw: int) -> Pictures:
        return Pictures([PROMPT] * BATCH, [f"{1000 * update + 100 * draw + i}" for i in range(BATCH)])

    def data(draw: int) -> Pictures:
        clean = torch.randn(BATCH, *of.roles.student.shape, generator=torch.Generator().manual_seed(draw))
        return Pictures([PROMPT] * BATCH, [f"{5000 + i}" for i in range(BATCH)], clean)

    return DistillContext(
        of.roles, "cfg:scale=3", dealt, data, 0, BATCH, update=update, updates=9, rows=BATCH, state=state
    )


def optimisers(of: Opened) -> dict[str, torch.optim.Optimizer]:
    return {role: torch.optim.AdamW(own, lr=1e-6) for role, own in of.roles.parameters().items()}


def update(of: Opened, steps: dict[str, torch.optim.Optimizer], state: dict[str, Any], number: int) -> None:
    for part in of.method.update(context(of, state, number)):
        part.loss.backward()
        if part.steps:
            steps[part.role].step()
            for optimiser in steps.values():
                optimiser.zero_grad()


def passes(of: Opened) -> None:
    """Only what goes through networks, in the order of the method; the middle's passes are those of `inner`."""
    roles, level = of.roles, of.roles.student.levels("trailing", 2)[1]
    x, some = torch.randn(BATCH, *roles.student.shape), [PROMPT] * ROWS

    def ask(learner: Any, rows: int, guidance: str = "none") -> torch.Tensor:
        found: torch.Tensor = learner.denoiser([PROMPT] * rows, guidance)(x[:rows], level).native
        return found

    with torch.no_grad():
        ask(roles.student, BATCH)
    for _ in range(STRATA):
        ask(roles.fake, ROWS).square().mean().backward()
    with torch.no_grad():
        for _ in range(2 * STRATA):
            roles.teacher.inner(some, x[:ROWS], level)
    with torch.no_grad():
        for _ in range(STRATA):
            ask(roles.teacher, ROWS, "cfg:scale=3")
            ask(roles.fake, ROWS)
            roles.teacher.inner(some, x[:ROWS], level)
    for _ in range(STRATA):
        leaf = x[:ROWS].clone().requires_grad_()
        roles.teacher.inner(some, leaf, level).square().mean().backward()
    ask(roles.student, BATCH).square().mean().backward()


def ratio(of: Opened, rounds: int) -> list[float]:
    steps, state, found = optimisers(of), {}, []
    for number in range(rounds + 1):
        start = time.process_time()
        passes(of)
        middle = time.process_time()
        for optimiser in steps.values():
            optimiser.zero_grad()
        begun = time.process_time()
        update(of, steps, state, number)
        found.append((time.process_time() - begun) / (middle - start))
    return found[1:]  # the first round warms up


def memory(of: Opened) -> int:
    """Bytes: networks, gradients and Adam's state, and the peak of an update."""
    steps, state = optimisers(of), {}
    networks = {id(p): p for learner in (of.roles.student, of.roles.fake) for p in learner.network.parameters()}  # type: ignore
    networks |= {id(p): p for p in of.pipe.unet.parameters()}
    learning = sum(p.numel() for own in of.roles.parameters().values() for p in own)
    with Alive() as alive:
        update(of, steps, state, 0)
    return sum(p.numel() * p.element_size() for p in networks.values()) + 12 * learning + alive.peak


def training_alone(of: Opened) -> int:
    """The same of one network that learns to denoise, BATCH rows at once."""
    network, level = of.roles.student, of.roles.student.levels("trailing", 2)[1]
    size = sum(p.numel() for p in network.parameters)
    with Alive() as alive:
        network.denoiser([PROMPT] * BATCH)(torch.randn(BATCH, *network.shape), level).native.square().mean().backward()
    return 16 * size + alive.peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    everything, adapters = opened("all"), opened("lora")
    for name, of in (("all weights", everything), ("adapters", adapters)):
        found = ratio(of, rounds)
        spread = f"{min(found):.2f} to {max(found):.2f}"
        print(f"{name}: an update takes {statistics.median(found):.2f} of its passes ({spread})")
    alone = training_alone(everything)
    for name, of in (("all weights", everything), ("adapters", adapters)):
        held = memory(of)
        print(f"{name}: {held / 1e6:.0f} MB, {held / alone:.2f} of one network's training ({alone / 1e6:.0f} MB)")


if __name__ == "__main__":
    main()
