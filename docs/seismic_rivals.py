"""What the table of seismic images is measured against.

    PYTHONPATH=. python docs/seismic_rivals.py grids
    PYTHONPATH=. python docs/seismic_rivals.py table
    PYTHONPATH=. python docs/seismic_rivals.py started
    PYTHONPATH=. python docs/seismic_rivals.py same weights/conditional_glow_seismic_64

`grids` prints the error of waves for several numbers of points in a wavelength. `table` prints
a migrated image with weights of depth, and least squares by conjugate gradients, on the data of
`evaluate.py --config seismic_64`, whose waves come from a grid four times as fine as that of the
inversions; the number of iterations is the best of 5, 10, 20, 30, 60 and 100 on four validation
images. `started` prints MAP with the Glow of the images alone from the estimate of a Gaussian prior
instead of grey, the best of 30, 60 and 120 iterations on the validation images, on the same data.
`same` prints these and some of the table on data of the inversions' own grid. Seconds are
CPU time of one core for one image.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from scipy.stats import t
from torch import Tensor

import flowprior
from datamodules import Reflectivities
from flowprior.inversion import MAP, Estimate, Solver, TotalVariation, invert
from flowprior.linear_algebra import dot
from flowprior.metrics import snr
from flowprior.physics import Gaussian, LinearizedBorn, MigratedData, linearized_born
from flowprior.posterior import Amortised
from flowprior.priors import GaussianPrior, Prior

SURVEY = {"sources": 8, "simultaneous": 2, "receivers": 64, "spacing": 12.5}
SURVEY |= {"water_depth": 125.0, "grey": 0.5}
SHAPE, FREQUENCY, SIGMA = (1, 64, 64), 12.0, 2e-4
IMAGES, TUNED, TRAINING = 12, 4, 300
ITERATIONS = 5, 10, 20, 30, 60, 100
STARTED = 30, 60, 120

Linear = Callable[[Tensor], Tensor]


def born(frequency: float = FREQUENCY, refine: int = 1) -> LinearizedBorn:
    """The operator of the table, on a grid that is `refine` times as fine."""
    return linearized_born(SHAPE, **SURVEY, frequency=frequency, refine=refine).float()


def images(split: str, count: int) -> Tensor:
    """Reflectivities (count, 1, 64, 64)."""
    source = Reflectivities(image_size=SHAPE[1]).images(split)
    return torch.stack([source[i] for i in range(count)])


def rms(a: Tensor) -> Tensor:
    """Of each row, (B,)."""
    return a.flatten(1).square().mean(1).sqrt()


def cgls(op: Linear, adjoint: Linear, data: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Minimise ‖op(w) − data‖²; w and its residuals (B,)."""
    rest = data
    gradient = way = adjoint(rest)
    w, size = torch.zeros_like(gradient), dot(gradient, gradient)
    for iteration in range(iterations):
        if iteration:
            gradient = adjoint(rest)
            size, before = dot(gradient, gradient), size
            way = gradient + size / before * way
        bent = op(way)
        step = size / dot(bent, bent)
        w, rest = w + step * way, rest - step * bent
    return w, rms(rest)


def report(name: str, x: Tensor, truth: Tensor, residual: Tensor, rest: str) -> None:
    """Print one method: mean, 95 % interval, and every image."""
    of_images = snr(x, truth)
    half = t.ppf(0.975, len(truth) - 1) * of_images.std() / len(truth) ** 0.5
    each = " ".join(f"{value:.2f}" for value in of_images.tolist())
    print(f"{name}: {of_images.mean():.2f} ± {half:.2f} dB ({each}), ", end="")
    print(f"residual {residual.mean():.2f}, {rest}", flush=True)


def grids() -> None:
    """Errors of the data of two images on the table's grid, against a grid four times as fine."""
    x = images("test", 2)
    for points in (5, 7, 10):
        frequency = 1500 / (points * SURVEY["spacing"])
        exact, rough, finer = (born(frequency, refine).A(x) for refine in (4, 1, 2))
        error = (rms(rough - exact) / rms(exact)).tolist()
        half = (rms(finer - exact) / rms(exact)).tolist()
        said = ", ".join(f"{100 * value:.1f} %" for value in error)
        print(f"{points} points ({frequency:.1f} Hz): error of two images {said}; ", end="")
        print("half the spacing: " + ", ".join(f"{100 * value:.1f} %" for value in half))
    x = images("test", IMAGES)
    rough, finer = born().A(x), born(refine=4).A(x)
    for name, size in (("of the finer waves", rms(finer)), ("of the noise", SIGMA)):
        shares = (rms(rough - finer) / size).tolist()
        print(f"error of the grid in units {name}: " + " ".join(f"{s:.2f}" for s in shares))
    print("noise / waves: " + " ".join(f"{share:.2f}" for share in (SIGMA / rms(rough)).tolist()))


