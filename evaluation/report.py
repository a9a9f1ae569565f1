"""What a finished evaluation leaves behind: tables, figures, TensorBoard, one page of HTML."""

from __future__ import annotations

import base64
import importlib.metadata
import io
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from jinja2 import Template
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console
from torch.utils.tensorboard import SummaryWriter

from evaluation.arrays import file_names
from evaluation.base import Evaluation, Result
from evaluation.formats import arrange, print_table, to_csv, to_json, to_latex, to_markdown
from evaluation.table import SECONDS, Table
from flowprior.figures import DPI, png_bytes
from flowprior.io import atomic_write

_TEMPLATE = Path(__file__).with_suffix(".html")


@dataclass(frozen=True)
class Picture:
    """A figure as it was written."""

    name: str
    caption: str
    png: bytes

    @property
    def base64(self) -> str:
        """The file as text."""
        return base64.b64encode(self.png).decode()

    @property
    def width(self) -> int:
        """On a screen, which counts 96 pixels to the inch; sharp screens use the rest."""
        return round(int.from_bytes(self.png[16:20]) * 96 / DPI)


def write(
    evaluation: Evaluation,
    table: Table,
    results: Sequence[Result],
    output: Path,
    config_yaml: str,
    start: float,
) -> None:
    """Write every output of an evaluation that started at `start` of the performance counter."""
    notes = evaluation.notes(table)
    for suffix, to_text in {"json": to_json, "md": to_markdown, "tex": to_latex}.items():
        atomic_write(output / f"table.{suffix}", to_text(table, notes))
    atomic_write(output / "table.csv", to_csv(table))
    evaluation.write(results, output)
    pictures = _write_figures(evaluation.figures(table, results), output / "figures")
    with board(output / "tensorboard") as writer:
        writer.add_text("table", to_markdown(table, notes))
        for picture in pictures:
            pixels = np.asarray(Image.open(io.BytesIO(picture.png)).convert("RGB"))
            writer.add_image(f"figures/{picture.name}", pixels, 0, dataformats="HWC")
    measuring = sum(result.metrics.get(SECONDS.name, 0.0) for result in results)
    facts = environment(time.perf_counter() - start, measuring)
    page = report_html(evaluation.title, table, pictures, config_yaml, facts, notes)
    atomic_write(output / "report.html", page)


def show(evaluation: Evaluation, table: Table, output: Path, console: Console) -> None:
    """Print the table, its notes and where the report is."""
    print_table(table, console, evaluation.title)
    for line in (*evaluation.notes(table), str((output / "report.html").resolve())):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _write_figures(figures: Mapping[str, tuple[Figure, str]], folder: Path) -> list[Picture]:
    pictures = [Picture(name, text, png_bytes(figure)) for name, (figure, text) in figures.items()]
    if pictures:
        folder.mkdir(parents=True, exist_ok=True)
    for picture, name in zip(pictures, file_names(figures).values(), strict=True):
        atomic_write(folder / f"{name}.png", picture.png)
    return pictures


@contextmanager
def board(folder: Path) -> Iterator[SummaryWriter]:
    """A run of TensorBoard, which takes the place of that of an earlier call at the end."""
    earlier = list(folder.glob("events.out.tfevents.*"))
    with SummaryWriter(str(folder)) as writer:
        yield writer
    for path in earlier:
        path.unlink()


def report_html(
    title: str,
    table: Table,
    pictures: Sequence[Picture],
    config_yaml: str,
    facts: Mapping[str, str],
    notes: Sequence[str] = (),
) -> str:
    """The page, which needs no network and no script; every text from outside is escaped."""
    return Template(_TEMPLATE.read_text(), autoescape=True).render(
        title=title,
        summary=" · ".join(facts[name] for name in ("Date", "Hardware") if name in facts),
        grid=arrange(table),
        notes=notes,
        pictures=pictures,
        settings=config_yaml.strip(),
        facts=facts,
    )


def environment(seconds: float, measuring_seconds: float) -> dict[str, str]:
    """Versions, hardware, date, command and times (of this run, of all runs) for a reader."""
    names = ["flowprior", "torch", "pytorch-lightning", "numpy", "matplotlib"]
    versions = [f"{name} {version}" for name in names if (version := _version(name))]
    argv = [Path(sys.orig_argv[0]).name, *sys.orig_argv[1:]]
    return {
        "Date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "Command": shlex.join(argv),
        "Hardware": _hardware(),
        "Measuring": f"{_duration(measuring_seconds)}, all runs",
        "This run": _duration(seconds),
        "Versions": ", ".join([f"Python {platform.python_version()}", *versions]),
        "System": f"{platform.system()} {platform.release()}",
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _hardware() -> str:
    cores = f"{_processor()}, {len(os.sched_getaffinity(0))} cores"
    if not torch.cuda.is_available():
        return cores
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return f"{len(names)} × {' / '.join(dict.fromkeys(names))}; {cores}"


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes = seconds / 60
    return f"{minutes:.1f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
