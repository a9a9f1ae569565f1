"""β by Bayes' rule, by tuning and by discrepancy against the best one: python docs/beta_study.py.

Mean PSNR of layer models recovered with the flow that comes with flowprior. "tuned" takes the β
that is best on validation images, for all test images; "oracle" the one that is best on the test
images themselves, which takes the truth and is what no method can know.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

import flowprior
from datamodules import LayerModels
from flowprior.inversion import MAP, Discrepancy, Solver, invert
from flowprior.metrics import psnr
from flowprior.physics import Gaussian, Noise, Relative, crosshole, denoising, gaussian_blur

GRID = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
COUNT = 12
ITERATIONS = 400
OPTIONS = {"projection_iterations": 20}
TOLERANCE = 3e-3
Recover = Callable[[str, Solver], Tensor]

flow = flowprior.load("weights/glow_layers_32")
data = LayerModels(image_size=32)


def truth(split: str) -> Tensor:
    """The first images of a split in [0, 1]."""
    return flow.to_unit_range(next(data.batches(split, COUNT, dequantized=False))[1])


def denoised(sigma: float, split: str, solver: Solver) -> Tensor:
    """PSNR of each image, from noisy images."""
    physics = denoising(flow.image_shape)
    return _scores(physics, physics, Gaussian(sigma), split, solver)


def deblurred(sigma: float, split: str, solver: Solver) -> Tensor:
    """PSNR of each image, from blurred images with noise."""
    physics = gaussian_blur(flow.image_shape, tau=1.5)
    return _scores(physics, physics, Gaussian(sigma), split, solver)


def tomography(sigma: float, split: str, solver: Solver) -> Tensor:
    """PSNR of each image, from travel times made on a finer grid."""
    maker = crosshole(flow.image_shape, refine=4)
    return _scores(maker, crosshole(flow.image_shape), Relative(sigma), split, solver)


def _scores(maker: object, physics: object, noise: Noise, split: str, solver: Solver) -> Tensor:
    x = truth(split)
    offset = 10**9 if split == "val" else 0  # noise of its own
    indices = range(offset, offset + COUNT)
    y = noise.add(maker.A(x), seed=0, indices=indices)
    start = torch.full_like(x, 0.5)
    found = invert(flow, physics, y, noise=noise, solver=solver, start=start, iterations=ITERATIONS)
    return psnr(found.x, x)


def report(name: str, recover: Recover, penalty: str) -> None:
    """Print one row."""
    solvers = [MAP(beta=beta, penalty=penalty, tolerance=TOLERANCE, **OPTIONS) for beta in GRID]
    curve = {
        split: torch.stack([recover(split, solver) for solver in solvers]).mean(1)
        for split in ("val", "test")
    }
    best = {split: int(scores.argmax()) for split, scores in curve.items()}
    bayes, tuned = curve["test"][GRID.index(1.0)], curve["test"][best["val"]]
    by_residual = recover("test", Discrepancy(MAP(penalty=penalty, **OPTIONS))).mean()
    print(
        f"{name}, {penalty}: Bayes {bayes:.2f} dB, tuned {tuned:.2f} (β {GRID[best['val']]}), "
        f"discrepancy {by_residual:.2f}, oracle {curve['test'].max():.2f} (β {GRID[best['test']]})",
        flush=True,
    )


if __name__ == "__main__":
    for penalty in ("latent_norm", "log_density"):
        report("denoising, noise 0.1", partial(denoised, 0.1), penalty)
        report("deblurring, noise 0.2", partial(deblurred, 0.2), penalty)
        report("tomography, noise 0.005", partial(tomography, 0.005), penalty)
