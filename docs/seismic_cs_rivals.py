"""Controls of the table of seismic compressed sensing: python docs/seismic_cs_rivals.py.

MAP with the Glow of the images alone, from the estimate of a Gaussian prior instead of grey, on the
data of `evaluate.py --config seismic_cs_64`, for both noise levels. β is the best of 0.3, 1, 3
and 9 on four validation images; the estimate has 300 iterations. Prints what each image has, for
paired comparisons. Seconds are CPU time of one core for one image.
"""

import time

import torch
from torch import Tensor

import flowprior
from datamodules import Reflectivities
from flowprior.inversion import MAP, Estimate, invert
from flowprior.metrics import snr
from flowprior.physics import Gaussian, make_operator
from flowprior.priors import GaussianPrior

SHAPE = (1, 64, 64)
NOISES = {"2 %": 1e-3, "20 %": 1e-2}
IMAGES, TUNED, TRAINING = 12, 4, 300
BETAS = 0.3, 1.0, 3.0, 9.0


def images(split: str, count: int) -> Tensor:
    """Reflectivities (count, 1, 64, 64)."""
    source = Reflectivities(image_size=SHAPE[1]).images(split)
    return torch.stack([source[i] for i in range(count)])


def main() -> None:
    """Print the rows."""
    physics = make_operator("random_gaussian", SHAPE, measurements=2048)
    gaussian = GaussianPrior(images("train", TRAINING), stationary=True)
    flow = flowprior.load("glow_seismic_64")

    def solved(truth: Tensor, split: str, sigma: float, beta: float) -> Estimate:
        first = 0 if split == "test" else 10**9
        indices = range(first, first + len(truth))
        options = {"sigma": sigma, "indices": indices}
        y = Gaussian(sigma).add(physics.A(truth), seed=0, indices=range(len(truth)))
        begun = MAP(start_scale=0.0)
        start = invert(gaussian, physics, y, solver=begun, iterations=300, **options).x
        solver = MAP(beta=beta, tolerance=0.003)
        return invert(flow, physics, y, solver=solver, start=start, iterations=300, **options)

    test, val = images("test", IMAGES), images("val", TUNED)
    for name, sigma in NOISES.items():
        tried = {b: snr(solved(val, "val", sigma, b).x, val).mean().item() for b in BETAS}
        beta = max(tried, key=tried.__getitem__)
        begun = time.process_time()
        found = solved(test, "test", sigma, beta)
        seconds = (time.process_time() - begun) / IMAGES
        each = snr(found.x, test)
        calls = found.calls.forward.double().mean()
        print(f"noise {name}: {each.mean():.2f} dB, β {beta} of {tried}, residual")
        print(
            f"  {found.residual.mean():.2f}, {calls:.0f} A, {seconds:.1f} s; each {each.tolist()}"
        )


if __name__ == "__main__":
    main()
