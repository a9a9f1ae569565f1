"""Tables with conditional priors: what they are given, mistakes, and migration beside them."""

from pathlib import Path

import pytest
import torch

import flowprior
from datamodules import Reflectivities
from evaluation.baselines import Migration
from flowprior.inversion import MAP, invert
from flowprior.metrics import psnr
from flowprior.physics import Condition, Gaussian, denoising, gaussian_blur
from flowprior.posterior import Amortised
from tests.inversion_tables import noise, refused, run_here, solver, table, write_config
from tests.test_flows_conditional import make

IMAGES = {"image_size": 8, "num_test": 3}
SETTINGS = {
    "priors": {"learned": "learned"},
    "data": {"class_path": "datamodules.Reflectivities", "init_args": IMAGES},
    "images": 3,
    "iterations": 4,
    "batch_size": 2,
    "shown": 1,
    "methods": {
        "migrated": {"solver": {"class_path": "evaluation.baselines.Migration"}, "iterations": 0},
        "amortised": {
            "solver": {
                "class_path": "flowprior.posterior.Amortised",
                "init_args": {"mean_draws": 8},
            },
            "iterations": 0,
        },
        "MAP": {"solver": solver(start_scale=0.0)},
    },
    "experiments": [
        {
            "labels": {},
            "operator": "gaussian_blur",
            "options": {"tau": 1.0},
            "noise": noise(0.05),
            "condition": {"adjoint": True, "scale": 2.0, "depth_power": 1.0},
        }
    ],
    "measures": [
        {"class_path": "evaluation.measures.SignalToNoise"},
        {"class_path": "evaluation.measures.OperatorCalls"},
    ],
}
PHYSICS = gaussian_blur((1, 8, 8), tau=1.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the weights of a conditional flow of 8×8 images."""
    path = tmp_path_factory.mktemp("tables")
    sizes = {"condition_shape": (1, 8, 8), "image_size": 8, "dtype": torch.float32}
    flowprior.save(make("images", **sizes), path / "learned")
    return path


GIVEN = Condition(adjoint=True, scale=2.0, depth_power=1.0)


def test_condition_is_the_weighted_adjoint_of_what_grey_does_not_explain() -> None:
    generator = torch.Generator().manual_seed(0)
    x, other = torch.rand(2, 3, 1, 8, 8, generator=generator)
    given = GIVEN(PHYSICS, PHYSICS.A(x))
    depth = ((torch.arange(8) + 0.5) / 8)[:, None]
    weighted = 2 * (PHYSICS.A(x - 0.5) * PHYSICS.A(depth * other)).sum()
    torch.testing.assert_close((given * other).sum(), weighted, rtol=1e-4, atol=1e-4)
    assert torch.equal(GIVEN(PHYSICS, PHYSICS.A(x)[1:2]), given[1:2])
    assert torch.equal(Condition(scale=3.0)(PHYSICS, x), 3 * x)


def test_table_gives_what_invert_gives(folder: Path) -> None:
    rows = {row["labels"]["method"]: row for row in table(folder, "given", SETTINGS)}
    assert list(rows) == ["data", "migrated", "amortised", "MAP"]
    truth = torch.from_numpy(Reflectivities(**IMAGES).images("test").pixels(range(3)))
    y = Gaussian(0.05).add(PHYSICS.A(truth), seed=0, indices=range(3))
    flow = flowprior.load(folder / "learned").eval().requires_grad_(False)
    options = {"sigma": 0.05, "condition": GIVEN(PHYSICS, y)}
    for name, one, iterations in (
        ("amortised", Amortised(mean_draws=8), 0),
        ("MAP", MAP(start_scale=0.0), 4),
    ):
        found = invert(flow, PHYSICS, y, solver=one, iterations=iterations, **options)
        expected = psnr(found.x, truth).mean().item()
        assert rows[name]["metrics"]["psnr"]["mean"] == pytest.approx(expected, abs=1e-3)
    calls = {name: row["metrics"]["forward_calls"]["mean"] for name, row in rows.items()}
    assert calls["amortised"] == 0
    assert calls["MAP"] >= 4
    assert calls["migrated"] == 3


def test_migration_is_the_best_multiple_of_the_adjoint() -> None:
    truth = torch.from_numpy(Reflectivities(**IMAGES).images("test").pixels(range(3)))
    y = Gaussian(0.05).add(PHYSICS.A(truth), seed=0, indices=range(3))
    found = invert(
        None, PHYSICS, y, sigma=0.05, solver=Migration(), iterations=0, image_shape=(1, 8, 8)
    )
    assert found.calls.forward.tolist() == [3, 3, 3]
    assert found.calls.adjoint.tolist() == [1, 1, 1]
    residual = y - PHYSICS.A(torch.full_like(truth, 0.5))
    g = PHYSICS.A_adjoint(residual)
    bent = PHYSICS.A(g)
    step = (bent * residual).sum((1, 2, 3)) / (bent * bent).sum((1, 2, 3))
    torch.testing.assert_close(found.x, 0.5 + step.view(-1, 1, 1, 1) * g, atol=1e-5, rtol=1e-4)
    denoised = invert(
        None,
        denoising((1, 8, 8)),
        truth,
        sigma=1.0,
        solver=Migration(),
        iterations=0,
        image_shape=(1, 8, 8),
    )
    torch.testing.assert_close(denoised.x, truth)


def changed(**options: object) -> dict:
    (experiment,) = SETTINGS["experiments"]
    return {**SETTINGS, "experiments": [{**experiment, **options}]}


def test_mistakes_are_found_before_measuring(folder: Path, capsys: pytest.CaptureFixture) -> None:
    line = refused(folder, changed(condition=None), capsys)
    assert "experiments[0]: " in line
    assert "is conditional: give the experiment a condition, {adjoint: true} or" in line
    line = refused(folder, changed(condition={"scale": 0.0}), capsys)
    assert "scale must be a positive finite number" in line
    data = {"operator": "random_gaussian", "options": {"measurements": 9}}
    line = refused(folder, changed(**data, condition={}), capsys)
    assert "condition must have shape (B, 1, 8, 8), got (1, 9)" in line


def test_another_condition_is_another_result(folder: Path, capsys: pytest.CaptureFixture) -> None:
    options = {**SETTINGS, "images": 1, "methods": {"amortised": SETTINGS["methods"]["amortised"]}}
    table(folder, "again", options)
    (experiment,) = SETTINGS["experiments"]
    other = {**experiment, "condition": {"adjoint": True, "scale": 1.0}}
    write_config(folder / "again.yaml", {**options, "experiments": [other]})
    assert run_here(folder, "--config", "again.yaml", "--output", "again") == 2
    assert "experiment.condition.scale was 2.0, is now 1.0" in capsys.readouterr().err
