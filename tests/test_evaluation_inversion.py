"""evaluate.py on inverse problems, run as a user runs it."""

import math
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import evaluate
import flowprior
from datamodules import LayerModels
from evaluation.arrays import ArrayStore
from evaluation.base import Cell, Result, labels_text
from evaluation.baselines import Data
from evaluation.experiment import Experiment, Method
from evaluation.inversion import InversionCell, InversionEvaluation
from evaluation.inversion_arrays import kept_of_batch
from evaluation.inversion_figures import write_boards
from evaluation.table import Table
from evaluation.tuning import grid
from flowprior.inversion import (
    BatchedLBFGS,
    Checkpoint,
    Recording,
    make_problem,
    smoothed,
    solve,
)
from flowprior.posterior import Variational
from tests.conftest import make_perturbed_glow
from tests.entry_points import ROOT, finish, start, with_weights
from tests.inversion_problems import LinearGaussian, images_of
from tests.inversion_tables import (
    BLUR,
    DATA,
    MEASURED,
    SIGMA_255,
    SIMULATED,
    flows,
    make_folder,
    noise,
    records,
    refused,
    rows_of,
    run_here,
    solver,
    table,
    write_config,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = make_folder(tmp_path_factory.mktemp("inversion"))
    write_config(path / "simulated.yaml", SIMULATED)
    return path


class Steps:
    """Counts iterations, and interrupts at one of them if it is told to."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.count, self.interrupt = 0, lambda count: False
        step = BatchedLBFGS.step

        def counted(optimizer: BatchedLBFGS, closure: Callable) -> None:
            self.count += 1
            if self.interrupt(self.count):
                raise KeyboardInterrupt
            return step(optimizer, closure)

        patch.setattr(BatchedLBFGS, "step", counted)


@pytest.fixture(scope="module")
def whole_and_steps(folder: Path) -> tuple[dict[tuple, dict], int]:
    with pytest.MonkeyPatch.context() as patch:
        steps = Steps(patch)
        assert run_here(folder, "--config", "simulated.yaml", "--output", "whole") == 0
    return records(folder / "whole"), steps.count


@pytest.fixture(scope="module")
def whole(whole_and_steps):
    return whole_and_steps[0]


ROWS = ["tv", "flow", "flow + layers", "data", "flow", "flow + layers"]


def test_two_processes_give_the_same_bits(folder, whole):
    arguments = ("--config", "simulated.yaml", "--output", "shared", "--processes", "2")
    finish(folder, "evaluate.py", *arguments, "--evaluation.batch_size", "3")
    assert len(whole) == len(ROWS) * 5 * 2
    assert records(folder / "shared") == whole


@pytest.mark.parametrize("size", [1, 5])
def test_another_batch_size_gives_the_same_bits(folder, whole, size):
    options = ("--config", "simulated.yaml", "--output", f"by-{size}")
    assert run_here(folder, *options, "--evaluation.batch_size", str(size)) == 0
    assert records(folder / f"by-{size}") == whole


def stopped(folder: Path, sent: signal.Signals, count: int, *arguments: str) -> tuple[str, int]:
    """Send a signal to a running evaluation with some records; its output and their number."""
    # A shell that starts the tests in the background would have SIGINT ignored.
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = start(folder, "evaluate.py", *arguments, process_group=0, preexec_fn=heed)
    path = folder / "killed" / "records.jsonl"
    while not path.exists() or path.read_text().count('"image"') <= count:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    process.send_signal(sent)
    output = process.communicate(timeout=60)[0]
    for _ in range(300):
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return output, path.read_text().count('"image"')
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


def test_killed_in_the_middle_of_a_batch_goes_on_there(folder, whole_and_steps, monkeypatch):
    monkeypatch.setattr(Checkpoint.__init__, "__defaults__", (0.0,))
    whole, total = whole_and_steps
    underway = folder / "middle" / "underway"
    steps = Steps(monkeypatch)
    # In the middle of a batch of a flow, after the latents of its start were found.
    steps.interrupt = lambda count: count > 0.4 * total and any(underway.glob("*.ckpt"))
    arguments = ("--config", "simulated.yaml", "--output", "middle")
    assert run_here(folder, *arguments) == 130
    assert len(list(underway.iterdir())) == 1
    steps.interrupt = lambda count: False
    assert run_here(folder, *arguments) == 0
    # Made twice: the one that was interrupted, and those that find the latents of the start.
    assert steps.count == total + 1 + 3
    assert records(folder / "middle") == whole
    assert list(underway.iterdir()) == []


def test_table_figures_and_tensorboard(folder, whole):
    output = folder / "whole"
    rows = rows_of(output)
    assert [row["labels"]["method"] for row in rows] == ROWS
    for row in rows:
        metrics, method = row["metrics"], row["labels"]["method"]
        assert metrics["ssim"]["n"] == 5
        assert metrics["best_ssim"]["mean"] >= metrics["ssim"]["mean"]
        assert ("radius" in metrics) == method.startswith("flow")
    assert rows[4]["metrics"]["best_ssim"]["paper"] == 0.5
    assert rows[2]["metrics"]["radius"]["mean"] == pytest.approx(1, abs=1e-5)
    figures = {path.stem for path in (output / "figures").glob("*.png")}
    expected = {"ssim_by_iteration", "misfit_by_iteration", "recovered_1", "recovered_2"}
    assert expected | {"latents_1", "latents_2"} <= figures
    boards = [path for path in (output / "tensorboard").iterdir() if path.is_dir()]
    assert len(boards) == 5  # none for the data, which do not move
    for board in boards:
        events = EventAccumulator(str(board), size_guidance={"scalars": 0, "images": 0}).Reload()
        assert [event.step for event in events.Scalars("inversion/ssim")] == list(range(6))
        assert {event.step for event in events.Images("inversion/images")} == {0, 1, 2, 5}


@pytest.mark.parametrize(
    "names",
    [
        ("objective", "misfit", "log_prior", "entropy"),
        ("misfit", "log_prior", "acceptance", "step_size"),
    ],
)
def test_tensorboard_has_the_curves_of_posteriors(tmp_path, names):
    arrays = {name: np.arange(3.0) for name in names}
    arrays |= {"finite": np.array(True), "milestones": np.arange(3)}
    cell = Cell({"method": "m"}, range(2), {})
    write_boards([Result(cell, image, {}, arrays) for image in range(2)], tmp_path, 2)
    (board,) = tmp_path.iterdir()
    events = EventAccumulator(str(board), size_guidance={"scalars": 0}).Reload()
    for name in names:
        assert [event.value for event in events.Scalars(f"inversion/{name}")] == [0, 1, 2]


def comparison(folder: Path, scores: tuple[float, ...], **kept: np.ndarray) -> tuple:
    """The picture of two images by two methods, of which this is kept, and its caption."""
    evaluation = InversionEvaluation({"glow": folder / "weights"}, {}, [], LayerModels(16))
    experiment = Experiment({"noise": 1}, "denoising")
    image = np.full((1, 4, 4), 0.5)
    results = []
    for name in ("a", "b"):
        labels = {"noise": 1, "method": name}
        parts = {"experiment": experiment, "method": Method(Data()), "prior": "glow", "seed": 0}
        cell = InversionCell(labels, range(2), {"start": "smoothed_truth"}, **parts)
        arrays = {"x": image, "x_0": image, "finite": True, **kept}
        overshoot = max(-arrays["x"].min(), arrays["x"].max() - 1, 0)
        named = [{"psnr": score, "start_psnr": score - 1} for score in scores] or [{}, {}]
        metrics = [{**one, "overshoot": overshoot} for one in named]
        results += [Result(cell, i, metrics[i], arrays) for i in range(2)]
    figure, caption = evaluation.figures(Table([], []), results)["recovered"]
    return [axes.get_title().split() for axes in figure.axes], caption


def test_every_recovered_image_has_its_score(folder):
    titles, caption = comparison(folder, (10.0, 11.0), truth=np.full((1, 4, 4), 0.5))
    assert titles[:3] == [["truth"], ["a", "10.0", "dB"], ["b", "10.0", "dB"]]
    assert titles[3:6] == [[], ["11.0", "dB"], ["11.0", "dB"]]
    assert "PSNR" in caption


def test_a_start_has_its_score_and_an_image_far_beyond_its_range_says_so(folder):
    image = np.full((1, 4, 4), 0.5)
    titles, caption = comparison(folder, (10.0, 11.0), truth=image, start=image)
    assert titles[1:3] == [["start:", "smoothed", "truth", "9.0", "dB"], ["a", "10.0", "dB"]]
    assert "far beyond" not in caption
    image = np.linspace(-0.5, 1.2, 16).reshape(1, 4, 4)
    titles, caption = comparison(folder, (10.0, 11.0), truth=np.full((1, 4, 4), 0.5), x=image)
    assert titles[:2] == [["truth"], ["a", "10.0", "dB", "−0.5", "to", "1.2"]]
    assert "the range of those far beyond [0, 1]" in caption


def test_images_far_beyond_their_range_are_told_below_the_table(folder):
    methods = {
        "loose": {"solver": solver(beta=0.0)},
        "held": {"solver": solver("TotalVariation", weight=20.0)},
    }
    blurred = {**BLUR, "labels": {}, "noise": noise(0.4)}
    settings = {**SIMULATED, "published": [], "seeds": [0], "methods": methods, "iterations": 30}
    settings |= {"experiments": [blurred], "start": "constant", "images": 2}
    rows = table(folder, "loose", settings)
    data, loose, held = (row["metrics"]["overshoot"]["mean"] for row in rows)
    assert data > 0.3
    assert loose > 0.3 > held
    (note,) = [
        line
        for line in (folder / "loose/table.md").read_text().splitlines()
        if "far beyond" in line
    ]
    assert "loose (2 of 2, by up to" in note
    assert "held" not in note
    assert "data (" not in note


def test_measured_data_are_pictured_if_they_are_images(folder):
    titles, caption = comparison(folder, (), y=np.full((1, 4, 4), 0.7))
    assert titles[:3] == [["data"], ["a"], ["b"]]
    assert "PSNR" not in caption
    for y in (np.full((8, 3), 0.7), np.full((1, 4, 4), 0.7j)):
        assert comparison(folder, (), y=y)[0][:2] == [["a"], ["b"]]


def test_a_start_of_its_own_is_pictured_beside_data_and_truth(folder):
    image = np.full((1, 4, 4), 0.5)
    titles, _ = comparison(folder, (), truth=image, start=image)
    assert titles[:4] == [["truth"], ["start:", "smoothed", "truth"], ["a"], ["b"]]


def test_deviations_of_posteriors_are_pictured_beside_their_means(folder):
    image = np.full((1, 4, 4), 0.5)
    titles, caption = comparison(folder, (), truth=image, deviation=0.2 * image)
    assert titles[:3] == [["truth"], ["a"], ["a", "deviation", "mean", "0.1"]]
    assert titles[7] == ["mean", "0.1"]
    assert "Standard deviations are of 32 draws" in caption


def test_deviations_are_kept_of_images_to_be_shown():
    prior, settings = LinearGaussian(), {"iterations": 5, "start": "random"}
    truth = images_of(prior, 3)
    found = {}
    for rows in ([0, 1, 2], [1]):
        options = {"sigma": 0.1, "indices": rows}
        problem = make_problem(prior, lambda x: x, truth[rows], **options)
        recording = Recording(truth[rows], 2, last=5)
        estimate = solve(Variational(descent_iterations=0), problem, 5, [recording])
        cell = Cell({}, rows, settings)
        kept = kept_of_batch(cell, rows, problem, estimate, recording, 2, every=False)
        found |= {
            (len(rows), row): one.get("deviation") for row, one in zip(rows, kept, strict=True)
        }
    assert found[3, 2] is None
    torch.testing.assert_close(found[3, 1], found[1, 1])
    draws = estimate.posterior.sample(400, seed=1)[:, 0]
    torch.testing.assert_close(found[1, 1].double(), draws.std(0), rtol=0.6, atol=0)


class Spoiled:
    """Draws of a posterior, changed."""

    def __init__(self, posterior, change):
        self.posterior, self.change = posterior, change

    def sample(self, count, *, seed):
        return self.change(self.posterior.sample(count, seed=seed))


def without_numbers(draws):
    draws[3, 1] = torch.nan
    return draws


def test_draws_that_are_no_draws_are_named_unless_the_row_has_failed():
    prior, truth = LinearGaussian(), images_of(LinearGaussian(), 3)
    problem = make_problem(prior, lambda x: x, truth, sigma=0.1)
    recording = Recording(truth, 3, last=0)
    estimate = solve(Variational(descent_iterations=0), problem, 0, [recording])
    cell = Cell({}, [0, 1, 2], {"iterations": 0, "start": "random"})

    def kept(change, finite):
        spoiled = Spoiled(estimate.posterior, change)
        found = replace(estimate, posterior=spoiled, finite=torch.tensor(finite))
        return kept_of_batch(cell, [0, 1, 2], problem, found, recording, 3, every=False)

    with pytest.raises(ValueError, match=r"must give 8 draws of images, got \(3, 8, "):
        kept(lambda draws: draws.transpose(0, 1), [True] * 3)
    with pytest.raises(ValueError, match="draws of row 1 are not finite"):
        kept(without_numbers, [True] * 3)
    rows = kept(without_numbers, [True, False, True])
    assert [bool(row["deviation"].isfinite().all()) for row in rows] == [True, False, True]


def test_start_is_kept_of_methods_that_begin_there(folder, whole):
    kept = {}
    for line in (folder / "whole" / "records.jsonl").read_text().splitlines():
        if '"noise": 20,' in line and '"repeat": 0' in line:
            cell, method = line.split('"')[3], line.split('"method": "')[1].split('"')[0]
            kept[method] = ArrayStore(folder / "whole" / "arrays").load(cell, 0)
    assert {method: "start" in arrays for method, arrays in kept.items()} == {
        "data": False,
        "flow": True,
        "flow + layers": True,
    }
    expected = smoothed(torch.from_numpy(kept["flow"]["truth"])[None], 2.0)[0]
    np.testing.assert_allclose(kept["flow"]["start"], expected, atol=1e-6)


def test_best_iteration_is_that_of_the_mean(folder, whole):
    row = rows_of(folder / "whole")[4]
    assert row["labels"] == {"noise": 20, "method": "flow"}
    lines = (folder / "whole" / "records.jsonl").read_text().splitlines()
    cells = [line.split('"')[3] for line in lines if '"noise": 20, "method": "flow"}' in line]
    arrays, means = ArrayStore(folder / "whole" / "arrays"), []
    for cell in cells:  # one for each seed
        curves = [arrays.load(cell, image)["ssim"] for image in range(5)]
        means.append(np.mean(curves, axis=0).max())
    assert len(means) == 2
    assert row["metrics"]["best_ssim"]["mean"] == pytest.approx(np.mean(means), rel=1e-9)


def test_data_row_is_the_data(folder, whole):
    output = folder / "whole"
    lines = (output / "records.jsonl").read_text().splitlines()
    cell = next(x.split('"')[3] for x in lines if '"noise": 20, "method": "data"}' in x)
    seen = ArrayStore(output / "arrays").load(cell, 0)
    assert np.array_equal(seen["x"], seen["y"])
    error = np.square(seen["x"].clip(0, 1) - seen["truth"]).mean()
    assert whole[20, "data", 0, 0]["psnr"] == pytest.approx(-10 * np.log10(error), abs=1e-4)


def test_a_row_for_each_prior_where_one_is_needed(folder):
    flow = make_perturbed_glow(1, 16, dtype=torch.float32, seed=1, levels=2, steps=2)
    flowprior.save(flow, folder / "others")
    methods = {name: SIMULATED["methods"][name] for name in ("tv", "flow")}
    settings = {
        "data": DATA,
        "methods": {**methods, "picky": {**methods["flow"], "priors": ["second"]}},
        "experiments": [{**BLUR, "noise": noise(0.1)}],
        "priors": {"first": "weights", "second": "others"},
        "images": 2,
        "iterations": 2,
    }
    rows = table(folder, "priors", {**settings, "start": "random"})
    labels = [(row["labels"]["method"], row["labels"].get("prior")) for row in rows]
    of_flows = [("flow", "first"), ("flow", "second"), ("picky", "second")]
    assert labels == [("data", None), ("tv", None), *of_flows]
    starts = [row["metrics"]["start_psnr"]["mean"] for row in rows[1:]]
    assert len(set(starts)) == 3
    assert starts[-1] == starts[-2]


def test_data_are_made_on_a_finer_grid(folder):
    settings = {
        **SIMULATED,
        "experiments": SIMULATED["experiments"][:1],
        "methods": {"tv": SIMULATED["methods"]["tv"]},
        "images": 2,
        "iterations": 1,
    }
    y = {}
    for refine in (None, 4, 1):
        options = {} if refine is None else {"data_options": {"refine": refine}}
        experiment = {**settings["experiments"][0], **options}
        rows = table(folder, f"refine-{refine}", {**settings, "experiments": [experiment]})
        y[refine] = rows[0]["metrics"]["residual"]["mean"]
    assert y[None] == y[4] != y[1]


def test_measured_data_are_recovered_without_knowing_the_noise(folder):
    rows = table(folder, "measured", MEASURED)
    assert [row["labels"]["method"] for row in rows] == ["data", "flow", "flow + layers"]
    assert rows[1]["metrics"]["residual_rms"]["n"] == 3
    assert "residual" not in rows[1]["metrics"]
    recovered = np.load(folder / "measured" / "recovered" / "method-flow.npz")["x"]
    assert recovered.shape == (3, 1, 16, 16)
    assert np.isfinite(recovered).all()


def test_measured_data_without_a_truth_have_no_similarity(folder):
    np.save(folder / "unknown.npy", np.load(folder / "measured.npz")["y"])
    known = {**BLUR, "noise": noise(0.01)}
    settings = {**MEASURED, "observations": "unknown.npy", "experiments": [known]}
    rows = table(folder, "unknown", settings)
    assert [row["labels"]["method"] for row in rows] == ["flow", "flow + layers"]
    for row in rows:
        assert "residual" in row["metrics"]
        assert not {"psnr", "ssim", "lpips", "best_ssim", "best_lpips"} & row["metrics"].keys()
    text = (folder / "unknown" / "table.md").read_text()
    assert "SSIM" not in text
    assert "LPIPS" not in text


def test_overflowing_image_is_excluded_and_counted(folder, plain):
    found = dict(np.load(folder / "measured.npz"))
    found["y"][1] = 1e30
    np.savez(folder / "overflow.npz", **found)
    rows = table(folder, "overflow", {**MEASURED, "observations": "overflow.npz"})
    for row in rows[1:]:
        for name in ("ssim", "best_ssim", "residual_rms", "radius"):
            assert (row["metrics"][name]["n"], row["metrics"][name]["n_excluded"]) == (2, 1)
    broken, sound = records(folder / "overflow"), records(folder / "plain")
    assert all(broken[key] == sound[key] for key in sound if key[-1] != 1)
    assert (folder / "overflow" / "table.md").read_text().count("1 excluded") >= 2


def test_nothing_but_overflow_is_still_reported(folder):
    np.save(folder / "hopeless.npy", np.full((2, 1, 16, 16), 1e30))
    rows = table(folder, "hopeless", {**MEASURED, "observations": "hopeless.npy"})
    assert [row["metrics"]["residual_rms"]["n_excluded"] for row in rows] == [2, 2]
    assert (folder / "hopeless" / "report.html").exists()


@pytest.fixture(scope="module")
def plain(folder):
    return table(folder, "plain", MEASURED)


def test_labels_alike_but_for_signs_are_kept_apart(folder, plain):
    flow, with_layers = flows().values()
    names = ("flow +", f"flow{300 * '*'}")
    settings = {**MEASURED, "methods": dict(zip(names, (flow, with_layers), strict=True))}
    for row, expected in zip(table(folder, "alike", settings), plain, strict=True):
        for name in ("psnr", "best_psnr"):
            assert row["metrics"][name]["mean"] == expected["metrics"][name]["mean"]
    assert len(list((folder / "alike/recovered").glob("method-flow*.npz"))) == 2
    assert len(list((folder / "alike/tensorboard").glob("method-flow*"))) == 2


def test_start_of_other_images_is_not_taken_for_this(folder):
    found = dict(np.load(folder / "measured.npz"))
    settings = {**MEASURED, "start": "file", "observations": "start.npz"}
    means = []
    for value in (0.2, 0.8):
        np.savez(folder / "start.npz", **found, start=np.full((3, 1, 16, 16), value))
        means.append(table(folder, "start", settings)[1]["metrics"]["psnr"]["mean"])
        (folder / "start/records.jsonl").unlink()
    assert means[0] != means[1]


def changed(folder: Path, name: str, capsys, settings: dict) -> str:
    """The one line of a run into a copy of a finished one that has other settings."""
    shutil.copytree(folder / "plain", folder / name)
    write_config(folder / f"{name}.yaml", settings)
    before = (folder / name / "records.jsonl").read_bytes()
    capsys.readouterr()
    assert run_here(folder, "--config", f"{name}.yaml", "--output", name) == 2
    assert (folder / name / "records.jsonl").read_bytes() == before
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_other_truth_is_not_taken_for_finished(folder, plain, capsys):
    found = dict(np.load(folder / "measured.npz"))
    np.savez(folder / "changed.npz", y=found["y"], truth=1 - found["truth"])
    settings = {**MEASURED, "observations": "changed.npz"}
    assert "data" in changed(folder, "other-truth", capsys, settings)


def test_other_weights_are_not_taken_for_finished(folder, plain, capsys):
    flow = make_perturbed_glow(1, 16, dtype=torch.float32, seed=2, levels=2, steps=2)
    flowprior.save(flow, folder / "replaced")
    settings = {**MEASURED, "priors": {"glow": "replaced"}}
    assert "model.safetensors" in changed(folder, "other-weights", capsys, settings)


def test_other_settings_beside_the_weights_are_not_taken_for_finished(folder, plain, capsys):
    shutil.copytree(folder / "weights", folder / "wider")
    config = folder / "wider" / "config.json"
    text = config.read_text()
    assert "-0.5" in text
    config.write_text(text.replace("-0.5", "-0.6"))
    settings = {**MEASURED, "priors": {"glow": "wider"}}
    assert "config.json" in changed(folder, "other-range", capsys, settings)


def test_other_option_is_not_taken_for_finished(folder, plain, capsys):
    settings = {**MEASURED, "methods": flows(beta=2.0)}
    line = changed(folder, "other-beta", capsys, settings)
    assert "beta" in line
    assert "in 1 other" in line


def test_further_method_is_measured_alone(folder, plain, monkeypatch):
    shutil.copytree(folder / "plain", folder / "further")
    measured, evaluate = [], InversionEvaluation.evaluate

    def noted(self, cell, images, arrays):
        measured.append(cell.labels["method"])
        return evaluate(self, cell, images, arrays)

    monkeypatch.setattr(InversionEvaluation, "evaluate", noted)
    tv = {"solver": solver("TotalVariation", weight=1.0, misfit=SIGMA_255)}
    rows = table(folder, "further", {**MEASURED, "methods": {"tv": tv, **flows()}})
    assert measured == ["tv"]
    assert rows[2:] == plain[1:]


def test_missing_or_damaged_arrays_are_named(folder, plain, capsys):
    shutil.copytree(folder / "plain", folder / "damaged")
    file = sorted((folder / "damaged" / "arrays").glob("*/0.npz"))[0]
    content = file.read_bytes()
    for damaged in (content[:200], content[:100] + bytes(100) + content[200:], None):
        file.unlink() if damaged is None else file.write_bytes(damaged)
        capsys.readouterr()
        assert run_here(folder, "--config", "plain.yaml", "--output", "damaged") == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{file.parent.name}/0.npz, which belongs to a record" in line


def test_wrong_belief_about_the_noise_changes_the_methods_and_not_the_data(folder):
    tv = {"tv": {"solver": solver("TotalVariation", weight=3.0)}}
    own = {"tv": {"solver": solver("TotalVariation", weight=3.0, misfit=noise(0.4))}}
    right = {**BLUR, "noise": noise(0.1)}
    wrong = {**right, "assumed_noise": noise(0.4)}
    rows = {
        name: table(
            folder, f"belief {name}", {**SIMULATED, "methods": methods, "experiments": [experiment]}
        )
        for name, methods, experiment in (
            ("right", tv, right),
            ("wrong", tv, wrong),
            ("own misfit", own, right),
        )
    }
    data = [found[0]["metrics"]["psnr"] for found in rows.values()]
    assert data[0] == data[1] == data[2]
    recovered = {name: found[1]["metrics"]["psnr"]["mean"] for name, found in rows.items()}
    assert recovered["wrong"] == recovered["own misfit"] != recovered["right"]


def test_flow_in_double_precision(folder, plain):
    flow = make_perturbed_glow(1, 16, levels=2, steps=2, coupling="affine")
    flowprior.save(flow, folder / "double")
    double = table(folder, "in-double", {**MEASURED, "priors": {"glow": "double"}})
    for row, expected in zip(double[1:], plain[1:], strict=True):
        # It starts from other latents.
        psnr = expected["metrics"]["psnr"]["mean"]
        assert row["metrics"]["psnr"]["mean"] == pytest.approx(psnr, abs=0.5)


def configured(name: str) -> InversionEvaluation:
    """The evaluation of a config, with the weights that come with flowprior."""
    path = ROOT / "configs" / "evaluate" / f"{name}.yaml"
    options = with_weights(path, ROOT / "weights" / "glow_layers_32")
    parser = evaluate.make_parser()
    return parser.instantiate(parser.parse_args(["--config", name, *options])).evaluation


CONFIGS = sorted((ROOT / "configs" / "evaluate").glob("*.yaml"))
INVERSIONS = [path.stem for path in CONFIGS if "InversionEvaluation" in path.read_text()]


@pytest.mark.parametrize("name", INVERSIONS)
def test_config_compares_rivals_fairly(name):
    evaluation = configured(name)
    for experiment in evaluation.experiments:
        assert_tuned_fairly([evaluation.methods[name] for name in experiment.methods])
    labels = [
        evaluation.labels(experiment, prior, name)
        for experiment in evaluation.experiments
        for prior, name in evaluation.rows(experiment)
    ]
    assert len({labels_text(row) for row in labels}) == len(labels)
    for published in evaluation.published:
        assert any(published.matches(row) for row in labels)


def assert_tuned_fairly(methods):
    """All that use a flow have the same number of trials, and no rival has fewer."""
    tuned = [method for method in methods if method.tune]
    own = {len(grid(method)) for method in tuned if method.solver.needs}
    rivals = [len(grid(method)) for method in tuned if not method.solver.needs]
    assert len(own) <= 1
    assert min(rivals, default=math.inf) >= max(own, default=0)


def test_tables_of_the_paper_have_all_their_rows():
    evaluation = configured("tomography_layers")
    evaluation.check()
    labels = [dict(cell.labels) for cell in evaluation.cells()]
    assert len(labels) == 3 * (2 * 3 + 5)  # fixed β, chosen β
    for noise_level in (0.0025, 0.005, 0.01):
        for beta in (1e-5, 1e-3, 1e-1):
            row = {"noise": noise_level, "β": beta, "method": "flow + layers"}
            assert row in labels
            assert evaluation.paper(row, "best_ssim") is not None
    tuned_alike = {"tomography_layers": 5, "deblur_layers": 5, "study_layers": 6}
    for name, count in tuned_alike.items():
        tuned = [m for m in configured(name).methods.values() if m.tune]
        assert len(tuned) == count
        assert_tuned_fairly(tuned)
    ablation = configured("ablation_layers")
    layers = ablation.methods["paper: without ICA"].solver.reparameterization
    assert (layers.whiten, layers.rotation) == (False, "none")
    assert layers.yeo_johnson
    assert layers.lambert_w


START = """
from dataclasses import dataclass
from flowprior.inversion import ImageRun, Solver

@dataclass(frozen=True)
class Start(Solver):
    def begin(self, problem):
        return ImageRun(problem)
"""
SNR = {"class_path": "flowprior.physics.SNR", "init_args": {"db": 20.0}}


@pytest.mark.parametrize(
    ("operator", "added"),
    [("random_inpainting", SNR), ("cartesian_mri", SNR), ("super_resolution", noise(0.1))],
)
def test_noise_of_an_experiment_is_what_it_says(folder, operator, added):
    experiment = {"labels": {}, "operator": operator, "noise": added}
    settings = {
        "priors": {"glow": "weights"},
        "data": DATA,
        "images": 32,
        "experiments": [experiment],
        "methods": {"truth": {"solver": {"class_path": "my_start.Start"}, "iterations": 0}},
        "start": "smoothed_truth",
    }
    options = ("--evaluation.start_deviation", "1e-3")
    (folder / "my_start.py").write_text(START)
    rows = table(folder, operator, settings, *options, imports=["my_start"])
    assert rows[-1]["metrics"]["residual"]["mean"] == pytest.approx(1, rel=0.05)


def test_start_from_the_data(folder, capsys):
    settings = {
        "priors": {"glow": "weights"},
        "data": DATA,
        "methods": {"tv": SIMULATED["methods"]["tv"]},
        "experiments": [{**BLUR, "noise": noise(0.1)}],
        "images": 2,
        "iterations": 1,
        "start": "data",
    }
    data, method = table(folder, "from-data", settings)
    # Total variation starts within [0.01, 0.99].
    start, of_data = method["metrics"]["start_psnr"]["mean"], data["metrics"]["psnr"]["mean"]
    assert start == pytest.approx(of_data, abs=0.2)
    tomography = {"labels": {}, "operator": "crosshole_tomography", "noise": noise(0.001)}
    wrong = {**settings, "experiments": [tomography]}
    assert "start=data" in refused(folder, wrong, capsys)


def test_prior_that_cannot_be_sent_to_another_process(folder, capsys):
    (folder / "my_local.py").write_text(LOCAL)
    settings = {**SIMULATED, "priors": {"local": {"class_path": "my_local.prior"}}, "images": 2}
    settings |= {"methods": {"flow": SIMULATED["methods"]["tv"]}, "start": "constant"}
    settings["experiments"] = [{**BLUR, "noise": noise(0.1)}]
    write_config(folder / "local.yaml", settings, imports=["my_local"])
    process = start(folder, "evaluate.py", "--config", "local.yaml", "--processes", "2")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "--processes 1" in output
    assert "Traceback" not in output


LOCAL = """
from torch import nn
from flowprior.priors import Module, Prior

def prior() -> Prior:
    class Local(nn.Module):
        def forward(self, z):
            return z
    return Module(Local(), (1, 16, 16), [1, 16, 16]).eval().requires_grad_(False)
"""


def test_start_that_rises_with_depth():
    source = configured("fwi_layers_demo").source
    start = source.start("depth", [0, 1], torch.zeros(2, 4, 16, 53), (1, 32, 32), 5.0)
    assert start.shape == (2, 1, 32, 32)
    assert (start[:, :, 0] == 0.25).all()
    assert (start[:, :, -1] == 0.75).all()
    assert (start.diff(dim=2) > 0).all()
    assert (start.diff(dim=3) == 0).all()
