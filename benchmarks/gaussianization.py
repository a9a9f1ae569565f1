"""Gaussianization layers against SciPy: `python -m benchmarks.gaussianization`."""

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.measure import alternate, medians, wall_clock
from flowprior.gaussianization import (
    Gaussianization,
    ica,
    lambert_w_gaussianize,
    standardize,
    whiten,
    yeo_johnson,
)
from flowprior.gaussianization.patches import to_patches
from tests.reference import gaussianization as reference

PATCH = 8


def make_latents(batch: int, size: int, device: str, dtype: torch.dtype) -> Tensor:
    """Heavy-tailed, slightly skewed latents (B, 3, size, size), as inversions make them."""
    x = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))
    return ((x + 0.05 * x.square()) * torch.exp(0.04 * x.square())).to(device, dtype)


def layers() -> dict[str, Callable[[Tensor], Tensor]]:
    """Every layer, and the presets, as functions of latents (B, C, H, W)."""
    return {
        f"whitening {PATCH}x{PATCH}": lambda x: whiten(to_patches(x, PATCH)),
        "whitening 4x4": lambda x: whiten(to_patches(x, 4)),
        f"ICA {PATCH}x{PATCH}": lambda x: ica(to_patches(x, PATCH)),
        "Yeo-Johnson": lambda x: yeo_johnson(x.flatten(1)),
        "Lambert W": lambda x: lambert_w_gaussianize(x.flatten(1)),
        "standardisation": lambda x: standardize(x.flatten(1)),
        "paper()": Gaussianization.paper(),
        "robust()": Gaussianization.robust(),
    }


def references() -> dict[str, Callable[[np.ndarray], object]]:
    """The same in SciPy, of one latent (C, H, W)."""
    return {
        f"whitening {PATCH}x{PATCH}": lambda x: reference.whiten(reference.patches(x, PATCH)),
        "whitening 4x4": lambda x: reference.whiten(reference.patches(x, 4)),
        f"ICA {PATCH}x{PATCH}": lambda x: reference.ica(reference.patches(x, PATCH)),
        "Yeo-Johnson": lambda x: reference.yeo_johnson(x.ravel()),
        "Lambert W": lambda x: reference.lambert_w_gaussianize(x.ravel()),
        "standardisation": lambda x: reference.standardize(x.ravel(), 1.0),
        "paper()": reference.gaussianize,
        "robust()": lambda x: reference.gaussianize(x, 4, rotation="none", passes=2),
    }


def forward_and_backward(layer: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """Back-propagate a function of the output to the input."""
    x = x.detach().requires_grad_()
    y = layer(x)
    torch.autograd.grad(y, x, torch.cos(y.detach()))


def time_scipy(size: int, repeats: int) -> dict[str, float]:
    """Seconds of one latent, forward only."""
    x = make_latents(1, size, "cpu", torch.float64)[0].numpy()
    calls = {name: (lambda f=f: f(x)) for name, f in references().items()}
    return medians(alternate(calls, repeats, time.perf_counter))


def time_layers(x: Tensor, repeats: int) -> dict[str, tuple[float, float]]:
    """Seconds per latent of a batch, (forward, forward and backward)."""
    clock = wall_clock(x.device.type)
    both: dict[str, Callable[[], object]] = {}
    for name, layer in layers().items():
        both[f"{name} forward"] = torch.no_grad()(lambda f=layer: f(x))
        both[f"{name} both"] = lambda f=layer: forward_and_backward(f, x)
    found = medians(alternate(both, repeats, clock))
    return {
        name: (found[f"{name} forward"] / len(x), found[f"{name} both"] / len(x))
        for name in layers()
    }


def print_comparison(arguments: argparse.Namespace, console: Console) -> None:
    """Per layer: SciPy, ours at every batch size, and the ratios."""
    scipy = time_scipy(arguments.size, arguments.repeats)
    dtype = getattr(torch, arguments.dtype)
    for batch in arguments.batches:
        x = make_latents(batch, arguments.size, arguments.device, dtype)
        found = time_layers(x, arguments.repeats)
        title = f"3x{arguments.size}x{arguments.size}, batch {batch}, {arguments.dtype}"
        table = Table(title=f"{title}, ms per latent")
        for heading in ("", "SciPy forward", "forward", "forward + backward", "ratio"):
            table.add_column(heading, justify="right" if heading else "left")
        for name, (forward, both) in found.items():
            numbers = (scipy[name] * 1e3, forward * 1e3, both * 1e3, scipy[name] / both)
            table.add_row(name, *(f"{number:.3g}" for number in numbers))
        console.print(table)


def print_growth(arguments: argparse.Namespace, console: Console) -> None:
    """How the presets' cost grows with the latent's size and the batch."""
    table = Table(title=f"forward + backward, ms per latent, {arguments.dtype}")
    for heading in ("size", "batch", "paper()", "robust()"):
        table.add_column(heading, justify="right")
    presets = {"paper": Gaussianization.paper(), "robust": Gaussianization.robust()}
    for size, batch in [(64, 1), (64, 4), (64, 16), (128, 1), (128, 4), (128, 16), (256, 4)]:
        x = make_latents(batch, size, arguments.device, getattr(torch, arguments.dtype))
        calls = {k: (lambda h=h, x=x: forward_and_backward(h, x)) for k, h in presets.items()}
        found = medians(alternate(calls, arguments.repeats, wall_clock(arguments.device)))
        table.add_row(
            str(size), str(batch), *(f"{found[name] / batch * 1e3:.3g}" for name in presets)
        )
    console.print(table)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=128, help="height and width of the latents")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--growth", action="store_true", help="only cost against size and batch")
    arguments = parser.parse_args()
    console = Console()
    console.print(
        f"torch {torch.__version__}, {arguments.device}, {torch.get_num_threads()} threads"
    )
    if arguments.growth:
        print_growth(arguments, console)
    else:
        print_comparison(arguments, console)


if __name__ == "__main__":
    main()
