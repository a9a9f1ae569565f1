"""evaluate.py on inverse problems, run as a user runs it."""

import json
import os
import shutil
import signal
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import evaluate
import flowprior
from evaluation.arrays import ArrayStore
from evaluation.experiment import Experiment
from flowprior.command_line import run_command
from flowprior.physics import gaussian_blur
from tests.conftest import make_perturbed_glow
from tests.entry_points import finish, start

FLOW = """
          - class_path: evaluation.methods.FlowInversion
            init_args:
              labels: {method: flow}
              objective: {beta: 1.0, data_scale: 255.0}
              projection_iterations: 5
          - class_path: evaluation.methods.FlowInversion
            init_args:
              labels: {method: flow + layers}
              projection_iterations: 5
              objective: {beta: 1.0, data_scale: 255.0}
              callbacks:
                - {class_path: callbacks.Gaussianization, init_args: {patch_size: 4, passes: 1}}
"""
SIMULATED = f"""
evaluation:
  class_path: evaluation.inversion.InversionEvaluation
  init_args:
    weights: weights
    data:
      class_path: datamodules.LayerModels
      init_args: {{image_size: 16, num_train: 64, num_val: 9, num_test: 50}}
    images: 5
    iterations: 8
    start: smoothed_truth
    start_deviation: 2.0
    batch_size: 2
    shown: 2
    seeds: [0, 1]
    experiments:
      - labels: {{noise: 0.005}}
        operator: crosshole_tomography
        options: {{sources: 3}}
        noise: relative
        sigma: 0.005
        methods:
          - class_path: evaluation.methods.TotalVariation
            init_args: {{labels: {{method: tv}}, weight: 10.0, data_scale: 1000.0}}{FLOW}
      - labels: {{noise: 20}}
        operator: gaussian_blur
        options: {{tau: 1.0}}
        assumed: {{tau: 1.2}}
        noise: gaussian_255
        sigma: 20
        methods:{FLOW}
    published:
      - {{labels: {{noise: 20, method: flow}}, metrics: {{best_ssim: 0.5}}}}
"""
MEASURED = f"""
evaluation:
  class_path: evaluation.inversion.InversionEvaluation
  init_args:
    weights: weights
    observations: measured.npz
    iterations: 5
    experiments:
      - labels: {{}}
        operator: gaussian_blur
        options: {{tau: 1.0}}
        methods:{FLOW}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inversion")
    flow = make_perturbed_glow(1, 16, dtype=torch.float32, levels=2, steps=2, coupling="affine")
    flowprior.save(flow, path / "weights")
    (path / "simulated.yaml").write_text(SIMULATED)
    (path / "measured.yaml").write_text(MEASURED)
    physics = gaussian_blur((1, 16, 16), tau=1.0)
    truth = torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    np.savez(path / "measured.npz", y=physics.A(truth), truth=truth)
    return path


def records(output: Path) -> dict[tuple, dict]:
    """What was measured, by cell and image, but for the times."""
    lines = (output / "records.jsonl").read_text().splitlines()[1:]
    found = {}
    for record in map(json.loads, lines):
        record["metrics"].pop("seconds_per_image")
        key = (*record["labels"].values(), record["part"], record["image"])
        assert key not in found
        found[key] = record["metrics"]
    return found


def run_here(folder: Path, *arguments: str) -> int:
    """The same as a command, in one process that has imported everything."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["evaluate.py", *arguments, "--processes", "1"])
        return run_command(evaluate.main)


@pytest.fixture(scope="module")
def whole(folder: Path) -> dict[tuple, dict]:
    assert run_here(folder, "--config", "simulated.yaml", "--output", "whole") == 0
    return records(folder / "whole")


def test_another_number_of_processes_or_batch_size_gives_the_same_bits(folder, whole):
    arguments = ("--config", "simulated.yaml", "--output", "shared", "--processes", "2")
    finish(folder, "evaluate.py", *arguments, "--evaluation.batch_size", "3")
    assert len(whole) == 5 * 5 * 2
    assert records(folder / "shared") == whole


