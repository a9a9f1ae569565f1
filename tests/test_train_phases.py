"""Training in phases: frozen parameters, exact resumption across the border, mistakes."""

import signal
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

import flowprior
from flowprior.flows import Flow
from flowprior.losses import MaximumLikelihood
from flowprior.metrics import unusual_images
from tests.entry_points import SLOWLY, TINY, finish, scalars, start, train_here
from tests.test_train import CURVE, assert_same, wait_for_step, weights


class FirstLevel(MaximumLikelihood):
    """Trains the finest level alone."""

    def trains(self, flow: Flow) -> Iterable[nn.Parameter]:
        return flow.levels[0].parameters()


class Nothing(MaximumLikelihood):
    """Trains no parameter."""

    def trains(self, flow: Flow) -> Iterable[nn.Parameter]:
        return []


PHASES = """
phases:
- {name: whole, loss: {class_path: flowprior.losses.MaximumLikelihood}, epochs: 1}
- name: finest
  loss: {class_path: tests.test_train_phases.FirstLevel}
  epochs: 2
  optimizer: {class_path: torch.optim.SGD, init_args: {lr: 0.01, momentum: 0.9}}
  lr_scheduler: {class_path: flowprior.schedules.WarmupCosine, init_args: {warmup_steps: 4}}
"""
CONFIG = TINY.replace("max_epochs: 3", "callbacks: [{class_path: callbacks.EMA}]") + PHASES


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    return tmp_path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "tiny.yaml").write_text(CONFIG)
    train_here(folder)
    return folder / "runs" / "tiny"


def state(run: Path) -> dict:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def test_phases_are_one_run(whole: Path) -> None:
    assert list(scalars(whole, CURVE)) == list(range(24))
    assert list(scalars(whole, "val/nll")) == [7, 15, 23]
    rates = scalars(whole, "train/learning_rate")
    assert [rates[step] for step in range(8)] == pytest.approx([1e-3] * 8)
    assert [rates[step] for step in range(8, 12)] == pytest.approx([0.0025, 0.005, 0.0075, 0.01])
    assert rates[18] == pytest.approx(0.00505)  # in the middle of the cosine
    assert state(whole)["phase"] == "finest"
    card = flowprior.weights.read_config(whole / "weights")["card"]
    assert (card["phase"], card["step"]) == ("finest", 24)
    assert 0 <= card["training_hours"] < 0.5
    assert card["worst_round_trip"].keys() == unusual_images((1, 8, 8)).keys()


def assert_same_run(run: Path, whole: Path) -> None:
    for name in (CURVE, "train/learning_rate", "val/nll"):
        assert scalars(run, name) == pytest.approx(scalars(whole, name), abs=1e-6), name
    assert_same(run, whole, 1e-7)
    found, expected = (state(each)["loops"]["fit_loop"] for each in (run, whole))
    assert found["epoch_progress"] == expected["epoch_progress"]


def test_stops_in_both_phases_and_between_them_change_nothing(folder: Path, whole: Path) -> None:
    run = folder / "runs" / "tiny"
    for limit, phase in ((5, "whole"), (8, "whole"), (13, "finest"), (16, "finest")):
        train_here(folder, "--trainer.max_steps", str(limit))
        assert (state(run)["global_step"], state(run)["phase"]) == (limit, phase)
        if limit == 8:
            border = weights(run)
    train_here(folder)
    assert_same_run(run, whole)
    changed = {name for name, value in weights(run).items() if not value.equal(border[name])}
    assert "flow.levels.0.convolutions.log_scale" in changed
    assert {name for name in changed if not name.startswith("flow.levels.0.")} == set()


def test_kill_in_the_second_phase_changes_nothing(folder: Path, whole: Path) -> None:
    run = folder / "runs" / "tiny"
    process = start(folder, "train.py", "--config", "tiny.yaml", SLOWLY)
    wait_for_step(run, 12, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert state(run)["phase"] == "finest"
    finish(folder, "train.py", "--config", "tiny.yaml")
    assert_same_run(run, whole)


def test_two_processes_stay_equal_and_keep_what_is_frozen(folder: Path) -> None:
    digest = "{class_path: tests.entry_points.ParameterDigest}"
    config = TINY.replace("max_epochs: 3", f"precision: 64-true, callbacks: [{digest}]") + PHASES
    (folder / "tiny.yaml").write_text(config)
    train_here(folder, "--output", "one")
    arguments = ("--output", "two", "--trainer.devices", "2")
    finish(folder, "train.py", "--config", "tiny.yaml", *arguments)
    digests = [(folder / "two" / f"digests-{rank}").read_text().splitlines() for rank in (0, 1)]
    assert len(set(digests[0])) == 24
    assert digests[0] == digests[1]
    assert_same(folder / "two", folder / "one", 1e-9)
    train_here(folder, "--output", "first", "--trainer.max_steps", "8")
    for name, value in weights(folder / "first").items():
        if not name.startswith("flow.levels.0."):
            found = weights(folder / "one")[name]
            torch.testing.assert_close(found, value, rtol=0, atol=0, msg=name)


def test_last_phase_can_be_made_longer_but_not_others(
    folder: Path, capsys: pytest.CaptureFixture
) -> None:
    train_here(folder, "--trainer.max_steps", "1")
    config = yaml.safe_load(CONFIG)
    config["phases"][1]["epochs"] = 1
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config))
    train_here(folder)
    assert "finished at step 16" in capsys.readouterr().out
    config["phases"][0]["epochs"] = 2
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config))
    train_here(folder, status=2)
    assert "phases.0.epochs=1" in capsys.readouterr().err


def test_fast_dev_run_tries_every_phase(folder: Path, capsys: pytest.CaptureFixture) -> None:
    train_here(folder, "--trainer.fast_dev_run", "true")
    assert not (folder / "runs").exists()
    assert "finest: epoch 2  step 2" in capsys.readouterr().out


MISTAKES = {
    "epochs twice": (CONFIG, ["--trainer.max_epochs", "3"], "trainer.max_epochs"),
    "loss twice": (CONFIG, ["--model.loss", "flowprior.losses.Reconstruction"], "model.loss"),
    "equal names": (CONFIG.replace("finest", "whole"), [], "names"),
    "no phases": (TINY, ["--phases", "[]"], "phases"),
    "nothing to train": (CONFIG.replace("FirstLevel", "Nothing"), [], "Nothing.trains"),
    "no epochs": (CONFIG.replace("epochs: 2", "epochs: 0"), [], "phases"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_line(folder: Path, mistake: str, capsys: pytest.CaptureFixture) -> None:
    config, arguments, word = MISTAKES[mistake]
    (folder / "tiny.yaml").write_text(config)
    train_here(folder, *arguments, status=2)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "Seed set" not in line]
    assert word in line
    assert not (folder / "runs").exists()
