"""Decode, crop and scale a set of images once: python -m datamodules.prepare celeba-hq ..."""

import argparse
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from jsonargparse.typing import NonNegativeInt
from rich.console import Console

from datamodules.base import SPLITS
from datamodules.chest_xray import ChestXray
from datamodules.decoding import decode_all
from datamodules.errors import DataError, ImageError
from datamodules.faces import CelebA, CelebAHQ
from datamodules.files import Pictures, digest, printable
from datamodules.image_folder import ImageFolder
from datamodules.pictures import PictureModule
from datamodules.shards import (
    INFO,
    read_info,
    read_shard,
    shard_length,
    shard_path,
    write_info,
    write_shard,
)
from datamodules.tables import HUB
from flowprior.command_line import UsageError, run_command
from flowprior.progress import SweepProgress

MODULES = {module.command_name: module for module in (CelebAHQ, CelebA, ChestXray, ImageFolder)}
_LOCK = ".lock"
_SHOWN = 20
_Shard = tuple[str, int, range]
"""Split, number of the shard in it, and the indices of its pictures."""


def main() -> None:
    """Parse the command line and prepare."""
    arguments = _parser().parse_args()
    chosen = {
        name: getattr(arguments, name)
        for name in ("image_size", "channels", "val_fraction", "test_fraction", "column")
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
    parser.add_argument("--channels", type=int, help="1 or 3, for `folder`")
    parser.add_argument("--val-fraction", type=float, help="for `folder` and `chest-xray`")
    parser.add_argument("--test-fraction", type=float, help="for `folder`")
    parser.add_argument("--column", help="of tables, with the images, if there are several")
    parser.add_argument(
        "--workers", type=NonNegativeInt, default=os.cpu_count(), help="number of processes"
    )
    parser.add_argument("--strict", action="store_true", help="stop at the first bad image")
    return parser


def prepare(
    module: PictureModule,
    output: Path,
    workers: int = 0,
    strict: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Write the images of ``module`` into ``output``; continues where a killed call stopped.

    Args:
        module: its source is read.
        output: an empty or new folder, or one that was begun with the same source and settings.
        workers: number of decoding processes; 0 to decode in this one.
        strict: raise an ImageError at the first image that cannot be used, instead of leaving it
            out and naming it.
        console: where progress and results are printed.

    Returns:
        The content of ``prepared.json``.

    Raises:
        DataError: the source lacks something, ``output`` was begun with another source or other
            settings, or another process is writing it.
        ImageError: with ``strict``; or a decoding process died.
    """
    console = console or Console(quiet=True)
    settings = module.settings | {
        "source": _absolute(module.source),
        "column": getattr(module, "column", None),
    }
    before = _begun(output, settings)
    if not (before and before["finished"]) or Path(module.source).is_dir():
        pictures = _pictures(module)
        settings["listing"] = _listing(pictures)
        before = _begun(output, settings)
    if before and before["finished"]:
        _check_strict(strict, before)
        console.print(f"{output} is finished already: {_summary(before)}", soft_wrap=True)
        return before
    with _alone(output):
        _begun(output, settings)
        write_info(output, settings | {"finished": False})
        shards = _shards(pictures, shard_length(module.image_shape))
        _write_missing(module, pictures, shards, output, workers, strict, console)
        info = settings | {"finished": True} | _collected(output, shards)
        _check_strict(strict, info)
        _report(output, info, console)
        write_info(output, info)
    return info


def _begun(output: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """What is in ``output`` already, or None if nothing is.

    Raises:
        DataError: it was begun with other settings, or is something else.
    """
    before = read_info(output)
    if before is None:
        if output.exists() and any(path.name != _LOCK for path in output.iterdir()):
            raise DataError(f"--output {output} is not empty: expected a new folder")
        return None
    for name, value in settings.items():
        if before.get(name) != value:
            was, now = f"with {name}={before.get(name)}", f"it is {value}"
            if name == "listing":
                was, now = "when --source had other images", "some were added, removed or changed"
            raise DataError(
                f"--output {output} was begun {was}, now {now}: give another --output, or remove "
                "the folder"
            )
    return before


@contextmanager
def _alone(output: Path) -> Iterator[None]:
    """Make a folder, and keep other processes from writing it.

    Raises:
        DataError: another process is writing it.
    """
    output.mkdir(parents=True, exist_ok=True)
    lock = FileLock(output / _LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise DataError(
            f"--output {output} is being written by another process: wait for it, or give "
            "another --output"
        ) from error
    try:
        yield
    finally:
        (output / _LOCK).unlink(missing_ok=True)
        lock.release()


def _pictures(module: PictureModule) -> dict[str, Pictures]:
    """The pictures of all splits."""
    source = module.source
    if not source.startswith(HUB) and not Path(source).is_dir():
        raise DataError(f"--source {source}: no such folder (docs/data.md: where to get it)")
    if read_info(Path(source)) is not None:
        raise DataError(f"--source {source} is a prepared set: expected the original images")
    return {split: module.pictures(split) for split in SPLITS}


def _listing(pictures: Mapping[str, Pictures]) -> str:
    """Hash of what the source has in each split; changes when an image is added or replaced."""
    lines = (line for split in SPLITS for line in (f"{split}:", *pictures[split].stamps()))
    return digest(os.fsencode("\n".join(lines)))


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
    wanted = [(pictures[split], row) for split, _, rows in missing for row in rows]
    outcomes = decode_all(wanted, module.image_size, module.channels, workers)
    # The first one waits for the processes to start, which the rate should not count.
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
    """Number of images in each shard, and the images that were skipped."""
    images: dict[str, list[int]] = {split: [] for split in SPLITS}
    skipped: list[str] = []
    for split, number, _ in shards:
        pixels, missing = read_shard(shard_path(output, split, number))
        images[split].append(len(pixels))
        skipped += missing
    return {"images": images, "skipped": skipped}


def _check_strict(strict: bool, info: Mapping[str, Any]) -> None:
    if strict and info["skipped"]:
        raise ImageError(f"image {info['skipped'][0]} (left out before, without --strict)")


def _report(output: Path, info: Mapping[str, Any], console: Console) -> None:
    """Print what was left out and the result; a DataError if nothing is left to train on."""
    skipped = info["skipped"]
    for line in skipped[:_SHOWN]:
        console.print(f"skipped: {line}", soft_wrap=True, highlight=False, markup=False)
    if len(skipped) > _SHOWN:
        more = f"and {len(skipped) - _SHOWN} more, listed in {output / INFO}"
        console.print(more, soft_wrap=True)
    if not any(info["images"]["train"]):
        first = f": {skipped[0]}" if skipped else ""
        raise DataError(
            f"--output {output}: no image for training can be used{first}; remove the folder"
        )
    console.print(f"{output} is finished: {_summary(info)}", soft_wrap=True, highlight=False)
    if not any(info["images"]["val"]):
        console.print("there are no validation images, which training needs (--val-fraction)")


def _summary(info: Mapping[str, Any]) -> str:
    counts = " / ".join(str(sum(info["images"][split])) for split in SPLITS)
    return f"{counts} images for train / val / test, {len(info['skipped'])} skipped"


def _absolute(source: str) -> str:
    return source if source.startswith(HUB) else str(Path(source).resolve())


if __name__ == "__main__":
    sys.exit(run_command(main, failures=(ImageError,)))