def stopped(folder: Path, sent: signal.Signals, count: int, *arguments: str) -> tuple[str, int]:
    """Send a signal to a running evaluation with some records; its output and their number."""
    # A shell that starts the tests in the background would have SIGINT ignored.
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = start(folder, "evaluate.py", *arguments, process_group=0, preexec_fn=heed)
    path = folder / "killed" / "records.jsonl"
    while not path.exists() or len(path.read_text().splitlines()) <= count:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    process.send_signal(sent)
    output = process.communicate(timeout=60)[0]
    for _ in range(300):
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return output, len(path.read_text().splitlines()) - 1
        time.sleep(0.1)
    raise AssertionError("a process outlived the evaluation")


def test_killed_evaluation_continues_and_leaves_no_process(folder, whole):
    arguments = ("--config", "simulated.yaml", "--output", "killed", "--processes", "2")
    output, done = stopped(folder, signal.SIGINT, 3, *arguments)
    assert output.strip().splitlines()[-1] == "stopped"
    assert "Traceback" not in output
    output, done = stopped(folder, signal.SIGKILL, done + 3, *arguments)
    assert done < len(whole)
    output = finish(folder, "evaluate.py", *arguments)
    assert f"Continuing: {done} of {len(whole)}" in output
    assert records(folder / "killed") == whole


def test_table_figures_and_tensorboard(folder, whole):
    output = folder / "whole"
    rows = json.loads((output / "table.json").read_text())["rows"]
    assert [row["labels"]["method"] for row in rows[:3]] == ["tv", "flow", "flow + layers"]
    for row in rows:
        metrics = row["metrics"]
        assert metrics["ssim"]["n"] == 10
        assert metrics["best_ssim"]["mean"] >= metrics["ssim"]["mean"]
        assert ("radius" in metrics) == (row["labels"]["method"] != "tv")
    assert rows[3]["metrics"]["best_ssim"]["paper"] == 0.5
    assert rows[2]["metrics"]["radius"]["mean"] == pytest.approx(1, abs=1e-5)
    figures = {path.stem for path in (output / "figures").glob("*.png")}
    expected = {"ssim_by_iteration", "misfit_by_iteration", "recovered_1", "recovered_2"}
    assert expected | {"latents_1", "latents_2"} <= figures
    boards = [path for path in (output / "tensorboard").iterdir() if path.is_dir()]
    assert len(boards) == 5
    for board in boards:
        events = EventAccumulator(str(board), size_guidance={"scalars": 0, "images": 0}).Reload()
        assert [event.step for event in events.Scalars("inversion/ssim")] == list(range(9))
        assert {event.step for event in events.Images("inversion/images")} == {0, 1, 2, 5, 8}


def test_best_iteration_is_that_of_the_mean(folder, whole):
    rows = json.loads((folder / "whole" / "table.json").read_text())["rows"]
    means = []
    for seed in (0, 1):
        arrays = ArrayStore(folder / "whole" / "arrays")
        names = [f"noise 20, method flow seed {seed} {image}" for image in range(5)]
        curves = [arrays.load(name)["ssim"] for name in names]
        means.append(np.mean(curves, axis=0).max())
    assert rows[3]["metrics"]["best_ssim"]["mean"] == pytest.approx(np.mean(means), rel=1e-9)


def test_measured_data_are_recovered_without_knowing_the_noise(folder):
    assert run_here(folder, "--config", "measured.yaml", "--output", "measured") == 0
    rows = json.loads((folder / "measured" / "table.json").read_text())["rows"]
    assert rows[0]["metrics"]["residual_rms"]["n"] == 3
    assert "residual" not in rows[0]["metrics"]
    recovered = np.load(folder / "measured" / "recovered" / "method-flow-seed-0.npz")["x"]
    assert recovered.shape == (3, 1, 16, 16)
    assert np.isfinite(recovered).all()


def test_overflowing_image_is_excluded_and_counted(folder):
    found = dict(np.load(folder / "measured.npz"))
    y = found["y"].copy()
    y[1] = 1e30
    np.savez(folder / "overflow.npz", y=y, truth=found["truth"])
    options = ("--evaluation.observations", "overflow.npz", "--output", "overflow")
    assert run_here(folder, "--config", "measured.yaml", *options) == 0
    rows = json.loads((folder / "overflow" / "table.json").read_text())["rows"]
    for row in rows:
        for name in ("ssim", "best_ssim", "residual_rms", "radius"):
            assert (row["metrics"][name]["n"], row["metrics"][name]["excluded"]) == (2, 1)
    options = ("--evaluation.observations", "measured.npz", "--output", "sound")
    assert run_here(folder, "--config", "measured.yaml", *options) == 0
    broken, sound = records(folder / "overflow"), records(folder / "sound")
    assert all(broken[key] == sound[key] for key in sound if key[-1] != 1)
    assert (folder / "overflow" / "table.md").read_text().count("1 not finite") >= 2


