"""Fitted posteriors against chains: python docs/posterior_study.py ROOT PRIOR CHAIN_ITERATIONS.

For ten test digits with noise of 0.2 (ROOT holds `MNIST/raw`), or draws of the prior if ROOT is
"prior": how far the mean image of a fitted posterior is from that of the chains, in standard
deviations of the chains, and how wide it is; over the pixels in which the chains differ. Compare
with a figure only where the R-hat of the image, which is that of the worst pixel, is below 1.05.
"""

import sys
import time

import torch
from torch import Tensor

import flowprior
from datamodules import MNIST
from flowprior.inversion import invert
from flowprior.physics import Gaussian, denoising
from flowprior.posterior import Coupling, FullGaussian, Langevin, LowRank, Variational
from flowprior.posterior.chains import MIXED
from flowprior.posterior.diagnostics import r_hat
from flowprior.priors import Prior

COUNT, SIGMA, DRAWS = 10, 0.2, 400
SEEN = 0.01
"""Standard deviation of pixels that are compared."""
FITTED = {
    "FullGaussian, 60 iterations": (Variational(FullGaussian(), draws=8, whiten=True), 60),
    "LowRank, 60 iterations": (Variational(LowRank(), draws=8, whiten=True), 60),
    "Coupling, 60 iterations": (Variational(Coupling(), draws=8, whiten=True), 60),
    "Coupling, 300 iterations": (Variational(Coupling(), draws=8, whiten=True), 300),
}
CHAINS = {"chains": 16, "leapfrog": 24, "metric": "whitened"}


def digits(root: str, prior: Prior, index: int) -> Tensor:
    """One image (1, C, H, W) in [0, 1]."""
    if root == "prior":
        z = prior.latent.draw(1, seed=index, like=prior.like)
        return prior.to_unit_range(prior.generate(prior.latent.shaped(z)))
    options = {"image_size": prior.image_shape[-1], "data_range": (0.0, 1.0)}
    images = next(MNIST(root, **options).batches("test", COUNT, dequantized=False))[1]
    return images[index : index + 1]


def compared(prior: Prior, truth: Tensor, index: int, iterations: int) -> list[list[float]]:
    """R-hat, error of the mean, ratio of deviations and seconds, of the chains and all fits."""
    physics = denoising(prior.image_shape)
    y = Gaussian(SIGMA).add(truth, seed=0, indices=[index])
    options = {"sigma": SIGMA, "indices": [index]}
    start = time.process_time()
    warm_up = max(20, iterations // 4)
    solver = Langevin(warm_up=warm_up, **CHAINS)
    found = invert(prior, physics, y, solver=solver, iterations=iterations, **options)
    seconds = time.process_time() - start
    draws = images_of(prior, found.posterior.draws[:, 0])
    mean, deviation = draws.flatten(0, 1).mean(0), draws.flatten(0, 1).std(0)
    seen = deviation > SEEN
    rows = [[r_hat(draws[:, :, seen]).amax().item(), 0.0, 1.0, seconds]]
    for solver, count in FITTED.values():
        start = time.process_time()
        fitted = invert(prior, physics, y, solver=solver, iterations=count, **options)
        seconds = time.process_time() - start
        x = fitted.posterior.sample(DRAWS, seed=0).flatten(1).double()
        off = ((x.mean(0) - mean) / deviation)[seen].square().mean().sqrt()
        width = (x.std(0) / deviation)[seen].log().mean().exp()
        rows.append([torch.nan, off.item(), width.item(), seconds])
    return rows


@torch.no_grad()
def images_of(prior: Prior, z: Tensor) -> Tensor:
    """Pixels (N, chains, CHW) float64 of latents (N, chains, n)."""
    made = [prior.to_unit_range(prior.generate(prior.latent.shaped(one))) for one in z]
    return torch.stack(made).flatten(2).double()


def told(label: str, off: float, width: float, seconds: float) -> str:
    """A line on one kind of fit."""
    return f"{label}: mean {off:.2f} off, {width:.2f} as wide, {seconds:.0f} s"


def main(root: str, name: str, iterations: int) -> None:
    """Print a line for each digit, and the means over those whose chains agree."""
    prior, kept = flowprior.load(f"weights/{name}"), []
    for index in range(COUNT):
        rows = compared(prior, digits(root, prior, index), index, iterations)
        agree = rows[0][0] < MIXED
        print(f"digit {index}: R-hat {rows[0][0]:.3f}, chains {rows[0][3]:.0f} s", flush=True)
        for label, (_, off, width, seconds) in zip(FITTED, rows[1:], strict=True):
            print(f"  {told(label, off, width, seconds)}", flush=True)
        kept += [rows] if agree else []
    print(f"the chains of {len(kept)} of {COUNT} digits agree")
    if kept:
        means = torch.tensor(kept).mean(0)
        for label, (_, off, width, seconds) in zip(FITTED, means[1:].tolist(), strict=True):
            print(told(label, off, width, seconds))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
