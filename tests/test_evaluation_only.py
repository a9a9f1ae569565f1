"""Tables of some experiments of a config, chosen by their labels."""

import pytest

from tests.inversion_tables import (
    DATA,
    make_folder,
    noise,
    rows_of,
    run_here,
    solver,
    write_config,
)

SETTINGS = {
    "priors": {"glow": "weights"},
    "data": DATA,
    "images": 2,
    "iterations": 20,
    "start": "constant",
    "tune_images": 2,
    "methods": {
        "tv": {"solver": solver("TotalVariation", weight=5.0), "tune": {"weight": [1.0, 5.0]}},
        "of the blur": {"solver": solver("TotalVariation", weight=2.0)},
    },
    "experiments": [
        {
            "labels": {"blur": 1.0, "kind": "a"},
            "operator": "gaussian_blur",
            "options": {"tau": 1.0},
            "noise": noise(0.1),
        },
        {
            "labels": {"blur": 0, "kind": "b"},
            "operator": "denoising",
            "noise": noise(0.2),
            "methods": ["tv"],
        },
    ],
}


@pytest.fixture
def run(tmp_path):
    folder = make_folder(tmp_path)
    write_config(folder / "table.yaml", SETTINGS)

    def command(*options):
        arguments = ("--config", "table.yaml", "--output", "out", "--tune", *options)
        return run_here(folder, *arguments)

    return command


def test_one_experiment_and_then_all(run, tmp_path):
    assert run("--evaluation.only", "{blur: 0}") == 0
    first = rows_of(tmp_path / "out")
    assert [row["labels"]["blur"] for row in first] == [0, 0]
    assert run() == 0
    rows = rows_of(tmp_path / "out")
    assert [row["labels"]["blur"] for row in rows] == [1.0, 1.0, 1.0, 0, 0]
    for row, again in zip(first, rows[3:], strict=True):  # measured once: seconds are the same
        assert row["metrics"] == again["metrics"]
    quality = {row["labels"]["method"]: row["metrics"]["psnr"]["mean"] for row in first}
    assert quality["tv"] > quality["data"]


def test_labels_that_no_experiment_has_are_named(run, capsys):
    assert run("--evaluation.only", "{blur: 7}") == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "only: no experiment is blur 7; there are blur 1, kind a; blur 0, kind b" in line
