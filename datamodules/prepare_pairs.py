"""Make the data of pairs once: python -m datamodules.prepare_pairs --config seismic_64."""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser
from jsonargparse.typing import NonNegativeInt
from rich.console import Console
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.base import SPLITS, ImageDataModule
from datamodules.errors import DataError
from datamodules.making import alone, deaths_reported, made
from datamodules.pairs import SimulatedPairs
from datamodules.prepared_pairs import (
    INFO,
    PART_ROWS,
    check_described,
    part_path,
    read_pairs_info,
    read_part,
    write_part,
)
from flowprior.command_line import (
    ROOT,
    UsageError,
    find_config,
    import_beside,
    one_line,
    read_config,
    run_command,
)
from flowprior.io import atomic_write, remove_temporaries
from flowprior.own_code import file_digest
from flowprior.progress import SweepProgress

_ASKED = 4  # rows that a process is asked for at once
_Part = tuple[str, int, range]
"""Split, number of the part in it, and the indices of its pairs."""


class PairsError(DataError):
    """Pairs cannot be made; the message says of which image, or why."""


def main() -> None:
    """Parse the command line and prepare."""
    parser = argparse.ArgumentParser(
        prog="python -m datamodules.prepare_pairs",
        description=__doc__,
        epilog="other options are those of train.py --data, such as --data.folder",
        allow_abbrev=False,
    )
    parser.add_argument("-c", "--config", required=True, help="of train.py")
    cores = os.cpu_count()
    parser.add_argument("--workers", type=NonNegativeInt, default=cores, help="number of processes")
    options, others = parser.parse_known_args()
    module = _data_of(options.config, others)
    try:
        prepare_pairs(module, options.workers, Console())
    except PairsError:
        raise
    except DataError as error:
        raise UsageError(str(error)) from error


def _data_of(config: str, options: list[str]) -> SimulatedPairs:
    """The `data` of a config, with options that override it."""
    path = find_config(config, ROOT / "configs" / "train")
    settings = read_config(path)
    import_beside(path, settings.get("imports") or [])
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False)
    parser.add_subclass_arguments(ImageDataModule, "data", required=True)
    given = ["--data", json.dumps(settings.get("data"))]
    try:
        module = parser.instantiate(parser.parse_args([*given, *options])).data
    except (ValueError, TypeError) as error:
        raise UsageError(one_line(error)) from error
    if not isinstance(module, SimulatedPairs) or module.folder is None:
        raise UsageError(
            f"--config {config}: data must be datamodules.SimulatedPairs with a folder to make"
        )
    return module


def prepare_pairs(
    module: SimulatedPairs, workers: int = 0, console: Console | None = None
) -> dict[str, Any]:
    """Write the data of all pairs into `module.folder`; continues where a killed call stopped.

    Files that are missing or damaged are made anew.

    Args:
        module: makes the data; its folder is empty or new, or was begun for the same pairs.
        workers: number of processes; 0 to make them in this one.
        console: where progress and results are printed.

    Returns:
        The content of ``pairs.json``.

    Raises:
        DataError: the folder has other pairs or something else, or another process writes it.
        PairsError: the operator fails, or gives values that are not finite; a process died.
    """
    console = console or Console(quiet=True)
    folder, wanted = module.folder, module.described()
    total = sum(len(module.images(split)) for split in SPLITS)
    with alone(folder, "--data.folder"):
        before = _before(folder, wanted)
        files = before["files"]
        missing = [part for part in _parts(module) if not _is_sound(module, part, files)]
        if before["finished"] and not missing:
            console.print(f"{folder} is finished already: {total} pairs", soft_wrap=True)
            return before
        remove_temporaries(folder)
        atomic_write(folder / INFO, json.dumps(before | {"finished": False}, indent=1))
        _write(module, missing, workers, console)
        info = wanted | {"finished": True, "files": _digests(module)}
        atomic_write(folder / INFO, json.dumps(info, indent=1))
    console.print(f"{folder} is finished: {total} pairs", soft_wrap=True, highlight=False)
    return info


def _before(folder: Path, wanted: dict[str, Any]) -> dict[str, Any]:
    """What is in the folder already, which is for the same pairs, or empty."""
    before = read_pairs_info(folder)
    if before is not None:
        check_described(folder, before, wanted)
    elif any(path.name != ".lock" for path in folder.iterdir()):
        raise DataError(f"--data.folder {folder} is not empty: expected a new folder")
    return before or wanted | {"finished": False, "files": {}}


def _is_sound(module: SimulatedPairs, part: _Part, files: dict[str, list[str]]) -> bool:
    """Whether a file is there and, where digests by split are known, what it was."""
    split, number, indices = part
    shape = (len(indices), *module.condition_shape)
    known = files[split][number] if split in files else None
    try:
        read_part(part_path(module.folder, split, number), shape, known)
    except DataError:
        return False
    return True


def _digests(module: SimulatedPairs) -> dict[str, list[str]]:
    """SHA-256 of all files, by split."""
    found: dict[str, list[str]] = {split: [] for split in SPLITS}
    for split, number, _ in _parts(module):
        found[split].append(file_digest(part_path(module.folder, split, number)))
    return found


def _write(module: SimulatedPairs, missing: list[_Part], workers: int, console: Console) -> None:
    total = sum(len(module.images(split)) for split in SPLITS)
    wanted = [(split, index) for split, _, indices in missing for index in indices]
    with deaths_reported(PairsError):
        # A fork of threads, which operators may have, fails.
        rows = made(_Rows(module), wanted, workers, _ASKED, "spawn")
        with SweepProgress(total, total - len(wanted), console, "pair") as progress:
            for split, number, indices in missing:
                progress.start(split)
                kept = []
                for index, row in zip(indices, rows, strict=False):
                    if isinstance(row, PairsError):
                        raise PairsError(f"{split} image {index}: {row}") from row
                    kept.append(row)
                    progress.advance(1)
                write_part(part_path(module.folder, split, number), torch.stack(kept))


def _parts(module: SimulatedPairs) -> list[_Part]:
    counts = {split: len(module.images(split)) for split in SPLITS}
    return [
        (split, number, range(start, min(start + PART_ROWS, counts[split])))
        for split in SPLITS
        for number, start in enumerate(range(0, counts[split], PART_ROWS))
    ]


class _Rows(Dataset):
    """Data by (split, index); an error says why there are none."""

    def __init__(self, module: SimulatedPairs) -> None:
        self.module = module

    def __getitem__(self, key: tuple[str, int]) -> Tensor | PairsError:
        split, index = key
        try:
            (row,) = self.module.simulated(split, [index])
        except Exception as error:  # whatever a user's operator raises
            return PairsError(one_line(error))
        finite = bool(row.isfinite().all())
        return row.float() if finite else PairsError("its data have NaN or infinite entries")


if __name__ == "__main__":
    sys.exit(run_command(main, failures=(PairsError,)))
