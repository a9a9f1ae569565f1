"""Posteriors against particles: python docs/posterior_study.py ROOT PRIOR [PROCESSES].

For ten test digits with noise of 0.2 (ROOT holds `MNIST/raw`): how far the mean image of a
posterior is from that of the particles of two runs of `TemperedSMC`, root mean square in standard
deviations of the particles, and how wide it is; over the pixels in which the particles differ. The
row "again" is the second run against the first: what two right posteriors with so few draws show.
"""

import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import torch
from torch import Tensor

import flowprior
from datamodules import MNIST
from flowprior.inversion import Estimate, invert
from flowprior.inversion.solving import Solver
from flowprior.physics import Gaussian, denoising
from flowprior.posterior import Coupling, FullGaussian, Langevin, TemperedSMC, Variational

COUNT, SIGMA, DRAWS, PARTICLES = 10, 0.2, 400, 32
SEEN = 0.01
"""Standard deviation of pixels that are compared."""
REFERENCE = TemperedSMC(particles=PARTICLES)
POSTERIORS = {
    "FullGaussian, 60 iterations": (Variational(FullGaussian(), draws=8), 60),
    "Coupling, 60 iterations": (Variational(Coupling(), draws=8), 60),
    "Langevin, 26 iterations": (
        Langevin(chains=16, warm_up=10, leapfrog=24, metric="whitened"),
        26,
    ),
}
AGAIN = "again"


def recovered(
    root: str, name: str, index: int, solver: Solver, iterations: int, seed: int = 0
) -> tuple[Estimate, float]:
    """The posterior of one digit, and seconds of this process."""
    prior = flowprior.load(f"weights/{name}")
    data = MNIST(root, image_size=prior.image_shape[-1], data_range=(0.0, 1.0))
    truth = next(data.batches("test", COUNT, dequantized=False))[1][index : index + 1]
    y = Gaussian(SIGMA).add(truth, seed=0, indices=[index])
    options = {"sigma": SIGMA, "indices": [index], "iterations": iterations, "seed": seed}
    start = time.process_time()
    found = invert(prior, denoising(prior.image_shape), y, solver=solver, **options)
    for warning in found.warnings:
        print(f"digit {index}, {type(solver).__name__}: {warning}", flush=True)
    return found, time.process_time() - start


def draws_of(found: Estimate, count: int) -> Tensor:
    """Images (count, CHW), float64; of as many particles as there are each one."""
    return found.posterior.sample(count, seed=0).flatten(1).double()


def compared(root: str, name: str, index: int) -> dict[str, tuple[float, float, float]]:
    """Error of the mean, ratio of deviations, and seconds, of all posteriors of a digit."""
    runs = [recovered(root, name, index, REFERENCE, 100, seed) for seed in (0, 1)]
    first, second = (draws_of(found, PARTICLES) for found, _ in runs)
    both = torch.cat([first, second])
    rows = {AGAIN: (*against(second, first, both.std(0)), runs[1][1])}
    for label, (solver, iterations) in POSTERIORS.items():
        found, seconds = recovered(root, name, index, solver, iterations)
        rows[label] = (*against(draws_of(found, DRAWS), both, both.std(0)), seconds)
    return rows


def against(x: Tensor, reference: Tensor, deviation: Tensor) -> tuple[float, float]:
    """How far the mean of draws is from that of others, in deviations, and how wide they are."""
    seen = deviation > SEEN
    off = ((x.mean(0) - reference.mean(0)) / deviation)[seen].square().mean().sqrt()
    width = (x.std(0) / reference.std(0))[seen].log().mean().exp()
    return off.item(), width.item()


def main(root: str, name: str, processes: int = 1) -> None:
    """Print lines for each digit, and the means over digits with half of their 95 % interval."""
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        rows = []
        for index, found in enumerate(pool.map(partial(compared, root, name), range(COUNT))):
            for label, (off, width, seconds) in found.items():
                print(
                    f"digit {index}, {label}: mean {off:.2f} off, {width:.2f} as wide, "
                    f"{seconds:.0f} s",
                    flush=True,
                )
            rows.append(found)
    again, fitted = (2 / PARTICLES) ** 0.5, (0.5 / PARTICLES + 1 / DRAWS) ** 0.5
    print(f"Right posteriors would be about {again:.2f} (again) and {fitted:.2f} (others) off")
    for label in rows[0]:
        values = torch.tensor([found[label] for found in rows])
        half = 2.26 * values.std(0) / COUNT**0.5  # Student's t with 9 degrees of freedom
        (off, width, seconds), (off_half, width_half, _) = values.mean(0).tolist(), half.tolist()
        print(
            f"{label}: mean {off:.2f} ± {off_half:.2f} off, {width:.2f} ± {width_half:.2f} as "
            f"wide, {seconds:.0f} s"
        )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
