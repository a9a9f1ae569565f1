"""Tables of inversions of something tiny, run as a user runs them."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import evaluate
import flowprior
from flowprior.command_line import run_command
from flowprior.physics import gaussian_blur
from tests.conftest import make_perturbed_glow

DATA = {
    "class_path": "datamodules.LayerModels",
    "init_args": {"image_size": 16, "num_train": 64, "num_val": 9, "num_test": 50},
}
BLUR = {"labels": {}, "operator": "gaussian_blur", "options": {"tau": 1.0}}


def noise(sigma: float, kind: str = "Gaussian", **options: Any) -> dict[str, Any]:
    return {
        "class_path": f"flowprior.physics.{kind}",
        "init_args": {"sigma": sigma, **options},
    }


SIGMA_255 = noise(1.0, scale="255")


def solver(kind: str = "MAP", **options: Any) -> dict[str, Any]:
    return {"class_path": f"flowprior.inversion.{kind}", "init_args": options}


def layers(**options: Any) -> dict[str, Any]:
    path = "flowprior.gaussianization.Gaussianization"
    return {"class_path": path, "init_args": {"patch_size": 4, **options}}


def flows(**options: Any) -> dict[str, Any]:
    """Methods with and without layers."""
    options = {"penalty": "log_density", "misfit": SIGMA_255, **options}
    options = {"projection_iterations": 3, **options}
    return {
        "flow": {"solver": solver(**options)},
        "flow + layers": {"solver": solver(**options, reparameterization=layers())},
    }


SIMULATED = {
    "priors": {"glow": "weights"},
    "data": DATA,
    "images": 5,
    "iterations": 5,
    "start": "smoothed_truth",
    "start_deviation": 2.0,
    "batch_size": 2,
    "shown": 2,
    "seeds": [0, 1],
    "methods": {
        "tv": {"solver": solver("TotalVariation", weight=10.0, misfit=noise(0.001))},
        **flows(),
    },
    "experiments": [
        {
            "labels": {"noise": 0.005},
            "operator": "crosshole_tomography",
            "options": {"sources": 3},
            "noise": noise(0.005, "Relative"),
        },
        {
            **BLUR,
            "labels": {"noise": 20},
            "assumed": {"tau": 1.2},
            "noise": noise(20.0, scale="255"),
            "methods": ["flow", "flow + layers"],
        },
    ],
    "published": [{"labels": {"noise": 20, "method": "flow"}, "metrics": {"best_ssim": 0.5}}],
}
MEASURED = {
    "priors": {"glow": "weights"},
    "observations": "measured.npz",
    "iterations": 5,
    "methods": flows(),
    "experiments": [BLUR],
}


def make_folder(path: Path) -> Path:
    """A folder with weights, and with measured data that have a truth."""
    flow = make_perturbed_glow(1, 16, dtype=torch.float32, levels=2, steps=2, coupling="affine")
    flowprior.save(flow, path / "weights")
    truth = torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    np.savez(path / "measured.npz", y=gaussian_blur((1, 16, 16), tau=1.0).A(truth), truth=truth)
    return path


class _NoAnchors(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def write_config(path: Path, settings: Mapping[str, Any], **top: Any) -> None:
    """A config of an `InversionEvaluation` with these settings."""
    evaluation = {"class_path": "evaluation.inversion.InversionEvaluation", "init_args": settings}
    content = {**top, "evaluation": evaluation}
    path.write_text(yaml.dump(content, Dumper=_NoAnchors, allow_unicode=True, sort_keys=False))


def run_here(folder: Path, *arguments: str) -> int:
    """The same as a command, in one process that has imported everything."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", [*sys.path])
        patch.setattr(sys, "argv", ["evaluate.py", *arguments])
        return run_command(evaluate.main)


def table(folder: Path, name: str, settings: Mapping[str, Any], *options: str, **top: Any) -> list:
    """Rows of the table of a run with these settings into a folder of this name."""
    write_config(folder / f"{name}.yaml", settings, **top)
    assert run_here(folder, "--config", f"{name}.yaml", "--output", name, *options) == 0
    return rows_of(folder / name)


def rows_of(output: Path) -> list[dict[str, Any]]:
    """Rows of a table that was written."""
    return json.loads((output / "table.json").read_text())["rows"]


def refused(
    folder: Path, settings: Mapping[str, Any], capsys: pytest.CaptureFixture, *options: str, **top
) -> str:
    """The one line of a run that must be refused before anything is written."""
    write_config(folder / "wrong.yaml", settings, **top)
    assert not (folder / "wrong").exists()
    capsys.readouterr()
    assert run_here(folder, "--config", "wrong.yaml", "--output", "wrong", *options) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert len(line) < 500
    assert not (folder / "wrong").exists()
    return line


def records(output: Path) -> dict[tuple, dict[str, float]]:
    """What was measured, by cell and image, but for the times."""
    found, labels = {}, {}
    for line in map(json.loads, (output / "records.jsonl").read_text().splitlines()[1:]):
        if "labels" in line:
            labels[line["cell"]] = (*line["labels"].values(), line["repeat"])
            continue
        key = (*labels[line["cell"]], line["image"])
        assert key not in found
        line["metrics"].pop("seconds_per_image")
        found[key] = line["metrics"]
    return found
