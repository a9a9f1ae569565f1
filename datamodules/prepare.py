"""Decode, crop and scale a set of images once: python -m datamodules.prepare celeba-hq ..."""

import argparse
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse.typing import NonNegativeInt
from rich.console import Console
from torch.utils.data import Dataset

from datamodules import decoding
from datamodules.base import SPLITS
from datamodules.chest_xray import ChestXray
from datamodules.decoding import Pictures, printable
from datamodules.errors import DataError, ImageError
from datamodules.faces import CelebA, CelebAHQ
from datamodules.image_folder import ImageFolder
from datamodules.making import alone, deaths_reported, made
from datamodules.pictures import PictureModule, digest
from datamodules.prepared_pictures import (
    INFO,
    read_pictures_info,
    read_shard,
    shard_length,
    shard_path,
    write_shard,
)
from datamodules.tables import HUB
from flowprior.command_line import UsageError, run_command
from flowprior.io import atomic_write
from flowprior.progress import SweepProgress

MODULES = {module.command_name: module for module in (CelebAHQ, CelebA, ChestXray, ImageFolder)}
_LOCK = ".lock"
_DARK = 32  # of 255
_SHOWN = 20
_CHUNK = 16  # images that a process decodes at once
_Shard = tuple[str, int, range]
"""Split, number of the shard in it, and the indices of its pictures."""


def main() -> None:
    """Parse the command line and prepare."""
    options = vars(_parser().parse_args())
    name, output, workers, strict = map(options.pop, ("name", "output", "workers", "strict"))
    try:
        module = MODULES[name](**options)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{name}: {error}") from error
    try:
        prepare(module, output, workers, strict, Console())
    except ImageError:
        raise
    except DataError as error:
        raise UsageError(str(error)) from error


def _parser() -> argparse.ArgumentParser:
    prog, absent = "python -m datamodules.prepare", argparse.SUPPRESS
    parser = argparse.ArgumentParser(prog=prog, description=__doc__, argument_default=absent)
    parser.add_argument("name", choices=MODULES)
    parser.add_argument("--source", required=True, help="folder of the images, or hub:owner/name")
    parser.add_argument("--output", required=True, type=Path, help="folder to make")
    parser.add_argument("--image-size", type=int, help="default: that of the data module")
    parser.add_argument("--channels", type=int, help="1 or 3, for `folder`")
    parser.add_argument("--val-fraction", type=float, help="for `folder` and `chest-xray`")
    parser.add_argument("--test-fraction", type=float, help="for `folder`")
    parser.add_argument("--column", help="of tables, with the images, if there are several")
    cores = os.cpu_count()
    parser.add_argument("--workers", type=NonNegativeInt, default=cores, help="number of processes")
    stop = "stop at the first bad image"
    parser.add_argument("--strict", action="store_true", default=False, help=stop)
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
    hub = module.source.startswith(HUB)
    settings = module.settings | {
        "source": module.source if hub else str(Path(module.source).resolve()),
        "column": getattr(module, "column", None),
    }
    before = _begun(output, settings)
    if not (before and before["finished"]) or Path(module.source).is_dir():
        _check_source(module.source)
        settings["listing"] = _listing(module.pictures)
        before = _begun(output, settings)
    if before and before["finished"]:
        _check_strict(strict, before)
        console.print(f"{output} is finished already: {_summary(before)}", soft_wrap=True)
        return before
    with alone(output):
        _begun(output, settings)
        atomic_write(output / INFO, json.dumps(settings | {"finished": False}, indent=1))
        shards = _shards(module)
        _write_missing(module, shards, output, workers, strict, console)
        info = settings | {"finished": True} | _collected(output, shards)
        _check_strict(strict, info)
        _report(output, info, console)
        atomic_write(output / INFO, json.dumps(info, indent=1))
    return info


