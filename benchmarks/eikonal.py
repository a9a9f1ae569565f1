"""Travel times against scikit-fmm: `python -m benchmarks.eikonal`."""

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.measure import alternate
from flowprior.physics import EikonalTomography

SPACING = 10.0
HEADINGS = (
    "size",
    "scikit-fmm",
    "forward",
    "forward + gradient",
    "fmm / forward",
    "both / forward",
)


def layers(models: int, size: int) -> Tensor:
    """Models (models, 1, size, size) of layers that get faster to the right, float64 in [0, 1]."""
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(models, 1, size // 8, 1, generator=generator, dtype=torch.float64)
    tilt = torch.linspace(0, 0.2, size, dtype=torch.float64)
    return 0.8 * values.repeat_interleave(8, 2) + tilt


def velocity(m: Tensor) -> Tensor:
    """1500 to 2500 m/s."""
    return 1500 + 1000 * m


def fast_marching(c: np.ndarray, row: int) -> np.ndarray:
    """Travel times of one model (H, W) and one source on the left edge."""
    import skfmm

    phi = np.ones_like(c)
    phi[row, 0] = -1
    return skfmm.travel_time(phi, c, dx=SPACING, order=1)


def source_rows(sources: int, size: int) -> list[int]:
    """Rows of the sources, on the left edge."""
    return torch.linspace(0, size - 1, sources).long().tolist()


def solves(m: Tensor, sources: int) -> dict[str, Callable[[], object]]:
    """Travel times of models (B, 1, size, size), "forward", and "both": with their gradient."""
    size = m.shape[-1]
    receivers = [(i, size - 1) for i in range(0, size, 4)]
    positions = [(row, 0) for row in source_rows(sources, size)]
    physics = EikonalTomography(positions, receivers, SPACING, velocity).to(m.device)
    x = m.clone().requires_grad_()
    return {
        "forward": torch.no_grad()(lambda: physics.A(m)),
        "both": lambda: torch.autograd.grad(physics.A(x).sum(), x),
    }


def measure(arguments: argparse.Namespace, size: int) -> dict[str, float]:
    """Fewest seconds per solve, one (model, source), of each candidate."""
    m, rows = layers(arguments.models, size), source_rows(arguments.sources, size)
    c = velocity(m)[:, 0].numpy()
    calls = {
        **solves(m, arguments.sources),
        # One solve per model is enough to time it.
        "fmm": lambda: [fast_marching(model, rows[k % len(rows)]) for k, model in enumerate(c)],
    }
    found = alternate(calls, arguments.repeats, time.perf_counter)
    number = {"fmm": len(c)}
    return {k: min(v) / number.get(k, len(c) * len(rows)) for k, v in found.items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=16)
    parser.add_argument("--sources", type=int, default=8)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    title = f"{arguments.models} models × {arguments.sources} sources, float64, ms per solve"
    table = Table(title=title, caption=f"fewest of {arguments.repeats} repeats")
    for heading in HEADINGS:
        table.add_column(heading, justify="right")
    start = time.perf_counter()
    for size in arguments.sizes:
        t = measure(arguments, size)
        ms = [f"{1e3 * t[name]:.2f}" for name in ("fmm", "forward", "both")]
        ratios = [f"{t['fmm'] / t['forward']:.2f}", f"{t['both'] / t['forward']:.2f}"]
        table.add_row(str(size), *ms, *ratios)
    Console().print(table, f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
