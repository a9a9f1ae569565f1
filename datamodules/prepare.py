"""Decode, crop and scale a set of images once: python -m datamodules.prepare celeba-hq ..."""

import argparse
import os
import sys
from collections.abc import Mapping
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from datamodules.base import SPLITS
from datamodules.chest_xray import ChestXray
from datamodules.decoding_pool import decode_all
from datamodules.dequantize import DataError, ImageError
from datamodules.faces import CelebA, CelebAHQ
from datamodules.image_folder import ImageFolder
from datamodules.pictures import PictureModule
from datamodules.prepared import (
    INFO,
    read_info,
    read_shard,
    shard_length,
    shard_path,
    write_info,
    write_shard,
)
from datamodules.sources import Pictures, digest, printable
from datamodules.tables import HUB
from flowprior.command_line import UsageError, run_command
from flowprior.progress import SweepProgress

MODULES = {module.command_name: module for module in (CelebAHQ, CelebA, ChestXray, ImageFolder)}
_SHOWN = 20
_Shard = tuple[str, int, range]
"""Split, number in the split, and which of its pictures."""


def main() -> None:
    """Parse, prepare, and say what came out."""
    arguments = _parser().parse_args()
    chosen = {
        name: getattr(arguments, name)
        for name in ("image_size", "channels", "val_fraction", "test_fraction")
        if getattr(arguments, name) is not None
    }
    try:
        module = MODULES[arguments.name](arguments.source, **chosen)
    except TypeError as error:
        raise UsageError(f"{arguments.name}: {error}") from error
    except ValueError as error:
        raise UsageError(str(error)) from error
    try:
        prepare(module, arguments.output, arguments.workers, arguments.strict, Console())
    except ImageError:
        raise
    except DataError as error:
        raise UsageError(str(error)) from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m datamodules.prepare", description=__doc__)
    parser.add_argument("name", choices=MODULES)
    parser.add_argument("--source", required=True, help="folder of the images, or hub:owner/name")
    parser.add_argument("--output", required=True, type=Path, help="folder to make")
    parser.add_argument("--image-size", type=int, help="default: that of the data module")
    parser.add_argument("--channels", type=int, help="1 or 3, of `folder`")
    parser.add_argument("--val-fraction", type=float, help="of `folder` and `chest-xray`")
    parser.add_argument("--test-fraction", type=float, help="of `folder`")
    parser.add_argument(
        "--workers", type=_whole, default=os.cpu_count(), help="processes; 0: this one alone"
    )
    parser.add_argument("--strict", action="store_true", help="stop at the first bad image")
    return parser


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected 0 or more, got {text}")
    return int(text)


