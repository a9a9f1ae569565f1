"""What tells that a prior does not cover the data: python docs/coverage_study.py ROOT PRIOR ...

For digits and other images, inverted with a prior of digits or of layer models: the area under the
receiver operating characteristic (AUC), with half of its 95 % interval by DeLong et al. (1988), of
statistics that take no truth, against images of the prior's own kind; and how many images have a
surprise beyond its two levels. PRIOR is a name of `KINDS`, or FOLDER:DIGIT, the weights of a flow
that was trained without this digit; ROOT holds `MNIST/raw`.
"""

import argparse
import time
from functools import partial

import torch
from torch import Tensor

import flowprior
from datamodules import MNIST, LayerModels
from flowprior.inversion import MAP, invert
from flowprior.inversion.coverage import FAR, UNLIKELY
from flowprior.metrics import psnr
from flowprior.physics import Gaussian, denoising, random_gaussian
from flowprior.priors import Prior

KINDS = {
    "trumpet_mnist": ("digits", "rotated digits", "layer models", "own draws"),
    "coupling1x1_mnist": ("digits", "rotated digits", "layer models", "own draws"),
    "glow_layers_32": ("layer models", "rotated models", "digits", "own draws"),
}
"""Names of priors, and what is recovered with them: images of their own kind first."""
PROBLEMS = {
    "denoising": (denoising, 0.1),
    "random Gaussian 250": (partial(random_gaussian, measurements=250), 0.05),
}


def loaded(name: str) -> tuple[Prior, tuple[str, ...]]:
    """A prior, and what is recovered with it.

    Raises:
        ValueError: it is neither a name of `KINDS` nor FOLDER:DIGIT.
    """
    if name in KINDS:
        return flowprior.load(f"weights/{name}"), KINDS[name]
    folder, _, digit = name.rpartition(":")
    if not folder or digit not in list("0123456789"):
        raise ValueError(f"PRIOR must be one of {', '.join(KINDS)}, or FOLDER:DIGIT, got {name}")
    kinds = f"digits without {digit}", f"digit {digit}", "rotated digits", "layer models"
    return flowprior.load(folder), kinds


def images(kind: str, prior: Prior, root: str, count: int) -> Tensor:
    """Test images (count, 1, H, W) in [0, 1]; draws of the prior may overshoot."""
    if kind == "own draws":
        generator = torch.Generator().manual_seed(0)
        z = torch.randn(count, *prior.latent.shape, generator=generator)
        return prior.to_unit_range(prior.generate(z))
    size = prior.image_shape[-1]
    match kind.split():
        case ["digit", one]:
            data = MNIST(root, image_size=size, digits=[int(one)])
        case ["digits", "without", one]:
            others = [other for other in range(10) if other != int(one)]
            data = MNIST(root, image_size=size, digits=others)
        case [*_, "digits"]:
            data = MNIST(root, image_size=size)
        case _:
            data = LayerModels(image_size=size)
    x = data.unit_images("test", range(count))
    return x.rot90(1, (2, 3)) if "rotated" in kind else x


def statistics(prior: Prior, problem: str, truth: Tensor, iterations: int) -> dict[str, Tensor]:
    """Statistics (B,) by name, and the PSNR, of images (B, C, H, W)."""
    make, sigma = PROBLEMS[problem]
    physics = make(prior.image_shape)
    y = Gaussian(sigma).add(physics.A(truth), seed=0, indices=range(len(truth)))
    solver = MAP(tolerance=3e-3, start_scale=0.1)
    found = invert(prior, physics, y, sigma=sigma, solver=solver, iterations=iterations)
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


def main(root: str, names: list[str], problems: list[str], count: int, iterations: int) -> None:
    """Print a line for each prior, problem and kind of images."""
    for name in names:
        prior, kinds = loaded(name)
        for problem in problems:
            own = None
            for kind in kinds:
                start = time.process_time()
                truth = images(kind, prior, root, count)
                found = statistics(prior, problem, truth, iterations)
                seconds = (time.process_time() - start) / count
                score, beyond = found.pop("PSNR").mean(), found["surprise"]
                counts = [
                    f"{(beyond > level).sum()} above {level:.2g}" for level in (UNLIKELY, FAR)
                ]
                own = own or found
                areas = {key: auc(own[key], value) for key, value in found.items()}
                text = ", ".join(f"{key} {a:.2f} ± {e:.2f}" for key, (a, e) in areas.items())
                print(
                    f"{name}, {problem}, {kind}: {score:.1f} dB, surprise {' and '.join(counts)} "
                    f"of {count}, median {beyond.median():.1f}; AUC: {text}; {seconds:.1f} s",
                    flush=True,
                )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root")
    parser.add_argument("prior", nargs="+")
    parser.add_argument("--problem", choices=PROBLEMS, nargs="+", default=list(PROBLEMS))
    parser.add_argument("--count", type=int, default=24, help="images of each kind")
    parser.add_argument("--iterations", type=int, default=150, help="at most")
    chosen = parser.parse_args()
    try:
        main(chosen.root, chosen.prior, chosen.problem, chosen.count, chosen.iterations)
    except ValueError as error:
        parser.error(str(error))
