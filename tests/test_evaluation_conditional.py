"""Tables with conditional priors: what they are given, mistakes, and migration beside them."""

import itertools
from pathlib import Path

import pytest
import torch

import flowprior
from datamodules import Reflectivities
from evaluation.baselines import Migration
from flowprior.inversion import MAP, invert, problem
from flowprior.metrics import psnr
from flowprior.physics import Gaussian, MigratedData, denoising, gaussian_blur
from flowprior.posterior import Amortised
from tests.inversion_tables import noise, refused, run_here, solver, table
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
        }
    ],
    "measures": [{"class_path": "evaluation.measures.SignalToNoise"}],
}
PHYSICS = gaussian_blur((1, 8, 8), tau=1.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the weights of a conditional flow of 8×8 images."""
    path = tmp_path_factory.mktemp("tables")
    sizes = {"condition_shape": (1, 8, 8), "image_size": 8, "dtype": torch.float32}
    flow = make("images", **sizes)
    for name, flow.conditioning in (("unknown", None), ("again", GIVEN), ("learned", GIVEN)):
        flowprior.save(flow, path / name)
    return path


GIVEN = MigratedData(scale=2.0, depth_power=1.0)


def test_table_gives_what_invert_gives(folder: Path) -> None:
    rows = {row["labels"]["method"]: row for row in table(folder, "given", SETTINGS)}
    assert list(rows) == ["data", "migrated", "amortised", "MAP"]
    truth = torch.from_numpy(Reflectivities(**IMAGES).images("test").pixels(range(3)))
    y = Gaussian(0.05).add(PHYSICS.A(truth), seed=0, indices=range(3))
    flow = flowprior.load(folder / "learned").eval().requires_grad_(False)
    assert flow.conditioning == GIVEN
    condition = GIVEN(PHYSICS, y, truth[:1])
    for name, one, iterations in (
        ("amortised", Amortised(mean_draws=8), 0),
        ("MAP", MAP(start_scale=0.0), 4),
    ):
        options = {"sigma": 0.05, "solver": one, "iterations": iterations}
        found = invert(flow, PHYSICS, y, **options)
        assert torch.equal(found.x, invert(flow, PHYSICS, y, **options, condition=condition).x)
        expected = psnr(found.x, truth).mean().item()
        assert rows[name]["metrics"]["psnr"]["mean"] == pytest.approx(expected, abs=1e-3)
    calls = {name: row["metrics"]["forward_calls"]["mean"] for name, row in rows.items()}
    assert calls["amortised"] == 0
    assert rows["amortised"]["metrics"]["adjoint_calls"]["mean"] == 1
    assert calls["MAP"] >= 4
    assert calls["migrated"] == 3


def test_seconds_are_with_those_of_the_condition(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = itertools.count(step=6e6)
    monkeypatch.setattr(problem, "now", lambda _: next(ticks))
    rows = {row["labels"]["method"]: row for row in table(folder, "timed", SETTINGS)}
    del rows["data"]
    for name, row in rows.items():  # batches of two images and of one
        made = 0 if name == "migrated" else (3e6 + 3e6 + 6e6) / 3
        assert abs(row["metrics"]["seconds_per_image"]["mean"] - made) < 1e4


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
    line = refused(folder, {**SETTINGS, "priors": {"learned": "unknown"}}, capsys)
    assert "experiments[0]: condition must be given" in line
    assert "set its `conditioning`" in line
    line = refused(
        folder, changed(operator="phase_retrieval", options={"measurements": 64}), capsys
    )
    assert "has no A_adjoint, which MigratedData needs" in line


def test_another_condition_is_another_result(folder: Path, capsys: pytest.CaptureFixture) -> None:
    methods = {"amortised": SETTINGS["methods"]["amortised"]}
    options = {**SETTINGS, "images": 1, "methods": methods, "priors": {"learned": "again"}}
    table(folder, "again", options)
    flow = flowprior.load(folder / "again")
    flow.conditioning = MigratedData(scale=1.0, depth_power=1.0)
    flowprior.save(flow, folder / "again")
    assert run_here(folder, "--config", "again.yaml", "--output", "again") == 2
    assert "config.json was" in capsys.readouterr().err
