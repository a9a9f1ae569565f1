"""Posteriors against particles: python docs/posterior_study.py ROOT PRIOR.

For ten test digits with noise of 0.2 (ROOT holds `MNIST/raw`): how far the mean image of a
posterior is from that of the particles of two runs of `TemperedSMC`, root mean square in standard
deviations of the particles, and how wide the posterior is beside them; over the pixels in which
particles differ. The row "again" is the second run against the first: what is seen of two right
posteriors with so few draws. A run of a TRUMPET takes five minutes of a core for each digit.
"""

import argparse
import time
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from multiprocessing import get_context

import torch
from torch import Tensor

import flowprior
from datamodules import MNIST
from evaluation.table import summarise
from flowprior.inversion import Estimate, invert
from flowprior.inversion.solving import Solver
from flowprior.physics import Gaussian, denoising
from flowprior.posterior import Coupling, FullGaussian, Langevin, TemperedSMC, Variational
from flowprior.priors import Prior

COUNT, SIGMA, DRAWS, PARTICLES = 10, 0.2, 400, 32
SEEN = 0.01
"""Standard deviation of pixels that are compared."""
REFERENCE = TemperedSMC(particles=PARTICLES), 100
POSTERIORS = {
    "FullGaussian, 60 iterations": (Variational(FullGaussian(), draws=8), 60),
    "Coupling, 60 iterations": (Variational(Coupling(), draws=8), 60),
    "Langevin, 26 iterations": (
        Langevin(chains=16, warm_up=10, leapfrog=24, metric="whitened"),
        26,
    ),
}


@cache
def given(root: str, name: str) -> tuple[Prior, Tensor]:
    """The prior, and digits (COUNT, 1, H, W) in [0, 1]."""
    prior = flowprior.load(f"weights/{name}")
    data = MNIST(root, image_size=prior.image_shape[-1])
    return prior, data.unit_images("test", range(COUNT))


def recovered(
    root: str, name: str, index: int, solver: Solver, iterations: int, seed: int = 0
) -> tuple[Estimate, float]:
    """The posterior of one digit, and seconds of this process."""
    prior, digits = given(root, name)
    y = Gaussian(SIGMA).add(digits[index : index + 1], seed=0, indices=[index])
    options = {"sigma": SIGMA, "indices": [index], "iterations": iterations, "seed": seed}
    start = time.process_time()
    found = invert(prior, denoising(prior.image_shape), y, solver=solver, **options)
    for warning in found.warnings:
        print(f"digit {index}, {type(solver).__name__}: {warning}", flush=True)
    return found, time.process_time() - start


def draws_of(found: Estimate, count: int) -> Tensor:
    """Images (count, CHW), float64; each particle once, if there are so many."""
    return found.posterior.sample(count, seed=0).flatten(1).double()


def compared(root: str, name: str, index: int) -> dict[str, tuple[float, float, float]]:
    """Error of the mean, ratio of deviations, and seconds, of all posteriors of a digit."""
    runs = [recovered(root, name, index, *REFERENCE, seed) for seed in (0, 1)]
    first, second = (draws_of(found, PARTICLES) for found, _ in runs)
    both = torch.cat([first, second])
    rows = {"again": (*against(second, first, both.std(0)), runs[1][1])}
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


def main(root: str, name: str, processes: int) -> None:
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
    print(f"Independent draws would be about {again:.2f} (again) and {fitted:.2f} (others) off")
    for label in rows[0]:
        each = zip(*(found[label] for found in rows), strict=True)
        off, width, seconds = (summarise(list(enumerate(values))) for values in each)
        print(
            f"{label}: mean {off.mean:.2f} ± {off.ci95:.2f} off, {width.mean:.2f} ± "
            f"{width.ci95:.2f} as wide, {seconds.mean:.0f} s"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root")
    parser.add_argument("prior")
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    main(options.root, options.prior, options.processes)
