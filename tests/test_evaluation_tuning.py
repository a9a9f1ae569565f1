"""evaluate.py --tune: options chosen on validation images."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from datamodules import LayerModels
from evaluation import tuning
from evaluation.experiment import Experiment, Method
from evaluation.inversion import InversionEvaluation
from evaluation.measures import Similarity
from evaluation.sources import SimulatedData
from evaluation.table import Metric, Row, summarise
from evaluation.tuning import Choice, _score, grid, variants, with_choice, with_options
from flowprior.gaussianization import Gaussianization, Identity
from flowprior.inversion import MAP, Discrepancy, Restarts, Solver, TotalVariation
from flowprior.physics import Gaussian
from tests.inversion_tables import (
    BLUR,
    DATA,
    MEASURED,
    SIGMA_255,
    flows,
    layers,
    make_folder,
    noise,
    refused,
    rows_of,
    run_here,
    solver,
    table,
    write_config,
)

WEIGHTS = [0.1, 30.0, 1e5]
PSNR, SSIM = (Metric(name, higher_is_better=True) for name in ("psnr", "ssim"))


@pytest.fixture(autouse=True, scope="module")
def no_extensions():
    """Grids end where the config says, but in the test of their extension."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning, "EXTENSIONS", 0)
        yield


TV = {
    "solver": solver("TotalVariation", weight=1.0, misfit=SIGMA_255),
    "tune": {"weight": WEIGHTS},
}
SETTINGS = {
    "priors": {"glow": "weights"},
    "data": DATA,
    "images": 2,
    "iterations": 6,
    "start": "constant",
    "tune_images": 4,
    "shown": 1,
    "experiments": [
        {**BLUR, "labels": {"noise": s}, "noise": noise(float(s), scale="255")} for s in (5, 100)
    ],
    "methods": {"tv": TV, "fixed": {"solver": solver(misfit=SIGMA_255, projection_iterations=2)}},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("tuning"))


@pytest.fixture(scope="module")
def rows(folder: Path) -> list[dict[str, Any]]:
    return table(folder, "tuned", SETTINGS, "--tune")


def settings_of(output: Path) -> dict[tuple, dict]:
    """Settings of each cell by its labels."""
    lines = map(json.loads, (output / "records.jsonl").read_text().splitlines()[1:])
    return {tuple(line["labels"].values()): line["settings"] for line in lines if "labels" in line}


def test_each_experiment_has_its_own_winner(folder, rows):
    used, trials = settings_of(folder / "tuned"), settings_of(folder / "tuned" / "tuning")
    assert set(trials) == {(s, "tv", weight) for s in (5, 100) for weight in WEIGHTS}
    means = {
        tuple(r["labels"].values()): r["metrics"]["psnr"] for r in rows_of(folder / "tuned/tuning")
    }
    for sigma in (5, 100):
        best = max(WEIGHTS, key=lambda weight: means[sigma, "tv", weight]["mean"])
        assert used[sigma, "tv"]["solver"]["weight"] == best
        assert means[sigma, "tv", best]["n"] == 4
    assert used[5, "tv"]["solver"]["weight"] < used[100, "tv"]["solver"]["weight"]
    assert [row["labels"]["method"] for row in rows[:3]] == ["data", "tv", "fixed"]


def test_grid_and_winner_are_reported(folder, rows):
    text = (folder / "tuned" / "report.html").read_text()
    for sigma in (5, 100):
        weight = settings_of(folder / "tuned")[sigma, "tv"]["solver"]["weight"]
        assert f"noise {sigma}, method tv: weight {weight:g}" in text
    assert text.count("chosen by psnr on 4 validation images (grid of 3: 0.1: ") == 2
    assert "method fixed: " not in text


def test_other_test_images_do_not_change_the_choice(folder, rows):
    options = ("--evaluation.data.seed", "0", "--evaluation.data.num_test", "7")
    table(folder, "others", SETTINGS, "--tune", *options)
    before, after = (folder / name / "tuning" / "table.json" for name in ("tuned", "others"))
    without_times = [
        [{**row["metrics"], "seconds_per_image": None} for row in json.loads(p.read_text())["rows"]]
        for p in (before, after)
    ]
    assert without_times[0] == without_times[1]