def linear(data: Tensor, truth: Tensor, known: tuple[Tensor, Tensor]) -> None:
    """Methods without a flow, which look for what is to be added to grey.

    Args:
        data: of the test images.
        truth: these.
        known: data and truth of validation images.
    """
    physics = born()

    def forward(x: Tensor) -> Tensor:
        return physics.A(x + 0.5) / SIGMA

    def adjoint(y: Tensor) -> Tensor:
        return physics.A_adjoint(y) / SIGMA

    start = time.process_time()
    g = MigratedData(depth_power=1.5)(physics, data, torch.empty(1, *SHAPE))
    bent = physics.A(g + 0.5)
    step = dot(bent, data) / dot(bent, bent)
    residual = rms(data - step * bent) / SIGMA
    seconds = (time.process_time() - start) / len(truth)
    report("RTM, weighted", 0.5 + step * g, truth, residual, f"solves 1, 1, {seconds:.1f} s")

    def solved(y: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
        w, residual = cgls(forward, adjoint, y / SIGMA, iterations)
        return 0.5 + w, residual

    tried = [snr(solved(known[0], k)[0], known[1]).mean().item() for k in ITERATIONS]
    iterations = ITERATIONS[max(range(len(tried)), key=tried.__getitem__)]
    start = time.process_time()
    x, residual = solved(data, iterations)
    seconds = (time.process_time() - start) / len(truth)
    report("CGLS", x, truth, residual, f"solves {iterations}, {iterations}, {seconds:.1f} s")


def of_table(data: Tensor, truth: Tensor, weights: str) -> None:
    """Methods of the table, with the options that it chose."""
    physics, flow = born(), flowprior.load(weights)
    gaussian = GaussianPrior(images("train", TRAINING), stationary=True)
    methods: list[tuple[str, Prior | None, Solver, int]] = [
        ("amortised mean", flow, Amortised(mean_draws=64), 0),
        ("MLE", None, TotalVariation(0.0), 30),
        ("Gaussian prior", gaussian, MAP(start_scale=0.0), 30),
        ("preconditioned MAP", flow, MAP(beta=3.0, start_scale=0.0), 30),
    ]
    for name, prior, solver, iterations in methods:
        options = {"noise": Gaussian(SIGMA), "indices": range(len(truth)), "image_shape": SHAPE}
        start = time.process_time()
        found = invert(prior, physics, data, solver=solver, iterations=iterations, **options)
        seconds = (time.process_time() - start) / len(truth)
        report(name, found.x, truth, found.residual, f"{seconds:.1f} s")


def started(data: Tensor, truth: Tensor, known: tuple[Tensor, Tensor]) -> None:
    """MAP with the flow of the images alone from a Gaussian estimate; arguments as of `linear`."""
    physics, flow = born(), flowprior.load("glow_seismic_64")
    gaussian = GaussianPrior(images("train", TRAINING), stationary=True)

    def solved(y: Tensor, split: str, iterations: int) -> Estimate:
        options = {"noise": Gaussian(SIGMA), "indices": numbers(split, len(y))}
        grey = MAP(start_scale=0.0)
        start = invert(gaussian, physics, y, solver=grey, iterations=30, **options)
        more = {"solver": MAP(beta=3.0), "start": start.x, "iterations": iterations}
        found = invert(flow, physics, y, **more, **options)
        return replace(found, calls=start.calls + found.calls)

    tried = [snr(solved(known[0], "val", k).x, known[1]).mean().item() for k in STARTED]
    iterations = STARTED[max(range(len(tried)), key=tried.__getitem__)]
    start = time.process_time()
    found = solved(data, "test", iterations)
    seconds = (time.process_time() - start) / len(truth)
    calls = (kind.double().mean() for kind in (found.calls.forward, found.calls.adjoint))
    solves = ", ".join(f"{count:.0f}" for count in calls)
    rest = f"{iterations} iterations of {dict(zip(STARTED, tried, strict=True))}, solves {solves}, "
    rest += f"{seconds:.1f} s"
    report("MAP from the Gaussian estimate", found.x, truth, found.residual, rest)


def given(split: str, count: int, refine: int) -> tuple[Tensor, Tensor]:
    """Data of images, made on a grid that is `refine` times as fine, and the images."""
    truth = images(split, count)
    clean = born(refine=refine).A(truth)
    return Gaussian(SIGMA).add(clean, seed=0, indices=numbers(split, count)), truth


def numbers(split: str, count: int) -> range:
    """Of the first images of a split, for the draws of their noise: as in tables."""
    first = {"test": 0, "val": 10**9}[split]
    return range(first, first + count)


def compare(refine: int, weights: str | None = None) -> None:
    """Methods without a flow, and with weights some of the table, on one kind of data."""
    data, truth = given("test", IMAGES, refine)
    linear(data, truth, given("val", TUNED, refine))
    if weights:
        of_table(data, truth, weights)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["grids"]:
            grids()
        case ["table"]:
            compare(refine=4)
        case ["started"]:
            data, truth = given("test", IMAGES, refine=4)
            started(data, truth, given("val", TUNED, refine=4))
        case ["same", weights]:
            compare(refine=1, weights=weights)
        case _:
            sys.exit("seismic_rivals.py takes grids, table, started, or same WEIGHTS")
