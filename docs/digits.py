"""A picture of digits from random measurements: python docs/digits.py RUN PICTURE.

RUN is that of `python evaluate.py --config restoration_mnist --tune`. The picture has the first
test digits, what some of its methods make of them, and the PSNR of each.
"""

import json
import sys
from pathlib import Path

import numpy as np

from evaluation.arrays import ArrayStore
from flowprior.figures import image_grid

PROBLEM = "random Gaussian 250"
DIGITS = 4
SHOWN = {
    "total\nvariation": {"method": "total variation"},
    "plug-and-play": {"method": "plug-and-play"},
    "diffusion\n(DPS)": {"method": "DPS"},
    "Glow,\ndensity": {"method": "MAP density", "prior": "glow"},
    "Glow, density\nand layers": {"method": "MAP with layers", "prior": "glow"},
    "1×1-coupling\nflow, latents": {"method": "MAP latent norm", "prior": "coupling1x1"},
    "1×1-coupling\nflow, layers": {"method": "MAP with layers", "prior": "coupling1x1"},
}


def cells(run: Path) -> dict[str, dict[str, object]]:
    """Labels of each row, by the key of its arrays."""
    lines = map(json.loads, (run / "records.jsonl").read_text().splitlines()[1:])
    return {line["cell"]: line["labels"] for line in lines if "labels" in line}


def main(run: Path, picture: Path) -> None:
    """Draw the digits."""
    arrays, known = ArrayStore(run / "arrays"), cells(run)
    columns: dict[str, list[tuple[np.ndarray, str]]] = {}
    for title, wanted in SHOWN.items():
        (key,) = (
            key
            for key, labels in known.items()
            if {"problem": PROBLEM, **wanted}.items() <= labels.items()
        )
        kept = [arrays.load(key, image) for image in range(DIGITS)]
        columns.setdefault("truth", [(one["truth"], "") for one in kept])
        columns[title] = [(one["x"], f"{one['psnr'][-1]:.1f} dB") for one in kept]
    tiles = [tile for row in zip(*columns.values(), strict=True) for tile in row]
    images, scores = zip(*tiles, strict=True)
    headed = [f"{name}\n{score}" for name, score in zip(columns, scores, strict=False)]
    titles = [*headed, *scores[len(columns) :]]
    figure = image_grid(np.stack(images), len(columns), titles, (0, 1), label="value in [0, 1]")
    figure.savefig(picture, dpi=90, bbox_inches="tight")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
