"""Mistakes in configs of inversions: one line that names the option, and nothing written."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.inversion_tables import (
    BLUR,
    DATA,
    MEASURED,
    SIGMA_255,
    SIMULATED,
    flows,
    layers,
    make_folder,
    noise,
    refused,
    solver,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = make_folder(tmp_path_factory.mktemp("mistakes"))
    y = np.zeros((2, 1, 16, 16))
    truth = np.zeros((2, 1, 16, 16), np.uint8)
    truth[0] = 255
    bad = y.copy()
    bad[1, 0, 0, 0] = np.nan
    arrays = {
        "nan": {"y": bad},
        "small": {"y": np.zeros((2, 1, 8, 8))},
        "flat": {"y": y[:, 0]},
        "other": {"z": y},
        "large": {"y": np.full((2, 1, 16, 16), 1e300)},
        "bytes": {"y": y, "truth": truth},
    }
    for name, content in arrays.items():
        np.savez(path / f"{name}.npz", **content)
    (path / "cut.npz").write_bytes((path / "small.npz").read_bytes()[:700])
    (path / "text.npz").write_text("no numbers")
    (path / "my_decoders.py").write_text(DECODER)
    return path


DECODER = """
from torch import nn
from flowprior.priors import Module, Prior

def decoder(size: int = 16) -> Prior:
    net = nn.Sequential(nn.Linear(3, size * size), nn.Unflatten(1, (1, size, size)))
    return Module(net, (1, size, size), [3])
