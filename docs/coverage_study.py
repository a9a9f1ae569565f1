"""What tells that a prior does not cover the data: python docs/coverage_study.py ROOT PRIOR ...

For digits and other images of 32×32 pixels, inverted with a prior of digits or of layer models: the
area under the receiver operating characteristic (AUC), with half of its 95 % interval by DeLong et
al. (1988), of statistics that take no truth, against images of the prior's own kind; and how many
images have a surprise beyond its two levels. PRIOR is a name of `KINDS`; ROOT holds `MNIST/raw`.
"""

import sys
import time

import torch
from torch import Tensor

import flowprior
from datamodules import MNIST, LayerModels
from flowprior.inversion import MAP, invert
from flowprior.inversion.coverage import FAR, UNLIKELY
from flowprior.metrics import psnr
from flowprior.physics import Gaussian, denoising, random_gaussian
from flowprior.priors import Prior

COUNT, ITERATIONS = 24, 150
SHAPE = (1, 32, 32)
KINDS = {
    "trumpet_mnist": ("digits", "rotated digits", "layer models", "own draws"),
    "coupling1x1_mnist": ("digits", "rotated digits", "layer models", "own draws"),
    "glow_layers_32": ("layer models", "rotated models", "digits", "own draws"),
}
"""Names of priors, and what is recovered with them: images of their own kind first."""
PROBLEMS = {
    "denoising": (denoising(SHAPE), 0.1),
    "random Gaussian 250": (random_gaussian(SHAPE, measurements=250), 0.05),
}


def images(kind: str, prior: Prior, root: str) -> Tensor:
    """Test images (COUNT, 1, 32, 32) in [0, 1]; draws of the prior may overshoot."""
    if kind == "own draws":
        generator = torch.Generator().manual_seed(0)
        z = torch.randn(COUNT, *prior.latent.shape, generator=generator)
        return prior.to_unit_range(prior.generate(z))
    options = {"image_size": 32, "data_range": (0.0, 1.0)}
    data = MNIST(root, **options) if "digits" in kind else LayerModels(**options)
    x = next(data.batches("test", COUNT, dequantized=False))[1]
    return x.rot90(1, (2, 3)) if "rotated" in kind else x


def statistics(prior: Prior, problem: str, truth: Tensor) -> dict[str, Tensor]:
    """Statistics (COUNT,) by name, and the PSNR."""
    physics, sigma = PROBLEMS[problem]
    y = Gaussian(sigma).add(physics.A(truth), seed=0, indices=range(COUNT))
    solver = MAP(tolerance=3e-3, start_scale=0.1)
    found = invert(prior, physics, y, sigma=sigma, solver=solver, iterations=ITERATIONS)
    values = {
        "surprise": found.surprise,
        "norm of the latent": found.z.flatten(1).double().square().mean(1).sqrt(),
        "residual": found.residual,
    }
    if y.shape == truth.shape:
        values["correlation of residuals"] = correlation(found.x - y)
    return {**values, "PSNR": psnr(found.x, truth.clamp(0, 1))}


def correlation(residual: Tensor) -> Tensor:
    """Of horizontal neighbours in residuals (B, C, H, W), (B,)."""
    r = residual.double() - residual.double().mean((1, 2, 3), keepdim=True)
    return (r[..., 1:] * r[..., :-1]).sum((1, 2, 3)) / r.square().sum((1, 2, 3))


def auc(own: Tensor, other: Tensor) -> tuple[float, float]:
    """Chance that a value of other images is the larger one, and half of its 95 % interval."""
    larger = (other[:, None] > own).double() + 0.5 * (other[:, None] == own).double()
    variance = larger.mean(0).var() / len(own) + larger.mean(1).var() / len(other)
    return larger.mean().item(), 1.96 * variance.sqrt().item()


def main(root: str, names: list[str]) -> None:
    """Print a line for each prior, problem and kind of images."""
    for name in names:
        prior = flowprior.load(f"weights/{name}")
        for problem in PROBLEMS:
            own = None
            for kind in KINDS[name]:
                start = time.process_time()
                found = statistics(prior, problem, images(kind, prior, root))
                seconds = (time.process_time() - start) / COUNT
                score, beyond = found.pop("PSNR").mean(), found["surprise"]
                counts = [
                    f"{(beyond > level).sum()} above {level:.2g}" for level in (UNLIKELY, FAR)
                ]
                own = own or found
                areas = {key: auc(own[key], value) for key, value in found.items()}
                text = ", ".join(f"{key} {a:.2f} ± {e:.2f}" for key, (a, e) in areas.items())
                print(
                    f"{name}, {problem}, {kind}: {score:.1f} dB, surprise {' and '.join(counts)} "
                    f"of {COUNT}, median {beyond.median():.1f}; AUC: {text}; {seconds:.1f} s",
                    flush=True,
                )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
