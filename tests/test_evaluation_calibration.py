"""Tables that say whether posteriors are right."""

import json

import pytest
import torch
import yaml

import flowprior
from datamodules import PriorDraws
from tests.conftest import make_perturbed_glow
from tests.inversion_tables import BLUR, noise, records, rows_of, run_here, solver

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
    "weights": "weights",
    "images": 10,
    "draws": 9,
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


def run(folder, name, **changes):
    evaluation = {
        "class_path": "evaluation.calibration.CalibrationEvaluation",
        "init_args": {**SETTINGS, **changes},
    }
    text = yaml.safe_dump({"evaluation": evaluation}, sort_keys=False)
    (folder / f"{name}.yaml").write_text(text)
    return run_here(folder, "--config", f"{name}.yaml", "--output", name)


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
        ({"draws": 3}, "draws must be an integer of at least 9"),
        ({"weights": "nowhere"}, "weights"),
        ({"methods": {"map": {"solver": solver("MAP")}}}, "there is no posterior"),
    ):
        capsys.readouterr()
        assert run(folder, "wrong", **changes) != 0
        assert words in capsys.readouterr().err


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
    many = torch.cat([x for _, x in PriorDraws(folder / "weights", 400).batches("test", 100)])
    flow = flowprior.load(folder / "weights")
    samples = flow.sample(4000, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(many.mean(), samples.mean(), atol=0.02, rtol=0)
    torch.testing.assert_close(many.std(), samples.std(), atol=0.02, rtol=0)
    for wrong in ({"num_images": 0}, {"seed": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            PriorDraws(folder / "weights", **wrong)