"""

OBSERVATIONS = {
    "damaged": ("cut.npz", ["cut.npz", ".npz file"]),
    "bytes": ("bytes.npz", ["truth", "[0, 1]", "0 to 255"]),
    "too large": ("large.npz", ["y", "single precision"]),
    "missing file": ("none.npz", ["none.npz"]),
    "no numbers": ("text.npz", ["text.npz"]),
    "NaN": ("nan.npz", ["y", "rows [1]"]),
    "shape": ("small.npz", ["y", "(B, 1, 16, 16)"]),
    "no channel": ("flat.npz", ["(2, 16, 16)", "(B, 1, 16, 16)", "y[:, None]"]),
    "unknown array": ("other.npz", ["z", "expected y"]),
}


@pytest.mark.parametrize("name", OBSERVATIONS)
def test_mistake_in_observations(folder, capsys, name):
    file, words = OBSERVATIONS[name]
    line = refused(folder, {**MEASURED, "observations": file}, capsys)
    assert all(word in line for word in words)


def method(**options: Any) -> dict[str, Any]:
    return {"methods": {"flow": {"solver": solver(**options)}}}


def experiment(**options: Any) -> dict[str, Any]:
    return {"experiments": [{**BLUR, **options}]}


TV = solver("TotalVariation", weight=1.0, misfit=SIGMA_255)
WRONG = {
    "prior": ({"priors": {"glow": "nowhere"}}, ["priors.glow", "nowhere"]),
    "no prior": ({"priors": {}}, ["priors"]),
    "start": ({"start": "file"}, ["start=file", "observations"]),
    "start of a method": (
        {"methods": {"flow": {"solver": solver(misfit=SIGMA_255), "start": "file"}}},
        ["start=file"],
    ),
    "unknown start": ({"start": "zero"}, ["start", "zero"]),
    "iterations": ({"iterations": 0}, ["iterations"]),
    "iterations of a method": (
        {"methods": {"flow": {"solver": solver(misfit=SIGMA_255), "iterations": -1}}},
        ["iterations"],
    ),
    "images": ({"images": 0}, ["images"]),
    "seeds": ({"seeds": [1, 1]}, ["seeds"]),
    "data too": ({"data": DATA}, ["data", "observations"]),
    "metric of a paper": (
        {"published": [{"labels": {}, "metrics": {"sim": 0.5}}]},
        ["published", "sim", "ssim"],
    ),
    "tuning metric": ({"tune_metric": "pnsr"}, ["tune_metric", "pnsr", "psnr"]),
    "tuning metric without a better end": ({"tune_metric": "residual"}, ["tune_metric", "psnr"]),
    "name of a row": ({"methods": {"data": flows()["flow"]}}, ["methods.data"]),
    "β": (method(misfit=SIGMA_255, beta=-1.0), ["beta"]),
    "penalty": (method(misfit=SIGMA_255, penalty="l1"), ["penalty"]),
    "option of a solver": (method(misfit=SIGMA_255, betta=1.0), ["betta"]),
    "layers": (method(misfit=SIGMA_255, reparameterization=layers(passes=0)), ["passes"]),
    "unknown part": (
        method(misfit=SIGMA_255, reparameterization={"w": layers()}),
        ["methods.flow", "no part w"],
    ),
    "no solver": (
        {"methods": {"flow": {"solver": {"class_path": "flowprior.inversion.MOP"}}}},
        ["MOP"],
    ),
    "noise missing": (method(), ["methods.flow", "noise"]),
    "noise of wrappers missing": (
        {"methods": {"d": {"solver": solver("Discrepancy", solver=solver())}}},
        ["methods.d", "noise"],
    ),
    "σ": (experiment(noise=noise(-1.0)), ["sigma"]),
    "operator": (experiment(operator="gauss"), ["operator", "gaussian_blur"]),
    "path": (experiment(operator="deepinv.physics.Blurr"), ["deepinv.physics.Blurr"]),
    "module": (experiment(operator="nowhere.Blur"), ["nowhere.Blur"]),
    "option": (experiment(options={"tua": 1.0}), ["tua", "tau"]),
    "kind": (experiment(options={"tau": "big"}), ["gaussian_blur", "tau='big'"]),
    "fraction": (
        experiment(operator="super_resolution", options={"factor": 2.5}),
        ["factor=2.5"],
    ),
    "shapes": (experiment(operator="colourisation", options={}), ["colourisation"]),
    "method": (experiment(methods=["flaw"]), ["method", "'flaw'", "flow + layers"]),
    "chosen prior": (experiment(priors=["glew"]), ["prior", "'glew'", "glow"]),
    "no chosen prior": (experiment(priors=[]), ["experiments[0].priors", "at least one"]),
    "no chosen method": (experiment(methods=[]), ["methods.flow", "no experiment"]),
    "prior of a method": (
        {"methods": {"flow": {"solver": solver(misfit=SIGMA_255), "priors": ["glew"]}}},
        ["methods.flow", "'glew'", "glow"],
    ),
    "prior of a method without needs": (
        {"methods": {"tv": {"solver": TV, "priors": ["glew"]}}},
        ["methods.tv", "'glew'", "glow"],
    ),
    "no prior of a method": (
        {"methods": {"flow": {"solver": solver(misfit=SIGMA_255), "priors": []}}},
        ["methods.flow", "no experiment"],
    ),
    "another prior of a method": (
        {
            "priors": {"glow": "weights", "free": "weights"},
            "methods": {"flow": {"solver": solver(misfit=SIGMA_255), "priors": ["free"]}},
            **experiment(priors=["glow"]),
        },
        ["methods.flow", "no experiment"],
    ),
    "for simulated data": (experiment(assumed={"tau": 2.0}), ["assumed"]),
    "noise of simulated data": (experiment(assumed_noise=SIGMA_255), ["assumed_noise"]),
    "rows alike": ({"experiments": [BLUR, BLUR]}, ["labels"]),
    "option to tune": (
        {"methods": {"flow": {"solver": solver(misfit=SIGMA_255), "tune": {"bata": [1]}}}},
        ["methods.flow", "tune.bata"],
    ),
    "value to tune": (
        {"methods": {"flow": {"solver": solver(misfit=SIGMA_255), "tune": {"beta": [1, -1]}}}},
        ["methods.flow", "beta"],
    ),
    "nothing to tune": (
        {"methods": {"flow": {"solver": solver(misfit=SIGMA_255), "tune": {"beta": []}}}},
        ["tune.beta"],
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_mistake_in_a_config(folder, capsys, name):
    settings, words = WRONG[name]
    line = refused(folder, {**MEASURED, **settings}, capsys)
    assert all(word in line for word in words)


def test_mistake_in_the_second_experiment_is_found_before_the_first_is_measured(folder, capsys):
    settings = deepcopy(SIMULATED)
    settings["experiments"][1]["options"] = {"tua": 1.0}
    line = refused(folder, settings, capsys)
    assert "experiments[1]" in line
    assert "tua" in line


def test_wrong_options_that_make_the_data(folder, capsys):
    settings = deepcopy(SIMULATED)
    settings["experiments"][1]["data_options"] = {"tua": 1.0}
    line = refused(folder, settings, capsys)
    assert "experiments[1]" in line
    assert "tua" in line


def test_file_to_start_from_is_for_measured_data(folder, capsys):
    assert "start=file" in refused(folder, {**SIMULATED, "start": "file"}, capsys)


OWN = {"priors": {"gan": {"class_path": "my_decoders.decoder"}}}


def test_penalty_without_the_capability_says_what_to_use(folder, capsys):
    settings = {**MEASURED, **OWN, "methods": {"csgm": flows()["flow"]}}
    line = refused(folder, settings, capsys, imports=["my_decoders"])
    assert "methods.csgm: " in line
    assert line.endswith("use latent_norm or none")


def test_prior_of_another_size(folder, capsys):
    small = {"class_path": "my_decoders.decoder", "init_args": {"size": 8}}
    settings = {**SIMULATED, "priors": {"gan": small}}
    line = refused(folder, settings, capsys, imports=["my_decoders"])
    assert "priors.gan" in line
    assert "(1, 8, 8)" in line
    assert "(1, 16, 16)" in line
