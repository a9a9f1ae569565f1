"""Columns of a table of inversions: one's own, and those that every table has."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from evaluation import inversion
from evaluation.base import Result
from evaluation.measures import Measure, Similarity, derived, fit_notes
from evaluation.table import Metric, Row, Table, summarise
from flowprior.inversion import Problem, Recording, TotalVariation, solve, timing
from flowprior.inversion.convergence import fall
from tests.inversion_tables import DATA, noise, refused, rows_of, run_here, solver, write_config

OWN = '''
from dataclasses import dataclass

import torch
from torch import nn

from evaluation.measures import Measure
from evaluation.table import Metric
from flowprior.inversion import ImageRun, Solver
from flowprior.priors import Module, Prior


def decoder(seed: int = 0) -> Prior:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(5, 256), nn.Sigmoid(), nn.Unflatten(1, (1, 16, 16)))
    return Module(net, (1, 16, 16), [5])


class Named(Measure):
    """A constant in a column of any name and shape; NaN in the first row if `hole`."""

    def __init__(self, name: str = "own", hole: bool = False, shape: tuple[int, ...] = ()) -> None:
        self.metrics = (Metric(name),)
        self.name, self.hole, self.shape = name, hole, shape

    def __call__(self, estimate, problem, truth):
        values = torch.ones(len(estimate.x), *self.shape)
        if self.hole:
            values[0] = torch.nan
        return {self.name: values}


class Scalar(Named):
    def __call__(self, estimate, problem, truth):
        return {self.name: 1.0}


class Unlisted(Named):
    def __call__(self, estimate, problem, truth):
        return {"psnr": torch.ones(len(estimate.x))}


@dataclass(frozen=True)
class Forgetful(Solver):
    """Uses the prior, but does not say so."""

    def begin(self, problem):
        z = problem.prior.latent.draw(len(problem.y), seed=0, like=problem.prior.like)
        return ImageRun(problem, problem.prior.generate(problem.prior.latent.shaped(z)))
'''


def own(kind: str, /, **options: Any) -> dict[str, Any]:
    return {"class_path": f"my_columns.{kind}", "init_args": options}


SETTINGS = {
    "priors": {"mine": own("decoder")},
    "data": DATA,
    "images": 3,
    "batch_size": 3,
    "iterations": 3,
    "shown": 2,
    "experiments": [{"labels": {}, "operator": "denoising", "noise": noise(0.1)}],
    "methods": {"csgm": {"solver": solver(penalty="latent_norm")}},
}
IMPORTS = {"imports": ["my_columns"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("measures")
    (path / "my_columns.py").write_text(OWN)
    return path


def run(folder: Path, name: str, *options: str, **settings: Any) -> list[dict[str, Any]]:
    write_config(folder / f"{name}.yaml", {**SETTINGS, **settings}, **IMPORTS)
    assert run_here(folder, "--config", f"{name}.yaml", "--output", name, *options) == 0
    return rows_of(folder / name)


def test_own_value_that_is_nan_leaves_other_columns_alone(folder):
    plain = run(folder, "plain")
    rows = run(folder, "hole", measures=[own("Named", hole=True)])
    for row, expected in zip(rows, plain, strict=True):
        assert (row["metrics"]["own"]["n"], row["metrics"]["own"]["n_excluded"]) == (2, 1)
        for name in ("psnr", "best_psnr", "best_ssim"):
            assert row["metrics"][name] == expected["metrics"][name]
    figures = [
        (folder / name / "figures" / "psnr_by_iteration.png").read_bytes()
        for name in ("plain", "hole")
    ]
    assert figures[0] == figures[1]


def test_quality_is_drawn_against_time(folder):
    run(folder, "timed")
    assert (folder / "timed" / "figures" / "psnr_by_seconds.png").stat().st_size


def test_signal_to_noise_has_both_conventions(folder):
    rows = run(folder, "snr", measures=[{"class_path": "evaluation.measures.SignalToNoise"}])
    for row in rows:
        metrics = {name: row["metrics"][name]["mean"] for name in ("psnr", "snr", "snr_shifted")}
        assert abs(metrics["snr"] - metrics["snr_shifted"]) > 1
        # ‖2x − 1‖² is at most the number of pixels, and ‖2(x − x̂)‖² four times the squared error.
        assert metrics["snr"] < metrics["psnr"] - 20 * np.log10(2) + 1e-4


@pytest.mark.parametrize(
    "measures",
    [
        [own("Named", name="psnr")],
        [own("Named", name="seconds_per_image")],
        [own("Named"), own("Named", hole=True)],
    ],
)
def test_two_metrics_of_one_name_are_refused(folder, capsys, measures):
    line = refused(folder, {**SETTINGS, "measures": measures}, capsys, **IMPORTS)
    name = measures[-1]["init_args"].get("name", "own")
    assert "measures: Named" in line
    assert repr(name) in line


def test_a_measure_that_every_table_has_is_told_to_be_left_out(folder, capsys):
    given = [{"class_path": "evaluation.measures.OperatorCalls"}]
    line = refused(folder, {**SETTINGS, "measures": given}, capsys)
    assert "measures: OperatorCalls: every table has it, leave it out" in line


@pytest.mark.parametrize(
    ("measure", "words"),
    [
        (own("Named", shape=[1]), ["Named", "own", "(3, 1)", "(3,)"]),
        (own("Scalar"), ["Scalar", "own", "float", "(3,)"]),
        (own("Unlisted"), ["Unlisted", "'psnr'", "own"]),
    ],
)
def test_values_of_another_shape_or_name_are_one_line(folder, capsys, measure, words):
    write_config(folder / "shape.yaml", {**SETTINGS, "measures": [measure]}, **IMPORTS)
    assert run_here(folder, "--config", "shape.yaml", "--output", measure["class_path"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert all(word in line for word in words), line


def test_solver_that_forgot_its_needs_is_one_line(folder, capsys):
    methods = {"forgetful": {"solver": own("Forgetful")}}
    line = refused(folder, {**SETTINGS, "methods": methods}, capsys, **IMPORTS)
    assert "methods.forgetful: Forgetful" in line
    assert "needs" in line


def test_solver_without_needs_gets_no_prior(folder, monkeypatch):
    begin, seen = TotalVariation.begin, []

    def noted(self: TotalVariation, problem: Problem) -> Any:
        seen.append((problem.prior, problem.image_shape))
        return begin(self, problem)

    monkeypatch.setattr(TotalVariation, "begin", noted)
    priors = {"first": own("decoder"), "second": own("decoder", seed=1)}
    methods = {"tv": {"solver": solver("TotalVariation", weight=1.0)}}
    rows = run(folder, "no-prior", priors=priors, methods=methods)
    assert [row["labels"] for row in rows] == [{"method": "data"}, {"method": "tv"}]
    assert set(seen) == {(None, (1, 16, 16))}


def test_start_column_is_where_each_method_started(folder):
    methods = {
        "csgm": {"solver": solver(penalty="latent_norm")},
        "from zero": {"solver": solver(penalty="latent_norm", start_scale=0.0)},
        "grey": {"solver": solver("TotalVariation", weight=1.0), "start": "constant"},
    }
    rows = run(folder, "starts", methods=methods)
    data, *others = rows
    assert [row["labels"]["method"] for row in rows] == ["data", *methods]
    assert "start_psnr" not in data["metrics"]
    for row in others:
        cell = next(
            line["cell"]
            for line in map(json.loads, (folder / "starts/records.jsonl").open())
            if line.get("labels") == row["labels"]
        )
        kept = [np.load(folder / f"starts/arrays/{cell}/{image}.npz") for image in range(2)]
        stat = row["metrics"]["start_psnr"]
        assert stat["n"] == 3
        errors = [np.square(arrays["x_0"] - arrays["truth"]).mean() for arrays in kept]
        curves = [arrays["psnr"][0] for arrays in kept]
        assert curves == pytest.approx(-10 * np.log10(errors), abs=1e-3)
    means = {row["metrics"]["start_psnr"]["mean"] for row in others}
    assert len(means) == 3
    assert "Start: " in (folder / "starts" / "report.html").read_text()


class Clock:
    """Stands for the module `time`: each call gives the next of these seconds."""

    def __init__(self, *seconds: float) -> None:
        self.seconds = iter(seconds)

    def perf_counter(self) -> float:
        return next(self.seconds)


def test_recording_counts_the_time_of_the_run_alone(monkeypatch):
    run = SimpleNamespace(values={}, x=torch.zeros(2, 1, 4, 4), z=None)
    monkeypatch.setattr(timing, "time", Clock(0, 2, 10, 13, 20))
    first = Recording()
    first(0, run)
    first(1, run)
    assert first.seconds == 2 + 3
    monkeypatch.setattr(timing, "time", Clock(100, 200, 204, 210))
    resumed = Recording()
    resumed.load_state_dict(first.state_dict())
    resumed(2, run)
    assert resumed.seconds == 2 + 3 + 4


def test_time_per_image_is_that_of_the_solver(folder, monkeypatch):
    def solved(solver, problem, iterations, observers, checkpoint):
        estimate = solve(solver, problem, iterations, observers, checkpoint)
        observers[0].seconds = 6e6
        return estimate

    monkeypatch.setattr(inversion, "solve", solved)
    rows = run(folder, "times")
    assert {row["metrics"]["seconds_per_image"]["mean"] for row in rows} == {2e6}


def test_notes_name_some_rows_and_count_the_others():
    stats = {"residual": summarise([(0, 2.0)])}
    rows = [Row({"method": f"m{number}"}, stats) for number in range(30)]
    (note,) = fit_notes(Table([], rows))
    assert "method m7 (2); and in 22 more rows" in note
    (note,) = fit_notes(Table([], rows[:8]))
    assert "method m7 (2). The prior" in note


def test_rows_with_images_that_are_worse_than_their_start_are_named():
    def row(name, after, before):
        stats = {"psnr": summarise(enumerate(after)), "start_psnr": summarise(enumerate(before))}
        return Row({"method": name}, stats)

    rows = [row("good", [20.0, 21.0], [10.0, 12.0]), row("bad", [20.0, 9.0], [10.0, 12.0])]
    (note,) = fit_notes(Table([], rows))
    assert note == "Images that ended with a lower PSNR than their start: method bad (1 of 2)."


def fall_of(curves) -> float:
    """`fall` of one image's curves."""
    parts = {name: curves[name] for name in ("loss", "misfit") if name in curves}
    return fall({name: torch.tensor(np.array(c))[:, None] for name, c in parts.items()}).item()