def _begun(output: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """What is in ``output``, None if nothing is; a DataError if it is not of these settings."""
    before = read_pictures_info(output)
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


def _check_source(source: str) -> None:
    if not source.startswith(HUB) and not Path(source).is_dir():
        raise DataError(f"--source {source}: no such folder (docs/data.md: where to get it)")
    if read_pictures_info(Path(source)) is not None:
        raise DataError(f"--source {source} is a prepared set: expected the original images")


def _listing(pictures: Mapping[str, Pictures]) -> str:
    """Hash of what the source has in each split; changes when an image is added or replaced."""
    lines = (line for split in SPLITS for line in (f"{split}:", *pictures[split].stamps()))
    return digest(os.fsencode("\n".join(lines)))


def _shards(module: PictureModule) -> list[_Shard]:
    length = shard_length(module.image_shape)
    return [
        (split, number, range(start, min(start + length, len(module.pictures[split]))))
        for split in SPLITS
        for number, start in enumerate(range(0, len(module.pictures[split]), length))
    ]


def _write_missing(
    module: PictureModule,
    shards: list[_Shard],
    output: Path,
    workers: int,
    strict: bool,
    console: Console,
) -> None:
    missing = [shard for shard in shards if not shard_path(output, *shard[:2]).exists()]
    total, left = (sum(len(rows) for _, _, rows in part) for part in (shards, missing))
    wanted = [(split, row) for split, _, rows in missing for row in rows]
    with deaths_reported(ImageError):
        squares = made(_Squares(module), wanted, workers, _CHUNK)
        with SweepProgress(total, total - left, console) as progress:
            for split, number, rows in missing:
                progress.start(split)
                names, pixels, skipped = [], [], []
                for row, square in zip(rows, squares, strict=False):
                    name = printable(module.pictures[split].names[row])
                    if not isinstance(square, ImageError):
                        names.append(name)
                        pixels.append(square)
                    elif strict:
                        raise ImageError(f"image {name} {square}") from square
                    else:
                        skipped.append(f"{name} {square}")
                    progress.advance(1)
                stacked = np.array(pixels, np.uint8).reshape(-1, *module.image_shape)
                write_shard(shard_path(output, split, number), names, stacked, skipped)


class _Squares(Dataset):
    """Squares by (split, index); an error says why an image cannot be used."""

    def __init__(self, module: PictureModule) -> None:
        self.pictures = module.pictures
        self.options = (module.image_size, module.channels)

    def __getitem__(self, key: tuple[str, int]) -> np.ndarray | ImageError:
        split, index = key
        try:
            return decoding.read_square(self.pictures[split].data(index), *self.options)
        except ImageError as error:
            return error


def _collected(output: Path, shards: list[_Shard]) -> dict[str, Any]:
    """Number of images in each shard, those that were skipped, and the largest pixel.

    Of images that are not dark it is the largest of the first shards.
    """
    images: dict[str, list[int]] = {split: [] for split in SPLITS}
    skipped: list[str] = []
    brightest = 0
    for split, number, _ in shards:
        pixels, missing = read_shard(shard_path(output, split, number))
        images[split].append(len(pixels))
        skipped += missing
        if brightest < _DARK:  # the first images will do, where they are bright
            brightest = max(brightest, int(np.max(pixels, initial=0)))
    return {"images": images, "skipped": skipped, "brightest": brightest}


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
    if info["brightest"] < _DARK:
        console.print(
            f"the images are dark: the brightest pixel of all is {info['brightest']} of 255; if "
            "they have 12 bits in files of 16, scale them to 16 first",
            soft_wrap=True,
            highlight=False,
        )
    if not any(info["images"]["val"]):
        console.print("there are no validation images, which training needs (--val-fraction)")


def _summary(info: Mapping[str, Any]) -> str:
    counts = " / ".join(str(sum(info["images"][split])) for split in SPLITS)
    return f"{counts} images for train / val / test, {len(info['skipped'])} skipped"


if __name__ == "__main__":
    sys.exit(run_command(main, failures=(ImageError,)))
