"""Images/s of a prepared set, and of JPEGs decoded by torchvision's ImageFolder, in one run.

python -m benchmarks.loading --image-size 128 --workers 0 1 2
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from datamodules import ImageFolder
from datamodules.prepare import prepare

Clock = Callable[[], float]
BATCH_SIZE = 64


def main() -> None:
    """Make images in a temporary folder, measure, print a table."""
    arguments = _parser().parse_args()
    torch.set_num_threads(1)
    console = Console(width=100)
    with tempfile.TemporaryDirectory() as folder:
        loaders = _loaders(Path(folder), arguments, console)
        console.print(_measured(loaders, arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--images", type=int, default=3200)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--repeats", type=int, default=5, help="epochs measured")
    return parser


def _loaders(
    folder: Path, arguments: argparse.Namespace, console: Console
) -> dict[tuple[str, int], Iterable]:
    size, jpegs = arguments.image_size, {}
    for side in (size, 2 * size):
        jpegs[side] = folder / f"jpeg{side}"
        _make_jpegs(jpegs[side] / "all", arguments.images, side)
    prepare(ImageFolder(str(jpegs[size]), size, 3, 0, 0), folder / "made", 1, console=console)
    loaders: dict[tuple[str, int], Iterable] = {}
    for workers in arguments.workers:
        options = {"batch_size": BATCH_SIZE, "num_workers": workers}
        data = ImageFolder(str(folder / "made"), size, 3, 0, 0, horizontal_flips=True, **options)
        loaders["prepared, 8 bits and noise, flips", workers] = data.train_dataloader()
        for side, source in jpegs.items():
            name = f"torchvision, JPEGs {side}x{side}, flips"
            loaders[name, workers] = _torchvision_loader(source, size, options)
    return loaders


def _make_jpegs(folder: Path, number: int, side: int) -> None:
    """Coloured clouds with a little noise: about as many bytes as photographs."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(number):
        coarse = rng.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
        image = np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC))
        noisy = image + rng.normal(0, 4, image.shape)
        pixels = noisy.clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:06d}.jpg", quality=90)


def _torchvision_loader(source: Path, size: int, options: dict[str, int]) -> DataLoader:
    steps = [transforms.Resize(size), transforms.CenterCrop(size)]
    steps += [transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    images = datasets.ImageFolder(str(source), transforms.Compose(steps))
    persistent = options["num_workers"] > 0
    return DataLoader(
        images, shuffle=True, drop_last=True, persistent_workers=persistent, **options
    )


def _measured(loaders: dict[tuple[str, int], Iterable], arguments: argparse.Namespace) -> Table:
    for loader in loaders.values():
        _rate(loader, time.perf_counter)  # starts the workers, fills the page cache
    rates: dict[tuple[str, int], list[float]] = {key: [] for key in loaders}
    cpu: dict[tuple[str, int], list[float]] = {key: [] for key in loaders}
    for _ in range(arguments.repeats):
        for key, loader in loaders.items():
            rates[key].append(_rate(loader, time.perf_counter))
            cpu[key].append(_rate(loader, time.process_time))
    side = arguments.image_size
    table = Table("", title=f"images/s, {side}x{side}, batches of {BATCH_SIZE}")
    for column in ("workers", "median", "best", "per CPU second"):
        table.add_column(column, justify="right")
    for (name, workers), its in rates.items():
        median, best = f"{statistics.median(its):.0f}", f"{max(its):.0f}"
        # The clock of this process knows nothing of what workers do.
        alone = "" if workers else f"{statistics.median(cpu[name, workers]):.0f}"
        table.add_row(name, str(workers), median, best, alone)
    return table


def _rate(loader: Iterable, clock: Clock) -> float:
    start, images = clock(), 0
    for batch in loader:
        images += len(batch[0]) if isinstance(batch, list) else len(batch)
    return images / (clock() - start)


if __name__ == "__main__":
    main()