def test_fall_is_the_share_of_the_last_tenth():
    def after(*losses: float, **misfit: list[float]) -> float:
        """After 20 iterations, of which a tenth is two."""
        curves = {"loss": [*[losses[0]] * 18, *losses], **misfit}
        return fall_of(curves)

    assert after(60.0, 51.0, 50.0) == pytest.approx(20.0)
    assert after(50.0, 50.0, 50.0) == 0.0
    assert after(1.0, 0.5, 1.0) == after(0.5, 0.5, 1.0) == 0.0
    assert after(-4.0, -4.0, -5.0) == pytest.approx(20.0)
    assert after(1.0, 1.0, 0.0, misfit=[9.0, 50.0]) == pytest.approx(2.0)
    assert after(0.0, 0.0, 0.0) == 0.0


def test_fall_is_the_same_from_a_worse_start():
    good = {"loss": np.linspace(120.0, 100.0, 21), "misfit": np.linspace(60.0, 50.0, 21)}
    bad = {name: np.array([1e9, *curve[1:]]) for name, curve in good.items()}
    assert fall_of(bad) == fall_of(good) == pytest.approx(2.0)


def test_fall_is_that_of_the_curves_that_are_kept(folder):
    rows = run(folder, "fall", iterations=20)
    kept = [np.load(path) for path in sorted((folder / "fall/arrays").glob("*/*.npz"))]
    falls = [fall_of(curves) for curves in kept if len(curves.get("loss", ())) > 1]
    assert len(falls) == rows[1]["metrics"]["falling"]["n"] == 3
    assert rows[1]["metrics"]["falling"]["mean"] == pytest.approx(np.mean(falls))
    assert "falling" not in rows[0]["metrics"]