def test_nothing_but_overflow_is_still_reported(folder):
    np.save(folder / "hopeless.npy", np.full((2, 1, 16, 16), 1e30))
    options = ("--evaluation.observations", "hopeless.npy", "--output", "hopeless")
    assert run_here(folder, "--config", "measured.yaml", *options) == 0
    rows = json.loads((folder / "hopeless" / "table.json").read_text())["rows"]
    assert [row["metrics"]["residual_rms"]["excluded"] for row in rows] == [2, 2]
    assert (folder / "hopeless" / "report.html").exists()


@pytest.mark.parametrize(
    ("operator", "noise", "sigma"),
    [
        ("random_inpainting", "snr", 30),
        ("cartesian_mri", "snr", 20),
        ("super_resolution", "gaussian", 0.1),
    ],
)
def test_noise_of_an_experiment_is_what_it_says(operator, noise, sigma):
    x = torch.rand(64, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    experiment = Experiment({}, operator, [], noise=noise, sigma=sigma)
    physics = experiment.physics((1, 16, 16))
    clean = physics.A(x)
    noisy = experiment.noisy(clean, physics, 0, list(range(64)))
    assert torch.equal(noisy[1:2], experiment.noisy(clean[1:2], physics, 0, [1]))
    energy = (noisy - clean).square().flatten(1).sum(1)
    expected = sigma**2 * clean[0].numel()
    if noise == "snr":
        expected = clean.square().flatten(1).sum(1) / 10 ** (sigma / 10)
    assert (energy / expected).mean() == pytest.approx(1, abs=0.1)


def measured(folder, output, *options, config=MEASURED):
    """Rows of the table of a run on measured data."""
    (folder / f"{output}.yaml").write_text(config)
    assert run_here(folder, "--config", f"{output}.yaml", "--output", output, *options) == 0
    return json.loads((folder / output / "table.json").read_text())["rows"]


@pytest.fixture(scope="module")
def plain(folder):
    return measured(folder, "plain")


def copied(folder, output):
    """The folder of a finished run to do something to."""
    shutil.copytree(folder / "plain", folder / output)
    return folder / output


def test_labels_alike_but_for_signs_are_kept_apart(folder, plain):
    alike = measured(folder, "alike", config=MEASURED.replace("flow + layers", f"flow{300 * '*'}"))
    for row, expected in zip(alike, plain, strict=True):
        for name in ("psnr", "best_psnr"):
            assert row["metrics"][name]["mean"] == expected["metrics"][name]["mean"]
    assert len(list((folder / "alike/recovered").glob("*.npz"))) == 2
    assert len(list((folder / "alike/tensorboard").glob("method-flow-*"))) == 2


def test_start_of_other_images_is_not_taken_for_this(folder):
    found = dict(np.load(folder / "measured.npz"))
    options = ("--evaluation.start", "file", "--evaluation.observations", "start.npz")
    means = []
    for value in (0.2, 0.8):
        np.savez(folder / "start.npz", **found, start=np.full((3, 1, 16, 16), value))
        means.append(measured(folder, "start", *options)[0]["metrics"]["psnr"]["mean"])
        (folder / "start/records.jsonl").unlink()
    assert means[0] != means[1]


def test_other_truth_is_not_taken_for_finished(folder, plain, capsys):
    found = dict(np.load(folder / "measured.npz"))
    np.savez(folder / "changed.npz", y=found["y"], truth=1 - found["truth"])
    copied(folder, "changed")
    options = ("--output", "changed", "--evaluation.observations", "changed.npz")
    assert run_here(folder, "--config", "measured.yaml", *options) == 2
    assert "records.jsonl" in capsys.readouterr().err


def test_missing_or_damaged_arrays_are_named(folder, plain, capsys):
    file = sorted((copied(folder, "damaged") / "arrays").glob("method-*.npz"))[0]
    content = file.read_bytes()
    for damaged in (content[:200], content[:100] + bytes(100) + content[200:], None):
        file.unlink() if damaged is None else file.write_bytes(damaged)
        capsys.readouterr()
        assert run_here(folder, "--config", "measured.yaml", "--output", "damaged") == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{file.name}, which belongs to a record, is missing or damaged" in line


def test_flow_in_double_precision(folder, plain):
    flow = make_perturbed_glow(1, 16, levels=2, steps=2, coupling="affine")
    flowprior.save(flow, folder / "double")
    double = measured(folder, "in-double", "--evaluation.weights", "double")
    for row, expected in zip(double, plain, strict=True):
        assert row["metrics"]["psnr"]["mean"] == pytest.approx(
            expected["metrics"]["psnr"]["mean"],
            abs=0.5,  # it starts from other latents
        )


MISTAKES = {
    "damaged": (["--evaluation.observations", "cut.npz"], "cut.npz is no .npy or .npz file"),
    "bytes": (["--evaluation.observations", "bytes.npz"], "truth must be in [0, 1], got 0 to 255"),
    "too large": (["--evaluation.observations", "large.npz"], "in single precision"),
    "missing file": (["--evaluation.observations", "none.npz"], "no file of observations none.npz"),
    "no numbers": (["--evaluation.observations", "measured.yaml"], "no .npy or .npz file"),
    "NaN": (["--evaluation.observations", "nan.npz"], r"rows [1] have NaN"),
    "shape": (["--evaluation.observations", "small.npz"], "y must have shape (B, 1, 16, 16)"),
    "unknown array": (["--evaluation.observations", "other.npz"], "expected y"),
    "weights": (["--evaluation.weights", "nowhere"], "no exported flow in nowhere"),
    "start": (["--evaluation.start", "file"], "needs observations with a start"),
    "iterations": (["--evaluation.iterations", "0"], "iterations must be at least 1"),
    "data too": (["--evaluation.data", "datamodules.LayerModels"], "not both"),
}


WRONG_CONFIGS = {
    "negative weight": ("beta: 1.0", "beta: -1.0", "objective.beta must be finite and at least 0"),
    "operator": ("operator: gaussian_blur", "operator: gauss", "operator must be one of denoising"),
    "option": ("{tau: 1.0}", "{tua: 1.0}", "its options are tau"),
    "kind": ("{tau: 1.0}", "{tau: big}", "gaussian_blur does not take tau='big'"),
    "fraction": (
        "operator: gaussian_blur\n        options: {tau: 1.0}",
        "operator: super_resolution\n        options: {factor: 2.5}",
        "factor=2.5",
    ),
    "shapes": (
        "operator: gaussian_blur\n        options: {tau: 1.0}",
        "operator: colourisation",
        "colourisation",
    ),
    "layers": ("passes: 1}", "passes: 0}", "passes must be at least 1"),
    "method": ("FlowInversion", "FlowInvasion", "FlowInvasion"),
    "simulation": ("{tau: 1.0}", "{tau: 1.0}\n        sigma: 1.0", "for simulated data"),
}


@pytest.mark.parametrize("name", WRONG_CONFIGS)
def test_mistake_in_a_config_is_one_line(folder, capsys, name):
    old, new, message = WRONG_CONFIGS[name]
    assert old in MEASURED
    (folder / "wrong.yaml").write_text(MEASURED.replace(old, new))
    output = f"wrong-{name.replace(' ', '-')}"
    assert run_here(folder, "--config", "wrong.yaml", "--output", output) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert len(line) < 500


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_is_one_line(folder, capsys, name):
    y = np.zeros((2, 1, 16, 16))
    y[1, 0, 0, 0] = np.nan
    np.savez(folder / "nan.npz", y=y)
    np.savez(folder / "small.npz", y=np.zeros((2, 1, 8, 8)))
    np.savez(folder / "other.npz", z=np.zeros((2, 1, 8, 8)))
    np.savez(folder / "large.npz", y=np.full((2, 1, 16, 16), 1e300))
    truth = np.zeros((2, 1, 16, 16), np.uint8)
    truth[0] = 255
    np.savez(folder / "bytes.npz", y=np.zeros((2, 1, 16, 16)), truth=truth)
    (folder / "cut.npz").write_bytes((folder / "small.npz").read_bytes()[:700])
    options, message = MISTAKES[name]
    output = f"mistake-{name.replace(' ', '-')}"
    assert run_here(folder, "--config", "measured.yaml", *options, "--output", output) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert len(line) < 500
