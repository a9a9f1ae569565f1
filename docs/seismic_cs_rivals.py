"""Controls of the table of seismic compressed sensing: python docs/seismic_cs_rivals.py [TEXT].

On the data of `evaluate.py --config seismic_cs_64`, for both noise levels:

- The Gaussian prior of the images that the flows have learned: in 64 greys, with uniform noise;
  and that of the table with a choice of β.
- At 20 % the conditional flow given the linear estimate for this noise, in place of that for 2 %,
  which it was trained with: the amortised mean, and preconditioned MAP.
- MAP with the Glow of the images that begins at the estimate of the Gaussian prior, not at grey.

β is the best of 0.3, 1, 3, 9, 27 and, while the last is best, of larger ones on the four validation
images of the table. Prints what each image has, for paired comparisons. Seconds are CPU time of one
core for one image. With TEXT only the rows whose names it is in.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

import flowprior
from datamodules import Reflectivities
from flowprior.inversion import MAP, Estimate, invert
from flowprior.metrics import snr
from flowprior.physics import Gaussian, make_operator
from flowprior.posterior import Amortised
from flowprior.priors import GaussianPrior, Prior

SHAPE = (1, 64, 64)
NOISES = {"2 %": 1e-3, "20 %": 1e-2}
COUNTS = {"val": 4, "test": 12}
TRAINING, ITERATIONS = 300, 300
BETAS = 0.3, 1.0, 3.0, 9.0, 27.0
MOST = 9
GREYS = 64
FIRST = {"test": 0, "val": 10**9}
"""Numbers of the first images, for the draws of their noise: as in tables."""

PHYSICS = make_operator("random_gaussian", SHAPE, measurements=2048)


def images(split: str, count: int) -> Tensor:
    """Reflectivities (count, 1, 64, 64)."""
    source = Reflectivities(image_size=SHAPE[1]).images(split)
    return torch.stack([source[i] for i in range(count)])


def quantised(x: Tensor) -> Tensor:
    """As the flows have seen images: in 64 greys, with uniform noise of one grey."""
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(0))
    return ((x.clamp(0, 1 - 1e-6) * GREYS).floor() + noise) / GREYS


class Data:
    """Images of a split and their data at one noise level."""

    def __init__(self, split: str, sigma: float) -> None:
        self.truth = images(split, COUNTS[split])
        self.indices = range(FIRST[split], FIRST[split] + COUNTS[split])
        self.sigma = sigma
        clean = PHYSICS.A(self.truth)
        self.y = Gaussian(sigma).add(clean, seed=0, indices=self.indices)

    def invert(self, prior: Prior, **options: object) -> Estimate:
        """With this noise level."""
        given = {"sigma": self.sigma, "indices": self.indices, **options}
        return invert(prior, PHYSICS, self.y, **given)


def row(name: str, sigma: float, solved: Callable[[Data, float], Estimate], tuned: bool) -> None:
    """Print a row: β by the validation images, then the test images."""
    if len(sys.argv) > 1 and sys.argv[1] not in name:
        return
    beta, tried = 1.0, {}
    if tuned:
        data = Data("val", sigma)
        grid = [*BETAS]
        while len(tried) < len(grid) <= MOST:
            tried |= {
                b: snr(solved(data, b).x, data.truth).mean().item() for b in grid if b not in tried
            }
            beta = max(tried, key=tried.__getitem__)
            grid += [3 * beta] if beta == grid[-1] else []
    data = Data("test", sigma)
    begun = time.process_time()
    found = solved(data, beta)
    seconds = (time.process_time() - begun) / len(data.truth)
    each = snr(found.x, data.truth)
    each_beta = ", ".join(f"{b:g}: {value:.2f}" for b, value in tried.items())
    counts = found.calls.forward.double().mean(), found.calls.adjoint.double().mean()
    print(f"{name}: {each.mean():.2f} dB, β {beta:g} of {each_beta or 'one'}; residual")
    print(f"  {found.residual.mean():.2f}; calls {counts[0]:.0f}, {counts[1]:.0f};", end=" ")
    print(f"{seconds:.1f} s; each", end=" ")
    print(*(f"{value:.2f}" for value in each), flush=True)


def main() -> None:
    """Print the rows."""
    exact = GaussianPrior(images("train", TRAINING), stationary=True)
    rough = GaussianPrior(quantised(images("train", TRAINING)), stationary=True)
    conditional = flowprior.load("seismic_cs_64")

    def from_grey(prior: Prior, tolerance: float) -> Callable[[Data, float], Estimate]:
        def solved(data: Data, beta: float) -> Estimate:
            solver = MAP(beta=beta, start_scale=0.0, tolerance=tolerance)
            return data.invert(prior, solver=solver, iterations=ITERATIONS)

        return solved

    glow = flowprior.load("glow_seismic_64")

    def from_estimate(data: Data, beta: float) -> Estimate:
        start = from_grey(exact, 0.0)(data, 1.0)
        solver = MAP(beta=beta, tolerance=0.003)
        found = data.invert(glow, solver=solver, start=start.x, iterations=ITERATIONS)
        return replace(found, calls=start.calls + found.calls)

    matched = replace(conditional.conditioning, sigma=NOISES["20 %"])
    conditional.conditioning = matched

    def amortised(data: Data, beta: float) -> Estimate:
        return data.invert(conditional, solver=Amortised(mean_draws=64), iterations=0)

    strong = NOISES["20 %"]
    row("amortised mean, estimate for 20 %", strong, amortised, tuned=False)
    row("preconditioned MAP, estimate for 20 %", strong, from_grey(conditional, 0.003), tuned=True)
    for name, sigma in NOISES.items():
        row(f"Gaussian prior, {name}", sigma, from_grey(exact, 0.0), tuned=True)
        row(f"Gaussian prior of 64 greys, {name}", sigma, from_grey(rough, 0.0), tuned=True)
        row(f"MAP from the Gaussian estimate, {name}", sigma, from_estimate, tuned=True)


if __name__ == "__main__":
    main()
