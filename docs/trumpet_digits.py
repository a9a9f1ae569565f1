"""Table and picture of docs/trumpet_digits.md.

    python evaluate.py --config trumpet_table3 --tune
    PYTHONPATH=. python docs/trumpet_digits.py runs/trumpet_table3 docs/trumpet_digits.png
    PYTHONPATH=. python docs/trumpet_digits.py starts data

prints the signal-to-noise ratios of every method, and differences of pairs to one of them with
p-values by Holm's method over a problem, and draws the first test digits of a problem. A file of
published records, docs/results/trumpet_table3.jsonl, gives the same tables, and no picture. The
last command prints the ratios of the images that methods start from, and of TRUMPET's projections
of the true digits, with data in this folder.
"""

import sys
from pathlib import Path

import torch
import yaml
from digits import FLOW, GLOW, Row, difference, draw, row_of
from inversion_study import holm, p_value, read

import flowprior
from datamodules import MNIST
from evaluation.table import Stat, paired, summarise
from flowprior.inversion import make_problem
from flowprior.inversion.proximal import linear_start
from flowprior.metrics import snr, snr_shifted
from flowprior.physics import Gaussian, make_operator

CONFIG = Path(__file__).parent.parent / "configs/evaluate/trumpet_table3.yaml"
PROBLEMS = {
    "random Gaussian 250": "250 random Gaussian",
    "random mask, 15 % kept": "mask, 15 % kept",
    "super-resolution, x4": "super-resolution, ×4",
    "box mask, 10x10": "box, 10×10",
}
PICTURED = "super-resolution, x4"
ROWS: dict[Row, str] = {
    ("data", ""): "data",
    ("iFlow", "trumpet"): "TRUMPET, iFlow",
    ("iFlow-L", "trumpet"): "TRUMPET, iFlow-L",
    ("projected gradient", "trumpet"): "TRUMPET, projected gradient",
    ("CSGM", "trumpet"): "TRUMPET, CSGM",
    ("MAP latent norm", "trumpet"): "TRUMPET, latent norm",
    ("MAP latent norm", "coupling1x1"): f"{FLOW}, latent norm",
    ("MAP latent norm", "glow"): f"{GLOW}, latent norm",
    ("deep image prior", ""): "deep image prior",
    ("total variation", ""): "total variation",
}
COMPARED: Row = ("MAP latent norm", "trumpet")
SHOWN: dict[Row, str] = {
    ("total variation", ""): "total\nvariation",
    ("deep image prior", ""): "deep image\nprior",
    ("CSGM", "trumpet"): "TRUMPET,\nCSGM",
    ("iFlow-L", "trumpet"): "TRUMPET,\niFlow-L",
    ("MAP latent norm", "trumpet"): "TRUMPET,\nlatents",
    ("MAP latent norm", "glow"): "Glow,\nlatents",
    ("MAP latent norm", "coupling1x1"): "1×1-coupling\nflow, latents",
}


def tables(run: Path) -> None:
    """Print means of all problems, and differences to the row to compare with."""
    found: dict[str, dict[Row, dict[str, Stat]]] = {problem: {} for problem in PROBLEMS}
    for labels, values in read(run).items():
        if (problem := dict(labels)["problem"]) in found:
            of = {name: summarise(values[name]) for name in ("snr_shifted", "snr")}
            found[problem][row_of(labels)] = of
    columns = {problem: differences(rows) for problem, rows in found.items()}
    tell = {
        "SNR on [0, 2] (on [−1, 1]), dB": lambda problem, row: means(found[problem].get(row)),
        f"{ROWS[COMPARED]}, minus the row, dB": lambda problem, row: columns[problem].get(row, ""),
    }
    for title, cell in tell.items():
        print(f"\n| {title} | {' | '.join(PROBLEMS.values())} |\n|---|{'---|' * len(PROBLEMS)}")
        for row, name in ROWS.items():
            cells = [cell(problem, row) for problem in PROBLEMS]
            if any(cells):
                print(f"| {name} | {' | '.join(text or '–' for text in cells)} |")


def means(of: dict[str, Stat] | None) -> str:
    """Mean and 95 % interval on [0, 2], and the mean on [−1, 1]."""
    if of is None:
        return ""
    shifted = of["snr_shifted"]
    text = f"{shifted.mean:.1f} ± {shifted.ci95:.1f} ({of['snr'].mean:.1f})"
    return text.replace("-", "−")


def differences(rows: dict[Row, dict[str, Stat]]) -> dict[Row, str]:
    """Text on the difference to every other row of a problem."""
    if COMPARED not in rows:
        return {}
    others = [row for row in ROWS if row in rows and row != COMPARED]
    every = [paired(rows[COMPARED]["snr_shifted"], rows[row]["snr_shifted"]) for row in others]
    corrected = holm([p_value(one) for one in every])
    texts = [difference(one, p, 1) for one, p in zip(every, corrected, strict=True)]
    return dict(zip(others, texts, strict=True))


def starts(root: Path) -> None:
    """Print the signal-to-noise ratios of starts and of the projected truth, as of the rows."""
    content = yaml.safe_load(CONFIG.read_text())["evaluation"]["init_args"]
    truth = MNIST(root=root, image_size=32).unit_images("test", range(content["images"]))
    trumpet = flowprior.load("trumpet_mnist")
    projected = trumpet.to_unit_range(trumpet.project(trumpet.from_unit_range(truth)))
    grey = torch.full_like(truth, 0.5)
    print("projections of the truth:", ratios(projected, truth), "; grey:", ratios(grey, truth))
    for one in content["experiments"]:
        physics = make_operator(one["operator"], truth.shape[1:], **one["options"])
        noise = Gaussian(**one["noise"]["init_args"])
        y = noise.add(physics.A(truth), seed=0, indices=range(len(truth)))
        problem = make_problem(None, physics, y, noise=noise, image_shape=tuple(truth.shape[1:]))
        print(f"{one['labels']['problem']}, linear start:", ratios(linear_start(problem), truth))


def ratios(x: torch.Tensor, truth: torch.Tensor) -> str:
    """Means on [0, 2], and in brackets on [−1, 1]."""
    text = f"{snr_shifted(x, truth).mean():.1f} ({snr(x, truth).mean():.1f})"
    return text.replace("-", "−")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("trumpet_digits.py takes RUN PICTURE, or starts DATA")
    if sys.argv[1] == "starts":
        starts(Path(sys.argv[2]))
        sys.exit()
    tables(Path(sys.argv[1]))
    draw(Path(sys.argv[1]), PICTURED, Path(sys.argv[2]), SHOWN)