def prepare(
    module: PictureModule,
    output: Path,
    workers: int = 0,
    strict: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Write what ``module`` reads into ``output``, from where a killed call stopped.

    Args:
        module: its source is read.
        output: an empty or new folder, or one that was begun with the same source and settings.
        workers: decoding processes; 0 for this one alone.
        strict: raise an ImageError at the first image that cannot be used, instead of leaving it
            out and naming it.
        console: where progress and results are printed.

    Returns:
        The content of ``prepared.json``.

    Raises:
        DataError: the source lacks something, or ``output`` was begun with another one.
        ImageError: with ``strict``; or a decoding process died.
    """
    console = console or Console(quiet=True)
    settings = module.settings | {"source": _absolute(module.source)}
    before = read_info(output)
    if before is not None:
        _check_same(output, before, settings)
        if before["finished"]:
            _check_strict(strict, before)
            console.print(f"{output} is finished already: {_summary(before)}", soft_wrap=True)
            return before
    pictures = _begin(module, output, settings, before)
    shards = _shards(pictures, shard_length(module.image_shape))
    _write_missing(module, pictures, shards, output, workers, strict, console)
    info = settings | {"finished": True} | _collected(output, shards)
    _check_strict(strict, info)
    if not any(info["images"]["train"]):
        _report(output, info, console)
        raise DataError(f"--output {output}: no image for training is left: remove the folder")
    write_info(output, info)
    _report(output, info, console)
    return info


def _begin(
    module: PictureModule,
    output: Path,
    settings: dict[str, Any],
    before: Mapping[str, Any] | None,
) -> dict[str, Pictures]:
    """The pictures of all splits, once it is sure that they and ``output`` belong together."""
    if not module.source.startswith(HUB) and not Path(module.source).is_dir():
        raise DataError(f"--source {module.source}: no such folder (docs/data.md: where to get it)")
    module.check_source()
    if read_info(Path(module.source)) is not None:
        raise DataError(f"--source {module.source} is a prepared set: expected the images it is of")
    pictures = {split: module.pictures(split) for split in SPLITS}
    names = (name for its in pictures.values() for name in its.names)
    settings["listing"] = digest(os.fsencode("\n".join(names)))
    if before is not None:
        _check_same(output, before, settings)
    elif output.exists() and any(output.iterdir()):
        raise DataError(f"--output {output} is not empty: expected a new folder")
    write_info(output, settings | {"finished": False})
    return pictures


def _shards(pictures: Mapping[str, Pictures], length: int) -> list[_Shard]:
    return [
        (split, number, range(start, min(start + length, len(pictures[split]))))
        for split in SPLITS
        for number, start in enumerate(range(0, len(pictures[split]), length))
    ]


def _write_missing(
    module: PictureModule,
    pictures: Mapping[str, Pictures],
    shards: list[_Shard],
    output: Path,
    workers: int,
    strict: bool,
    console: Console,
) -> None:
    missing = [shard for shard in shards if not shard_path(output, *shard[:2]).exists()]
    total, left = (sum(len(rows) for _, _, rows in part) for part in (shards, missing))
    data = (pictures[split].data(row) for split, _, rows in missing for row in rows)
    outcomes = decode_all(data, module.image_size, module.channels, workers)
    # The first one waits for the processes to start: the meter is to measure decoding alone.
    outcomes = chain(list(islice(outcomes, 1)), outcomes)
    with SweepProgress(total, total - left, console) as progress:
        for split, number, rows in missing:
            progress.start(split)
            names, squares, skipped = [], [], []
            for row, outcome in zip(rows, outcomes, strict=False):
                name = printable(pictures[split].names[row])
                if not isinstance(outcome, ImageError):
                    names.append(name)
                    squares.append(outcome)
                elif strict:
                    raise ImageError(f"image {name} {outcome}") from outcome
                else:
                    skipped.append(f"{name} {outcome}")
                progress.advance(1)
            pixels = np.stack(squares) if squares else np.empty((0, *module.image_shape), np.uint8)
            write_shard(shard_path(output, split, number), names, pixels, skipped)
    for leftover in output.glob("*/.*.arrow"):  # of a killed call
        leftover.unlink()


def _collected(output: Path, shards: list[_Shard]) -> dict[str, Any]:
    """Number of images of each shard, and what was skipped."""
    images: dict[str, list[int]] = {split: [] for split in SPLITS}
    skipped: list[str] = []
    for split, number, _ in shards:
        pixels, missing = read_shard(shard_path(output, split, number))
        images[split].append(len(pixels))
        skipped += missing
    return {"images": images, "skipped": skipped}


def _check_same(output: Path, before: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    for name, value in settings.items():
        if before.get(name) != value:
            was, now = f"with {name}={before.get(name)}", f"it is {value}"
            if name == "listing":
                was, now = "when --source had other images", "some were added or removed"
            raise DataError(
                f"--output {output} was begun {was}, now {now}: give another --output, or remove "
                "the folder"
            )


def _check_strict(strict: bool, info: Mapping[str, Any]) -> None:
    if strict and info["skipped"]:
        raise ImageError(f"image {info['skipped'][0]} (left out before, without --strict)")


def _report(output: Path, info: Mapping[str, Any], console: Console) -> None:
    skipped = info["skipped"]
    for line in skipped[:_SHOWN]:
        console.print(f"skipped: {line}", soft_wrap=True, highlight=False, markup=False)
    if len(skipped) > _SHOWN:
        console.print(
            f"and {len(skipped) - _SHOWN} more, listed in {output / INFO}", soft_wrap=True
        )
    console.print(f"{output} is finished: {_summary(info)}", soft_wrap=True, highlight=False)


def _summary(info: Mapping[str, Any]) -> str:
    counts = " / ".join(str(sum(info["images"][split])) for split in SPLITS)
    return f"{counts} images for train / val / test, {len(info['skipped'])} skipped"


def _absolute(source: str) -> str:
    return source if source.startswith(HUB) else str(Path(source).resolve())


if __name__ == "__main__":
    sys.exit(run_command(main, failures=(ImageError,)))
