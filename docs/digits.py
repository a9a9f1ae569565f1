"""Tables and picture of docs/digits.md.

    python evaluate.py --config restoration_mnist --tune --evaluation.images 48 \
        --evaluation.only '{problem: random Gaussian 250}'
    PYTHONPATH=. python docs/digits.py table runs/restoration_mnist \
        "random Gaussian 250" docs/digits.png
    PYTHONPATH=. python docs/digits.py starts data

`table` prints what every method has of a problem, and differences of pairs with p-values by Holm's
method over the column, and draws the first test digits. The picture takes the arrays of a run, of
which the published results have the records alone. `starts` inverts eight validation digits of
MNIST's folder from other starts: 20 minutes of one core.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from inversion_study import Labels, holm, p_value, read, records_of

import flowprior
from datamodules import MNIST
from evaluation.arrays import ArrayStore
from evaluation.table import Stat, paired, summarise
from flowprior.figures import image_grid
from flowprior.gaussianization import Gaussianization
from flowprior.inversion import MAP, Restarts, invert
from flowprior.metrics import psnr
from flowprior.physics import Gaussian, random_gaussian

DIGITS = 4
GOOD = 30.0
"""PSNR above which a digit counts as recovered, in dB."""
Row = tuple[str, str]
"""Method, and prior or nothing."""
FLOW, GLOW = "1×1-coupling flow", "Glow"
ROWS: dict[Row, str] = {
    ("data", ""): "data",
    ("Gaussian prior", "gaussian"): "Gaussian prior",
    ("total variation", ""): "total variation",
    ("wavelets", ""): "wavelets",
    ("BM3D", ""): "BM3D",
    ("plug-and-play", ""): "plug-and-play (denoiser of digits)",
    ("deep image prior", ""): "deep image prior",
    ("DPS", ""): "diffusion model of digits (DPS)",
    ("L1 and density", "coupling1x1"): f"{FLOW}, L1 and density, Adam",
    ("CSGM", "coupling1x1"): f"{FLOW}, CSGM",
    ("GlowIP", "coupling1x1"): f"{FLOW}, GlowIP",
    ("MAP latent norm", "coupling1x1"): f"{FLOW}, latent norm",
    ("MAP density", "coupling1x1"): f"{FLOW}, density",
    ("MAP with layers", "coupling1x1"): f"{FLOW}, density and layers",
    ("MAP latent norm", "glow"): f"{GLOW}, latent norm",
    ("MAP latent norm, from draws", "glow"): f"{GLOW}, latent norm, from draws",
    ("MAP density", "glow"): f"{GLOW}, density",
    ("MAP density, from draws", "glow"): f"{GLOW}, density, from draws",
    ("MAP with layers", "glow"): f"{GLOW}, density and layers",
}
COMPARED: list[Row] = [
    ("MAP with layers", "coupling1x1"),
    ("MAP latent norm", "coupling1x1"),
    ("MAP with layers", "glow"),
]
SHOWN: dict[Row, str] = {
    ("data", ""): "data",
    ("total variation", ""): "total\nvariation",
    ("BM3D", ""): "BM3D",
    ("plug-and-play", ""): "plug-and-play",
    ("DPS", ""): "diffusion\n(DPS)",
    ("MAP density, from draws", "glow"): "Glow, density,\nfrom draws",
    ("MAP with layers", "glow"): "Glow, density\nand layers",
    ("MAP latent norm", "coupling1x1"): "1×1-coupling\nflow, latents",
    ("MAP with layers", "coupling1x1"): "1×1-coupling\nflow, layers",
}


def row_of(labels: Labels) -> Row:
    """Method and prior."""
    known = dict(labels)
    return known["method"], known.get("prior", "")


def tables(run: Path, problem: str) -> None:
    """Print means, and differences of pairs, of what was measured of a problem."""
    known = read(run).items()
    found = {
        row_of(labels): values for labels, values in known if dict(labels)["problem"] == problem
    }
    quality = {row: summarise(values["psnr"]) for row, values in found.items()}
    print("| | PSNR (dB) | median | worst | above 30 dB | SSIM | residual / noise | s |")
    print("|---|---|---|---|---|---|---|---|")
    rows = {row: name for row, name in ROWS.items() if row in found}
    for row, name in rows.items():
        of, values = quality[row], found[row]
        rest = [summarise(values[key]).mean for key in ("ssim", "residual", "seconds_per_image")]
        each = np.array([value for _, value in values["psnr"]])
        print(f"| {name} | {of.mean:.1f} ± {of.ci95:.1f} | {np.median(each):.1f} | ", end="")
        print(f"{each.min():.1f} | {(each > GOOD).sum()} | ", end="")
        print("{:.3f} | {:.2f} | {:.1f} |".format(*rest))
    for metric, digits in (("psnr", 1), ("ssim", 3)):
        compare({row: summarise(values[metric]) for row, values in found.items()}, metric, digits)


def compare(quality: dict[Row, Stat], metric: str, digits: int) -> None:
    """Print differences of some rows from all others."""
    columns = []
    for one in COMPARED:
        others = [row for row in ROWS if row in quality and row != one]
        differences = [paired(quality[one], quality[row]) for row in others]
        corrected = holm([p_value(difference) for difference in differences])
        columns.append(dict(zip(others, zip(differences, corrected, strict=True), strict=True)))
    print(f"\n| {metric}, less | {' | '.join(ROWS[row] for row in COMPARED)} |\n|---|---|---|---|")
    for row, name in ROWS.items():
        if row not in quality:
            continue
        cells = [column.get(row) for column in columns]
        said = ["" if cell is None else difference(*cell, digits) for cell in cells]
        print(f"| {name} | {' | '.join(said)} |")


def difference(of: Stat, p: float, digits: int) -> str:
    """Mean, 95 % interval and p-value."""
    mean = f"{of.mean:+.{digits}f}".replace("-", "−")
    return f"{mean} ± {of.ci95:.{digits}f}, p {p:.1g}"


def draw(run: Path, problem: str, picture: Path, shown: dict[Row, str] = SHOWN) -> None:
    """The first digits, and what methods make of them: those of which a run has records."""
    if not (run / "arrays").is_dir():
        print(f"{picture} is not drawn: it takes the arrays of a run, and {run} has none")
        return
    lines = map(json.loads, records_of(run).read_text().splitlines()[1:])
    known = [(line["cell"], line["labels"]) for line in lines if "labels" in line]
    cells = {row_of(tuple(of.items())): c for c, of in known if of.get("problem") == problem}
    arrays = ArrayStore(run / "arrays")
    columns: dict[str, list[tuple[np.ndarray, str]]] = {}
    for row, title in shown.items():
        if row not in cells:
            continue
        kept = [arrays.load(cells[row], image) for image in range(DIGITS)]
        columns.setdefault("truth", [(one["truth"], "") for one in kept])
        columns[title] = [(one["x"], f"{one['psnr'][-1]:.1f} dB") for one in kept]
    tiles = [tile for row in zip(*columns.values(), strict=True) for tile in row]
    images, scores = zip(*tiles, strict=True)
    headed = [f"{name}\n{score}" for name, score in zip(columns, scores, strict=False)]
    titles = [*headed, *scores[len(columns) :]]
    figure = image_grid(np.stack(images), len(columns), titles, (0, 1), label="value in [0, 1]")
    figure.savefig(picture, dpi=90, bbox_inches="tight")


def starts(root: Path) -> None:
    """Print the PSNR of eight validation digits by Glow from several starts, at tuned weights."""
    truth = MNIST(root=root).unit_images("val", range(8))
    physics = random_gaussian(truth.shape[1:], measurements=250)
    indices = [10**9 + digit for digit in range(8)]  # as tuning numbers them
    y = Gaussian(0.02).add(physics.A(truth), seed=0, indices=indices)
    flow = flowprior.load("glow_mnist")
    layers = Gaussianization.robust(temperature=0.7)
    density = {"beta": 0.1, "penalty": "log_density"}
    grey = torch.full_like(truth, 0.5)
    options = {"sigma": 0.02, "iterations": 300}
    for name, kept in {
        "latent norm": {"beta": 1.0},
        "density": density,
        "density and layers": {**density, "reparameterization": layers},
    }.items():
        tried = [("grey", MAP(**kept, tolerance=0.003), grey)]
        for scale in (0.0, 0.1, 0.7, 1.0):
            solver = MAP(**kept, tolerance=0.003, start_scale=scale)
            tried.append((f"s = {scale:g}", solver, None))
            if (name, scale) in (("density", 0.1), ("density and layers", 0.7)):
                tried.append((f"four of s = {scale:g}", Restarts(solver, count=4), None))
        for start, solver, images in tried:
            found = invert(flow, physics, y, solver=solver, start=images, **options)
            quality = psnr(found.x, truth)
            print(
                f"{name}, {start}: {quality.mean():.1f} dB, worst {quality.min():.1f}", flush=True
            )


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["table", run, problem, picture]:
            tables(Path(run), problem)
            draw(Path(run), problem, Path(picture))
        case ["starts", folder]:
            starts(Path(folder))
        case _:
            sys.exit("digits.py takes table RUN PROBLEM PICTURE, or starts FOLDER")