def test_test_images_are_never_read(folder, monkeypatch):
    images, seen = LayerModels.images, set()

    def noted(self: LayerModels, split: str):
        seen.add(split)
        assert split != "test"
        return images(self, split)

    monkeypatch.setattr(LayerModels, "images", noted)

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(InversionEvaluation, "with_choices", interrupted)
    write_config(folder / "blind.yaml", SETTINGS)
    assert run_here(folder, "--config", "blind.yaml", "--output", "blind", "--tune") == 130
    assert seen == {"val"}
    assert len(rows_of(folder / "blind" / "tuning")) == 6


def test_killed_tuning_continues(folder, rows, monkeypatch, capsys):
    evaluate, calls = InversionEvaluation.evaluate, []

    def dies(self, cell, images, arrays):
        calls.append(cell)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return evaluate(self, cell, images, arrays)

    monkeypatch.setattr(InversionEvaluation, "evaluate", dies)
    write_config(folder / "killed.yaml", SETTINGS)
    arguments = ("--config", "killed.yaml", "--output", "killed", "--tune")
    assert run_here(folder, *arguments) == 130
    capsys.readouterr()
    assert run_here(folder, *arguments) == 0
    assert "Continuing: 12 of 24 images" in capsys.readouterr().out
    assert settings_of(folder / "killed") == settings_of(folder / "tuned")


def test_finished_table_is_not_mixed_with_a_tuned_one(folder, rows, capsys):
    shutil.copytree(folder / "tuned", folder / "again")
    assert run_here(folder, "--config", "tuned.yaml", "--output", "again") == 2
    line = capsys.readouterr().err
    assert "weight" in line
    assert line.rstrip().endswith("If --tune has chosen these options, give it again")
    assert run_here(folder, "--config", "tuned.yaml", "--output", "again", "--tune") == 0
    assert capsys.readouterr().out.count("Already finished") == 2


def test_a_table_that_was_not_tuned_is_told_before_tuning(folder, rows, capsys):
    shutil.copytree(folder / "tuned", folder / "plain", ignore=shutil.ignore_patterns("tuning"))
    assert run_here(folder, "--config", "tuned.yaml", "--output", "plain", "--tune") == 2
    assert (
        "records.jsonl holds results of noise 5, method tv that were not tuned"
        in capsys.readouterr().err
    )
    assert not (folder / "plain" / "tuning").exists()
    shutil.copytree(folder / "tuned" / "tuning" / "arrays", folder / "plain" / "tuning" / "arrays")
    assert run_here(folder, "--config", "tuned.yaml", "--output", "plain", "--tune") == 2
    assert (
        "records.jsonl holds results of noise 5, method tv that were not tuned"
        in capsys.readouterr().err
    )


NESTED = {
    "several starts": {
        "solver": solver("Restarts", count=2, solver=solver(misfit=SIGMA_255)),
        "tune": {"solver.beta": [1.0, 50.0]},
        "start": "random",
    },
    "layers": {
        "solver": solver(misfit=SIGMA_255, reparameterization=layers(), projection_iterations=1),
        "tune": {"beta": [1, 50], "reparameterization.temperature": [0.5, 1.0]},
    },
}


def test_options_of_options_are_tuned(folder):
    settings = {
        **SETTINGS,
        "methods": NESTED,
        "experiments": SETTINGS["experiments"][1:],
        "tune_images": 2,
        "iterations": 2,
        "images": 1,
    }
    table(folder, "nested", settings, "--tune")
    assert len(rows_of(folder / "nested" / "tuning")) == 2 + 4
    text = (folder / "nested" / "report.html").read_text()
    assert "several starts: solver.beta " in text
    used = settings_of(folder / "nested")[100, "layers"]["solver"]
    assert f"layers: beta {used['beta']}, reparameterization.temperature " in text
    assert used["reparameterization"]["temperature"] in (0.5, 1.0)


def test_grid_is_the_product_of_the_values():
    method = Method(MAP(), tune={"beta": [1.0, 2.0], "start_scale": [0.5, 1.0]})
    assert grid(method)[1] == {"beta": 1.0, "start_scale": 1.0}
    assert len(grid(method)) == 4


def test_with_options_reaches_into_options():
    inner = MAP(beta=1.0, reparameterization=Gaussianization.robust(0.7))
    found = with_options(
        Discrepancy(inner, stage=3), {"solver.reparameterization.passes": 1, "solver.beta": 2.0}
    )
    assert (found.stage, found.solver.beta) == (3, 2.0)
    assert found.solver.reparameterization.passes == 1
    assert found.solver.reparameterization.temperature == 0.7
    assert inner.reparameterization.passes == 2


