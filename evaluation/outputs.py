"""The files of a finished evaluation, but for its report."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from evaluation.arrays import file_names
from evaluation.formats import to_csv, to_json, to_latex, to_markdown
from evaluation.table import Table
from flowprior.figures import png_bytes
from flowprior.io import atomic_write

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure
    from torch.utils.tensorboard import SummaryWriter


@dataclass(frozen=True)
class Picture:
    """A figure as it was written."""

    name: str
    caption: str
    png: bytes


def write_tables(table: Table, folder: Path) -> None:
    """Write table.json, table.csv, table.md and table.tex."""
    writers = {"json": to_json, "csv": to_csv, "md": to_markdown, "tex": to_latex}
    for suffix, writer in writers.items():
        atomic_write(folder / f"table.{suffix}", writer(table))


def write_figures(figures: Mapping[str, tuple[Figure, str]], folder: Path) -> list[Picture]:
    """Write each figure as PNG."""
    pictures = [Picture(name, text, png_bytes(figure)) for name, (figure, text) in figures.items()]
    if pictures:
        folder.mkdir(parents=True, exist_ok=True)
    names = file_names(figures)
    for picture in pictures:
        atomic_write(folder / f"{names[picture.name]}.png", picture.png)
    return pictures


@contextmanager
def board(folder: Path) -> Iterator[SummaryWriter]:
    """A run of TensorBoard, which takes the place of that of an earlier call at the end."""
    from torch.utils.tensorboard import SummaryWriter

    earlier = list(folder.glob("events.out.tfevents.*"))
    with SummaryWriter(str(folder)) as writer:
        yield writer
    for path in earlier:
        path.unlink()


def write_summary(writer: SummaryWriter, table: Table, pictures: Sequence[Picture]) -> None:
    """Add the table, as text, and the figures to a run of TensorBoard."""
    writer.add_text("table", to_markdown(table))
    for picture in pictures:
        writer.add_image(f"figures/{picture.name}", _pixels(picture.png), 0, dataformats="HWC")


def _pixels(png: bytes) -> np.ndarray:
    import numpy as np
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
