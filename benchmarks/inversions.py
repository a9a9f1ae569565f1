"""Inversions: a batch against one image at a time, total variation against deepinv.

`python -m benchmarks.inversions`
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from unittest.mock import patch

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import flowprior
from benchmarks.measure import alternate, wall_clock
from datamodules import LayerModels
from flowprior.inversion import MAP, TotalVariation, invert
from flowprior.inversion.total_variation import total_variation
from flowprior.physics import gaussian_blur

SIGMA = 0.1
WEIGHT = 8.0
"""Of total variation, in nats: near the best for the layer models of this blur and noise."""
ITERATIONS = (2, 5, 10, 20, 40, 80, 160, 320)
CLOSE = 3e-3
"""Relative distance to the lowest objective at which solvers are compared."""


def layer_data(count: int, side: int, device: str) -> tuple[Tensor, Tensor, torch.nn.Module]:
    """Layer models (B, 1, H, W) in [0, 1], blurred noisy data, and the operator."""
    models = LayerModels(image_size=side).batches("test", count, dequantized=False)
    x = (next(models)[1] + 0.5).to(device)
    physics = gaussian_blur((1, side, side), tau=1.5).to(device)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(device)
    return x, physics.A(x) + SIGMA * noise, physics


@contextmanager
def one_row_per_call() -> Iterator[None]:
    """Without the rows that fill up a call, so that results depend on the batch's size."""
    with ExitStack() as stack:
        for module in ("descent", "proximal"):
            name = f"flowprior.inversion.{module}.rows_per_call"
            stack.enter_context(patch(name, lambda *_: 1))
        yield


def print_batches(arguments: argparse.Namespace, console: Console) -> None:
    """Seconds per image of one call for all images and of one for each, filled up or not."""
    flow = flowprior.load("weights/glow_layers_32", arguments.device)
    _, y, physics = layer_data(arguments.images, 32, arguments.device)
    options = {"sigma": SIGMA, "iterations": arguments.iterations}
    table = Table(title=f"{arguments.images} images 32x32, {arguments.iterations} iterations")
    headings = "solver", "one by one, s/image", "not filled up", "all at once", "ratios (range)"
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "solver" else "right")
    for name, prior, solver in [
        ("MAP, latent norm", flow, MAP()),
        ("MAP, image density", flow, MAP(penalty="log_density")),
        ("total variation", None, TotalVariation(WEIGHT)),
    ]:
        shape = None if prior is not None else (1, 32, 32)
        recover = partial(invert, prior, physics, solver=solver, image_shape=shape, **options)

        def alone(recover: Callable[[Tensor], object] = recover) -> None:
            for row in y.split(1):
                recover(row)

        def alone_and_small(alone: Callable[[], None] = alone) -> None:
            with one_row_per_call():
                alone()

        calls = {"one": alone, "small": alone_and_small, "all": partial(recover, y)}
        found = alternate(calls, arguments.repeats, wall_clock(arguments.device))
        seconds = [f"{min(times) / len(y):.3f}" for times in found.values()]
        ratios = [ratio(found[name], found["all"]) for name in ("one", "small")]
        table.add_row(name, *seconds, ", ".join(ratios))
    console.print(table)


def ratio(times: list[float], others: list[float]) -> str:
    """Ratio of the minima, and its range over the repeats."""
    each = sorted(a / b for a, b in zip(times, others, strict=True))
    return f"{min(times) / min(others):.2f} ({each[0]:.2f}–{each[-1]:.2f})"


def objective(x: Tensor, y: Tensor, physics: torch.nn.Module) -> float:
    """½‖Ax − y‖²/σ² + λ TV(x), mean over the images, in nats; not rounded off."""
    misfit = 0.5 * ((physics.A(x) - y) / SIGMA).square().flatten(1).sum(1, dtype=torch.float64)
    return (misfit + WEIGHT * total_variation(x, 0.0)).mean().item()


def tv_solvers(y: Tensor, physics: torch.nn.Module) -> dict[str, Callable[[int], Tensor]]:
    """Images after a number of iterations, by solver."""
    from deepinv.optim import FISTA, L2, PGD, TVPrior

    def ours(iterations: int) -> Tensor:
        options = {"sigma": SIGMA, "start": y.clamp(0, 1), "iterations": iterations}
        return invert(None, physics, y, solver=TotalVariation(WEIGHT), **options).x

    def theirs(iterations: int, kind: type, inner: int) -> Tensor:
        # ‖A‖ = 1, so that σ² is the largest step; their λ multiplies the prior.
        options = {"lambda_reg": WEIGHT, "stepsize": SIGMA**2, "max_iter": iterations}
        prior = TVPrior(n_it_max=inner)
        model = kind(data_fidelity=L2(SIGMA), prior=prior, **options)
        with torch.no_grad():
            start = y.clamp(0, 1)
            return model(y, physics, init=(start, start))

    return {
        "flowprior TotalVariation": ours,
        "deepinv PGD, 20 inner": partial(theirs, kind=PGD, inner=20),
        "deepinv FISTA, 20 inner": partial(theirs, kind=FISTA, inner=20),
        "deepinv FISTA, 100 inner": partial(theirs, kind=FISTA, inner=100),
    }


def print_total_variation(arguments: argparse.Namespace, console: Console) -> None:
    """Time until the objective is close to the lowest one that any solver finds."""
    _, y, physics = layer_data(arguments.images, 32, arguments.device)
    solvers = tv_solvers(y, physics)
    values = {
        name: {k: objective(solve(k), y, physics) for k in ITERATIONS}
        for name, solve in solvers.items()
    }
    lowest = min(min(curve.values()) for curve in values.values())
    enough = {
        name: next((k for k, value in curve.items() if value <= (1 + CLOSE) * lowest), None)
        for name, curve in values.items()
    }
    calls = {n: partial(solvers[n], k) for n, k in enough.items() if k is not None}
    found = alternate(calls, arguments.repeats, wall_clock(arguments.device))
    table = Table(title=f"{arguments.images} images 32x32: within {CLOSE:g} of {lowest:.2f} nats")
    for heading in ("solver", "iterations", "lowest, nats", "min s", "max s", "ratio"):
        table.add_column(heading, justify="left" if heading == "solver" else "right")
    base = min(found.get(next(iter(solvers)), [float("nan")]))
    for name, k in enough.items():
        seconds = found.get(name)
        times = ["–"] * 3
        if seconds:
            times = [f"{t:.3g}" for t in (min(seconds), max(seconds), min(seconds) / base)]
        table.add_row(name, str(k or "–"), f"{min(values[name].values()):.2f}", *times)
    console.print(table)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--iterations", type=int, default=20, help="of each inversion")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    console = Console()
    threads = torch.get_num_threads()
    console.print(f"torch {torch.__version__}, {arguments.device}, {threads} threads")
    print_batches(arguments, console)
    print_total_variation(arguments, console)


if __name__ == "__main__":
    main()