def test_with_options_reaches_into_layers_by_part():
    layers = {"style": Gaussianization.robust(0.7), "picture": Gaussianization.robust(0.9)}
    found = with_options(MAP(reparameterization=layers), {"reparameterization.style.passes": 1})
    assert found.reparameterization["style"].passes == 1
    assert found.reparameterization["picture"] is layers["picture"]
    with pytest.raises(ValueError, match="no stile, expected one of style"):
        with_options(MAP(reparameterization=layers), {"reparameterization.stile.passes": 1})


@pytest.mark.parametrize("path", ["solver.betta", "beta", "solver.beta.more", "solver."])
def test_unknown_option_to_tune(path):
    with pytest.raises(ValueError, match=f"tune.{path}"):
        with_options(Restarts(MAP()), {path: 1.0})


def test_option_of_layers_without_options():
    with pytest.raises(ValueError, match="Identity has no option temperature"):
        with_options(MAP(reparameterization=Identity()), {"reparameterization.temperature": 1.0})


@pytest.mark.parametrize(
    ("scores", "best", "edge"),
    [
        ([1.0, 3.0, 2.0], 30.0, False),
        ([3.0, 2.0, 1.0], 0.1, True),
        ([float("-inf"), 1.0, 2.0], 1e5, True),
    ],
)
def test_choice_says_where_its_grid_ends(scores, best, edge):
    method = Method(TotalVariation(1.0), tune={"weight": WEIGHTS})
    choice = Choice(0, "glow", "tv", {"method": "tv"}, method, SSIM, 3, scores, images=4)
    assert choice.best == {"weight": best}
    assert ("edge of the grid" in str(choice)) == edge


def test_image_that_failed_keeps_a_value_from_being_chosen():
    stats = {"psnr": summarise([(0, 50.0), (1, float("nan"))]), "ssim": summarise([(0, 0.5)])}
    row = Row({"method": "tv"}, stats)
    assert _score(row, PSNR) == float("-inf")
    assert _score(row, SSIM) == 0.5
    lowest = replace(PSNR, higher_is_better=False)
    assert _score(row, lowest) == float("inf")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({**SETTINGS, "methods": flows()}, ["--tune", "methods.NAME.tune"]),
        ({**MEASURED, "methods": {"tv": TV}}, ["--tune", "data", "observations"]),
    ],
)
def test_nothing_to_tune_by_is_one_line(folder, capsys, settings, words):
    line = refused(folder, settings, capsys, "--tune")
    assert all(word in line for word in words)


def test_density_has_nothing_to_tune(folder, capsys):
    density = {
        "class_path": "evaluation.density.DensityEvaluation",
        "init_args": {"weights": "weights", "data": DATA},
    }
    (folder / "density.yaml").write_text(json.dumps({"evaluation": density}))
    assert run_here(folder, "--config", "density.yaml", "--tune") == 2
    assert "--tune" in capsys.readouterr().err


def test_grid_is_extended_while_the_best_is_at_its_edge(folder, monkeypatch):
    monkeypatch.setattr(tuning, "EXTENSIONS", 6)
    settings = {**SETTINGS, "methods": {"tv": {**TV, "tune": {"weight": [0.1, 1.0]}}}}
    settings["experiments"] = settings["experiments"][-1:]
    table(folder, "extended", settings, "--tune")
    tried = {row["labels"]["weight"]: row["metrics"] for row in rows_of(folder / "extended/tuning")}
    best = max(tried, key=lambda weight: tried[weight]["psnr"]["mean"])
    assert best > 1.0
    assert max(tried) > best  # the best is inside of the grid
    used = [s["solver"].get("weight") for s in settings_of(folder / "extended").values()]
    assert best in used
    assert "extended by" in (folder / "extended" / "report.html").read_text()


def test_iterations_are_not_extended_but_their_edge_is_reported(folder, monkeypatch):
    monkeypatch.setattr(tuning, "EXTENSIONS", 6)
    tv = {"solver": solver("TotalVariation", weight=3.0), "tune": {"iterations": [1, 3]}}
    settings = {**SETTINGS, "methods": {"tv": tv}}
    settings["experiments"] = settings["experiments"][-1:]
    table(folder, "budget", settings, "--tune")
    tried = {row["labels"]["iterations"] for row in rows_of(folder / "budget/tuning")}
    assert tried == {1, 3}
    text = (folder / "budget" / "report.html").read_text()
    assert "iterations 3, at the edge of the grid, chosen by" in text


