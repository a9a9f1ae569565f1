"""What computing TRUMPET's codes once saves in its second phase: python -m benchmarks.preparing."""

import argparse
import time
from collections.abc import Callable
from itertools import count

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.measure import alternate, medians
from datamodules import ArrayImages, LayerModels
from datamodules.dequantize import DequantizedImages
from datamodules.prepared_rows import PreparedRows
from flowprior.flows import Trumpet
from flowprior.losses import LatentLikelihood

DEMO = {
    "layout": ["squeeze", 1, "halve", "squeeze", 1, "halve", "squeeze", 1, "halve", 1, "halve", 1],
    "widths": (16, 32),
    "unet_convolutions": 1,
    "low_steps": 8,
    "low_hidden_channels": 64,
    "memory_efficient": False,
}


def main() -> None:
    """Measure the steps in turn and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cpu-clock", action="store_true", help="count CPU instead of real time")
    arguments = parser.parse_args()
    clock = time.process_time if arguments.cpu_clock else time.perf_counter
    table = Table(
        "network", "images", "a step of images", "of codes", "ratio", "preparing, a batch"
    )
    for name, flow, images, batch in candidates(arguments.batches):
        steps = functions(flow, images, batch)
        median = medians(alternate(steps, arguments.repeats * arguments.batches, clock))
        times = [f"{1e3 * seconds:.1f} ms" for seconds in median.values()]
        ratio = f"{median['images'] / median['codes']:.1f}"
        table.add_row(name, f"{batch} a step", times[0], times[1], ratio, times[2])
    Console(width=100).print(table)


def candidates(batches: int) -> list[tuple[str, Trumpet, DequantizedImages, int]]:
    """Name, flow, images and batch size of each candidate."""
    torch.manual_seed(0)
    layers = LayerModels(32, num_train=32 * batches, n_bits=None, data_range=(-1.0, 1.0))
    noise = np.random.default_rng(0).integers(0, 256, (64 * batches, 1, 32, 32), np.uint8)
    digits = DequantizedImages(ArrayImages(noise), "train", None, (-1.0, 1.0))
    return [
        ("trumpet_demo", Trumpet(1, 32, **DEMO), layers.dataset("train"), 32),
        ("trumpet_mnist", Trumpet(1, 32), digits, 64),
    ]


def functions(
    flow: Trumpet, images: DequantizedImages, batch: int
) -> dict[str, Callable[[], object]]:
    """A training step of images, one of their codes, and the codes of a batch."""
    loss = LatentLikelihood()
    optimizer = torch.optim.Adam(loss.trains(flow), 1e-4, fused=True)
    for parameter in flow.network_parameters():
        parameter.requires_grad_(False)
    prepared = PreparedRows(images, batch)
    prepared.fill(lambda x: loss.prepare(flow.train(), x), lambda rows: rows, (0, 1), ignored)
    numbers = count()

    def keys() -> list[tuple[int, int]]:
        start = next(numbers) * batch
        return [(0, index % len(images)) for index in range(start, start + batch)]

    def step(values: dict[str, Tensor]) -> None:
        optimizer.zero_grad()
        values["latent_nll"].mean().backward()
        optimizer.step()

    return {
        "images": lambda: step(loss(flow, images.__getitems__(keys()))),
        "codes": lambda: step(loss.of_prepared(flow, prepared.__getitems__(keys()))),
        "preparing": lambda: loss.prepare(flow, images.__getitems__(keys())),
    }


def ignored(_: int) -> None:
    """Nobody watches the progress."""


if __name__ == "__main__":
    main()
