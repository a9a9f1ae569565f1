"""The table of sampling speeds."""

import json
from pathlib import Path

import pytest
import torch

import flowprior
from evaluation.arrays import ArrayStore
from evaluation.sampling import Sampler, SamplingSpeed
from flowprior.flows import Coupling1x1Flow, Glow
from tests.conftest import make_perturbed_glow
from tests.entry_points import finish, start

CONFIG = """
evaluation:
  class_path: evaluation.sampling.SamplingSpeed
  init_args:
    weights: weights
    batch_sizes: [1, 3]
    repeats: 4
    temperatures: [0.0, 1.0]
    samplers:
      kept: &glow
        flow:
          class_path: flowprior.flows.Glow
          init_args: {in_channels: 1, image_size: 8, levels: 2, steps: 2, hidden_channels: 4}
      computed:
        <<: *glow
        cached: false
"""


def test_table_and_figure(tmp_path: Path) -> None:
    flow = make_perturbed_glow(1, 8, dtype=torch.float32, levels=2, steps=2)
    flowprior.save(flow, tmp_path / "weights")
    (tmp_path / "speed.yaml").write_text(CONFIG)
    finish(tmp_path, "evaluate.py", "--config", "speed.yaml", "--output", "speed")
    assert "Time per image, minimum (ms)" in (tmp_path / "speed/table.md").read_text()
    rows = json.loads((tmp_path / "speed/table.json").read_text())["rows"]
    labels = [tuple(row["labels"].values()) for row in rows]
    assert labels == [(1, "kept"), (1, "computed"), (3, "kept"), (3, "computed")]
    for row in rows:
        stats = row["metrics"]
        assert stats["milliseconds"]["n"] == 4
        assert 0 < stats["milliseconds"]["minimum"] <= stats["milliseconds"]["median"] < 1e4
        expected = 1e3 * stats["seconds_per_image"]["mean"]
        assert stats["milliseconds"]["mean"] == pytest.approx(expected)
        assert stats["parameters"]["mean"] == pytest.approx(parameters_of_glow())
    assert (tmp_path / "speed/figures/temperatures.png").stat().st_size
    # Times of two runs are not mixed.
    again = ("--config", "speed.yaml", "--output", "speed", "--evaluation.repeats", "5")
    process = start(tmp_path, "evaluate.py", *again)
    assert "repeats was 4" in process.communicate(timeout=300)[0]
    assert process.returncode == 2


def parameters_of_glow() -> float:
    flow = Glow(1, 8, levels=2, steps=2, hidden_channels=4)
    return sum(parameter.numel() for parameter in flow.parameters()) / 1e6


def test_inverses_are_computed_in_every_call_where_they_are_not_cached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flowprior.flows.invertible_convolution import InvertibleConvolutions as Convolutions

    folded, original = [], Convolutions._fold
    monkeypatch.setattr(
        Convolutions, "_fold", lambda self, *args: folded.append(self) or original(self, *args)
    )
    samplers = {
        name: Sampler(Glow(1, 8, levels=2, steps=1, hidden_channels=4), cached)
        for name, cached in (("kept", True), ("computed", False))
    }
    samplers["none"] = Sampler(Coupling1x1Flow(1, 8, steps=[1, 1], hidden_channels=4))
    speed = SamplingSpeed(samplers, batch_sizes=[2], repeats=3, device="cpu")
    for cell in speed.cells():
        rows = speed.evaluate(cell, range(3), ArrayStore(tmp_path))
        assert all(row["milliseconds"] > 0 for row in rows)
    kept, computed = (samplers[name].flow.levels[0].convolutions for name in ("kept", "computed"))
    assert sum(one is kept for one in folded) == 1
    assert sum(one is computed for one in folded) == 5


@pytest.mark.parametrize(
    ("options", "name"),
    [({"samplers": {}}, "samplers"), ({"repeats": 0}, "repeats"), ({"batch_sizes": [0]}, "batch")],
)
def test_wrong_options(options, name):
    samplers = {"a": Sampler(Coupling1x1Flow(1, 4, steps=[1], hidden_channels=2))}
    with pytest.raises(ValueError, match=name):
        SamplingSpeed(**{"samplers": samplers, "device": "cpu", **options})
