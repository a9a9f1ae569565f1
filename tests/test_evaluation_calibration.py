"""Tables that say whether posteriors are right."""

import inspect
import json
from types import SimpleNamespace

import pytest
import torch
import yaml
from torch import nn

import flowprior
from datamodules import PriorDraws, Reflectivities
from evaluation.base import Cell, Result
from evaluation.calibration import CalibrationEvaluation, RankMeasure
from flowprior.figures import png_bytes
from flowprior.inversion import Checkpoint, invert
from flowprior.physics import Gaussian, ScaledData, gaussian_blur
from flowprior.posterior import (
    Amortised,
    Langevin,
    LowRank,
    Variational,
    calibrate,
    coverage_figure,
)
from flowprior.posterior.calibration import LEVELS
from flowprior.posterior.langevin import LangevinRun
from flowprior.priors import Module
from tests.conftest import make_perturbed_glow
from tests.inversion_tables import BLUR, noise, records, rows_of, run_here, solver
from tests.test_flows_conditional import make

FAMILY = {"class_path": "flowprior.posterior.LowRank", "init_args": {"rank": 2}}
VARIATIONAL = {
    "class_path": "flowprior.posterior.Variational",
    "init_args": {"draws": 2, "descent_iterations": 2, "family": FAMILY},
}
LANGEVIN = {
    "class_path": "flowprior.posterior.Langevin",
    "init_args": {"chains": 2, "warm_up": 2, "leapfrog": 1, "descent_iterations": 2},
}
SETTINGS = {
    "prior": "weights",
    "images": 10,
    "draws": 19,
    "iterations": 5,
    "methods": {"fitted": {"solver": VARIATIONAL}, "chains": {"solver": LANGEVIN}},
    "experiments": [{**BLUR, "noise": noise(0.1)}],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("calibration")
    flow = make_perturbed_glow(1, 8, dtype=torch.float32, levels=2, steps=1, coupling="affine")
    flowprior.save(flow, path / "weights")
    return path


def run(folder, name, *options, **changes):
    evaluation = {
        "class_path": "evaluation.calibration.CalibrationEvaluation",
        "init_args": {**SETTINGS, **changes},
    }
    text = yaml.safe_dump({"evaluation": evaluation}, sort_keys=False)
    (folder / f"{name}.yaml").write_text(text)
    return run_here(folder, "--config", f"{name}.yaml", "--output", name, *options)


def test_a_prior_that_is_no_folder_of_weights(folder):
    loaded = {"class_path": "flowprior.load", "init_args": {"folder": "weights"}}
    middle = {"image_size": 6, "prior": loaded}
    prior = {"class_path": "flowprior.priors.Cropped", "init_args": middle}
    fitted = {"fitted": SETTINGS["methods"]["fitted"]}
    assert run(folder, "own", prior=prior, methods=fitted) == 0
    assert len(records(folder / "own")) == 10
    assert run(folder, "own", prior={**prior, "init_args": {**middle, "border": 0.5}}) == 2


def test_table_and_figure(folder):
    assert run(folder, "whole") == 0
    assert [row["labels"]["method"] for row in rows_of(folder / "whole")] == ["fitted", "chains"]
    for row in rows_of(folder / "whole"):
        metrics = row["metrics"]
        assert 0 <= metrics["p_value"]["mean"] <= 1
        for name in ("rank_whole", "rank_mean", "inside_0.5", "inside_0.9"):
            assert metrics[name]["n"] == 10
            assert 0 <= metrics[name]["mean"] <= 1
    assert (folder / "whole" / "figures" / "ranks.png").stat().st_size
    assert run(folder, "parts", batch_size=3) == 0
    assert records(folder / "parts") == records(folder / "whole")
    whole, parts = (json.loads((folder / n / "table.json").read_text()) for n in ("whole", "parts"))
    (note,) = [note for note in whole["notes"] if note.startswith("method chains (")]
    assert "the chains" in note
    assert parts["notes"] == whole["notes"]


def test_mistakes_are_one_line(folder, capsys):
    for changes, words in (
        ({"images": 9}, "images must be an integer of at least 10"),
        ({"draws": 9}, "draws must be one less than a multiple of 20"),
        ({"prior": "nowhere"}, "prior"),
        ({"methods": {"map": {"solver": solver("MAP")}}}, "methods.map: MAP has no posterior"),
        (
            {"methods": {"long": {"solver": {"class_path": LANGEVIN["class_path"]}}}},
            "methods.long: Langevin has no posterior before iteration 301, but takes only 5",
        ),
        (
            {"methods": {"short": {"solver": LANGEVIN, "iterations": 2}}},
            "methods.short: Langevin has no posterior before iteration 3, but takes only 2",
        ),
    ):
        capsys.readouterr()
        assert run(folder, "wrong", **changes) != 0
        assert words in capsys.readouterr().err
        assert not (folder / "wrong").exists()


def test_conditional_priors_are_tried_on_images(folder, capsys):
    flow = make("images", condition_shape=(1, 8, 8), image_size=8, dtype=torch.float32)
    flow.conditioning = ScaledData(scale=2.0)
    flowprior.save(flow, folder / "learned")
    images = {"image_size": 8, "num_test": 12}
    given = {
        "prior": "learned",
        "data": {"class_path": "datamodules.Reflectivities", "init_args": images},
        "methods": {
            "amortised": {
                "solver": {"class_path": "flowprior.posterior.Amortised"},
                "iterations": 0,
            }
        },
    }
    assert run(folder, "given", **given) == 0
    (row,) = rows_of(folder / "given")
    flow = flowprior.load(folder / "learned")
    truth = torch.from_numpy(Reflectivities(**images).images("test").pixels(range(10)))
    physics = gaussian_blur(flow.image_shape, tau=1.0)
    y = Gaussian(0.1).add(physics.A(truth), seed=0, indices=range(10))
    learned = invert(flow, physics, y, sigma=0.1, solver=Amortised(), iterations=0)
    expected = calibrate(learned.posterior, truth, 19)
    assert row["metrics"]["p_value"]["mean"] == pytest.approx(expected.p_value)
    inside = expected.coverage[:, LEVELS.index(0.9)].mean().item()
    assert row["metrics"]["inside_0.9"]["mean"] == pytest.approx(inside)
    capsys.readouterr()
    assert run(folder, "few", images=13, **given) == 2
    assert "data has 12 test images, fewer than images=13" in capsys.readouterr().err
    assert not (folder / "few").exists()
    assert run(folder, "none", **{**given, "data": None}) == 2
    assert "not conditional; or give images as data" in capsys.readouterr().err


def test_a_prior_of_training_images_and_one_experiment_alone(folder, capsys):
    prior = {
        "class_path": "evaluation.priors.FittedGaussian",
        "init_args": {"images": 64, "stationary": True},
    }
    images = {"image_size": 8, "num_train": 64, "num_test": 12}
    experiments = [{**SETTINGS["experiments"][0], "labels": {"noise": name}} for name in "ab"]
    given = {
        "prior": prior,
        "data": {"class_path": "datamodules.Reflectivities", "init_args": images},
        "methods": {"fitted": SETTINGS["methods"]["fitted"]},
        "experiments": experiments,
    }
    assert run(folder, "one", "--evaluation.only", "{noise: b}", **given) == 0
    (row,) = rows_of(folder / "one")
    assert row["labels"]["noise"] == "b"
    assert row["metrics"]["rank_whole"]["n"] == 10
    capsys.readouterr()
    assert run(folder, "drawn", **{**given, "data": None}) == 2
    assert "prior: one that is made of training images needs data" in capsys.readouterr().err


def test_there_is_nothing_to_tune(folder, capsys):
    assert run(folder, "tuned", "--tune") == 2
    assert "CalibrationEvaluation has nothing to tune" in capsys.readouterr().err
    assert not (folder / "tuned").exists()


def test_defaults_have_posteriors():
    parameters = inspect.signature(CalibrationEvaluation).parameters
    for kind in (Langevin, Variational):
        assert kind().posterior_after <= parameters["iterations"].default


@pytest.mark.parametrize("options", [{"warm_up": 2}, {"warm_up": 3, "thin": 4}])
def test_the_posterior_is_there_when_a_solver_says(folder, options):
    flow = flowprior.load(folder / "weights")
    physics = gaussian_blur(flow.image_shape, tau=1.0)
    y = physics.A(torch.full((1, *flow.image_shape), 0.5))
    chains = Langevin(chains=2, leapfrog=1, descent_iterations=2, **options)
    fitted = Variational(draws=2, descent_iterations=2, family=LowRank(2))
    for method in (chains, fitted):
        least = method.posterior_after
        found = invert(flow, physics, y, sigma=0.1, solver=method, iterations=least)
        assert found.posterior is not None
    before = chains.posterior_after - 1
    found = invert(flow, physics, y, sigma=0.1, solver=chains, iterations=before)
    assert found.posterior is None


def test_another_number_of_draws_is_noticed(folder, capsys):
    methods = {"fitted": {"solver": VARIATIONAL}}
    assert run(folder, "draws", methods=methods) == 0
    kept = records(folder / "draws")
    capsys.readouterr()
    assert run(folder, "draws", methods=methods, draws=39) == 2
    assert "under other settings" in capsys.readouterr().err
    assert records(folder / "draws") == kept
    assert run(folder, "draws", methods=methods, images=12) == 0  # more images are only added
    more = records(folder / "draws")
    assert len(more) == 12
    assert kept.items() <= more.items()


def test_draws_overshoot_in_all_that_loads_them(folder):
    data = PriorDraws(folder / "weights", num_images=40, seed=3, batch_size=40)
    ((_, images),) = data.batches("val", 40)
    (loaded,) = data.val_dataloader()
    assert torch.equal(loaded, images)
    assert torch.equal(data.dataset("val").__getitems__([(0, 4)])[0], images[4])
    (shuffled,) = data.train_dataloader()
    ((_, training),) = data.batches("train", 40)
    assert torch.equal(shuffled.sum((1, 2, 3)).sort().values, training.sum((1, 2, 3)).sort().values)
    low, high = data.data_range
    torch.testing.assert_close(data.images("val")[4], (images[4] - low) / (high - low))
    flow = flowprior.load(folder / "weights")
    pixels = torch.from_numpy(data.images("val").pixels(range(40)))
    assert torch.equal(images, low + (high - low) * pixels)
    assert flow.data_range == data.data_range


def test_killed_in_a_batch_goes_on_there(folder, monkeypatch):
    monkeypatch.setattr(Checkpoint.__init__, "__defaults__", (0.0,))
    methods, step, steps = {"chains": {"solver": LANGEVIN}}, LangevinRun.step, []

    def interrupted(run):
        steps.append(run)
        if len(steps) == 4:
            raise KeyboardInterrupt
        step(run)

    monkeypatch.setattr(LangevinRun, "step", interrupted)
    assert run(folder, "killed", methods=methods) == 130
    assert run(folder, "killed", methods=methods) == 0
    assert len(steps) == 5 + 1  # the one that was interrupted is made again
    assert run(folder, "at_once", methods=methods) == 0
    assert records(folder / "killed") == records(folder / "at_once")


def test_ranks_of_a_row_are_those_that_were_measured():
    measure, cell = RankMeasure(draws=19), Cell({}, range(30), {})
    truth = torch.rand(30, 1, 4, 4, generator=torch.Generator().manual_seed(0))

    class Uniform:
        def sample(self, count, *, seed):
            return torch.rand(count, *truth.shape, generator=torch.Generator().manual_seed(seed))

    expected = calibrate(Uniform(), truth, 19)
    problem = SimpleNamespace(indices=range(30))
    estimate = SimpleNamespace(posterior=Uniform(), finite=torch.ones(30, dtype=torch.bool))
    columns = measure(estimate, problem, truth)
    rows = [{name: column[i].item() for name, column in columns.items()} for i in range(30)]
    found = measure.calibration([Result(cell, i, row, {}) for i, row in enumerate(rows)])
    assert {n: r.tolist() for n, r in found.ranks.items()} == {
        n: r.tolist() for n, r in expected.ranks.items()
    }
    assert tuple(found.levels) == (0.5, 0.9)
    torch.testing.assert_close(found.coverage.double(), expected.coverage[:, [4, 8]])
    assert png_bytes(coverage_figure({"row": found}))


def test_rows_that_have_failed_are_left_out():
    truth = torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    failed = [1, 3]

    class Failing:
        def sample(self, count, *, seed):
            x = torch.rand(count, *truth.shape, generator=torch.Generator().manual_seed(seed))
            x[:, failed] = torch.nan
            return x

    measure, problem = RankMeasure(draws=19), SimpleNamespace(indices=range(5))
    finite = torch.ones(5, dtype=torch.bool)
    finite[failed] = False
    columns = measure(SimpleNamespace(posterior=Failing(), finite=finite), problem, truth)
    for column in columns.values():
        assert column.isnan().nonzero()[:, 0].tolist() == failed
    none = SimpleNamespace(posterior=Failing(), finite=torch.zeros(5, dtype=torch.bool))
    assert all(column.isnan().all() for column in measure(none, problem, truth).values())
    # One that says it is well.
    with pytest.raises(ValueError, match="draws of rows 1, 3: not finite"):
        measure(SimpleNamespace(posterior=Failing(), finite=~none.finite), problem, truth)


def test_draws_of_a_prior_that_is_not_square():
    net = nn.Sequential(nn.Linear(6, 15), nn.Unflatten(1, (1, 3, 5)))
    data = PriorDraws(Module(net, (1, 3, 5), [6]), num_images=4)
    ((_, images),) = data.batches("test", 4)
    assert images.shape == (4, 1, 3, 5)
    assert data.image_shape == (1, 3, 5)


def test_draws_of_a_prior(folder):
    data = PriorDraws(folder / "weights", num_images=5, seed=3)
    (indices, images), (last, rest) = data.batches("test", 3)
    assert (indices, last) == ([0, 1, 2], [3, 4])
    ((_, again),) = data.batches("test", 5, [4, 1])
    assert torch.equal(again, torch.stack([rest[1], images[1]]))
    other = next(PriorDraws(folder / "weights", 5, seed=4).batches("test", 5))[1]
    assert not torch.equal(other[:3], images)
    assert not torch.equal(next(data.batches("val", 3))[1], images)
    assert data.fingerprint() != PriorDraws(folder / "weights", 5, seed=4).fingerprint()
    assert data.fingerprint() == PriorDraws(folder / "weights", 9, seed=3).fingerprint()
    many = torch.cat([x for _, x in PriorDraws(folder / "weights", 400).batches("test", 100)])
    flow = flowprior.load(folder / "weights")
    samples = flow.sample(4000, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(many.mean(), samples.mean(), atol=0.02, rtol=0)
    torch.testing.assert_close(many.std(), samples.std(), atol=0.02, rtol=0)
    assert many.min() < data.data_range[0]  # or the next test would be of nothing
    assert many.max() > data.data_range[1]
    for wrong in ({"num_images": 0}, {"seed": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            PriorDraws(folder / "weights", **wrong)