def test_fall_is_that_since_the_data_have_changed():
    arrays = {
        "loss": np.array([*range(124, 84, -1), 2595.0, 939.0, 800.0, 500.0]),
        "scale": np.array([*40 * [0.0], *4 * [1.0]]),
        "finite": np.array(True),
    }
    (columns,) = Similarity().derived([Result(None, 0, {}, arrays)])
    assert columns == {"falling": pytest.approx(60.0)}


def test_rows_that_had_not_converged_are_named():
    rows = [
        Row({"method": name}, {"falling": summarise([(0, value)])})
        for name, value in (("done", 0.1), ("underway", 2.0))
    ]
    (note,) = fit_notes(Table([], rows))
    assert note.startswith("Not converged")
    assert "method underway (2 %)" in note
    assert "done" not in note


class Derives(Measure):
    """A measure whose further columns are given."""

    metrics = (Metric("own", "Own", "", None),)

    def __init__(self, rows):
        self.rows = rows

    def __call__(self, estimate, problem, truth):
        return {}

    def derived(self, results):
        return self.rows


@pytest.mark.parametrize(
    ("rows", "words"),
    [([{"psnr": 99.0}, {}], "gave psnr, not in its metrics"), ([{}], "gave 1 rows for 2 images")],
)
def test_further_columns_are_checked(rows, words):
    with pytest.raises(ValueError, match=f"Derives.derived {words}"):
        derived(Derives(rows), [None, None])
    assert derived(Derives([{"own": 1.0}, {}]), [None, None]) == [{"own": 1.0}, {}]