@pytest.mark.parametrize(
    ("values", "best", "expected"),
    [
        ([1.0, 3.0, 10.0], 10.0, [1.0, 3.0, 10.0, 33.3]),
        ([1.0, 3.0, 10.0], 1.0, [0.333, 1.0, 3.0, 10.0]),
        ([1.0, 3.0, 10.0], 3.0, [1.0, 3.0, 10.0]),
        ([2, 4], 4, [2, 4, 8]),
        ([0.0, 1.0], 1.0, [0.0, 1.0]),
        ([5.0], 5.0, [5.0]),
    ],
)
def test_extension_of_values(values, best, expected):
    assert tuning.extended(values, best) == expected


def test_validation_has_noise_of_its_own():
    data = LayerModels(image_size=16, num_train=64, num_val=9, num_test=8)
    experiment = Experiment({}, "denoising", noise=Gaussian(0.2))
    noises = []
    for split in ("val", "test"):
        source = SimulatedData(data, 2, split)
        noises.append(source.observed(experiment, [0, 1], 0) - source.truth([0, 1]))
    assert (noises[0] - noises[1]).abs().max() > 0.1


def test_iterations_are_those_of_the_method():
    method = Method(TotalVariation(1.0), iterations=7, tune={"iterations": [3, 30], "weight": [2]})
    found = list(variants("tv", method).values())
    assert [one.iterations for one in found] == [3, 30]
    assert [one.solver.weight for one in found] == [2, 2]
    assert with_choice(method, {"weight": 5.0}).iterations == 7
    with pytest.raises(ValueError, match=r"^methods\.tv: .*iterations"):
        variants("tv", Method(TotalVariation(1.0), tune={"iterations": [-1]}))


class Plain(Solver):
    """Its option has another name as an attribute."""

    def __init__(self, step: float = 1.0) -> None:
        self._step = step

    def begin(self, problem): ...


def test_a_solver_that_is_no_dataclass_cannot_be_tuned():
    method = Method(Plain(), tune={"step": [1.0, 2.0]})
    with pytest.raises(ValueError, match=r"methods.own: tune.step: Plain must be a dataclass"):
        variants("own", method)


WORST = """
from evaluation.measures import Measure
from evaluation.table import Metric

class Worst(Measure):
    metrics = (Metric("worst", "Largest error", higher_is_better=False),)

    def __call__(self, estimate, problem, truth):
        return {"worst": (estimate.x - truth).abs().flatten(1).amax(1)}
"""


def test_an_own_measure_of_which_less_is_better(folder):
    (folder / "my_worst.py").write_text(WORST)
    settings = {**SETTINGS, "methods": {"tv": TV}, "experiments": SETTINGS["experiments"][1:]}
    settings |= {"measures": [{"class_path": "my_worst.Worst"}], "tune_metric": "worst"}
    table(folder, "worst", settings, "--tune", imports=["my_worst"])
    report = (folder / "worst" / "report.html").read_text()
    tried = {r["labels"]["weight"]: r["metrics"] for r in rows_of(folder / "worst" / "tuning")}
    best = min(tried, key=lambda weight: tried[weight]["worst"]["mean"])
    assert best != max(tried, key=lambda weight: tried[weight]["worst"]["mean"])
    (cell,) = (s for labels, s in settings_of(folder / "worst").items() if "tv" in labels)
    assert cell["solver"]["weight"] == best
    assert "chosen by worst, lower is better, on 4" in report


def test_options_stay_chosen_when_a_measure_is_added(folder, rows, capsys):
    shutil.copytree(folder / "tuned" / "tuning", folder / "more" / "tuning")
    more = {**SETTINGS, "measures": [{"class_path": "evaluation.measures.SignalToNoise"}]}
    found = table(folder, "more", more, "--tune")
    assert capsys.readouterr().out.count("Already finished") == 1
    assert all("snr" in row["metrics"] for row in found)


def test_a_metric_that_nothing_measures_is_one_line(folder, capsys, monkeypatch):
    monkeypatch.setattr(Similarity, "metrics", (*Similarity.metrics, Metric("x", "", "", True)))
    write_config(folder / "unmeasured.yaml", {**SETTINGS, "tune_metric": "x"})
    assert run_here(folder, "--config", "unmeasured.yaml", "--tune") == 2
    assert "tune_metric=x: nothing has measured it" in capsys.readouterr().err
