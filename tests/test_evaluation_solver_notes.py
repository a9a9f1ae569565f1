"""What solvers warn of stands below the table."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from evaluation.solver_notes import kept_warnings, solver_notes, told
from evaluation.table import Row, Table
from flowprior.inversion import ImageRun, Solver
from flowprior.inversion.solving import named_rows
from tests.inversion_tables import BLUR, DATA, make_folder, noise, rows_of, run_here, write_config

OWN = "tests.test_evaluation_solver_notes.Warned"
LANGEVIN = {
    "class_path": "flowprior.posterior.Langevin",
    "init_args": {"chains": 2, "leapfrog": 1, "descent_iterations": 0},
}
VARIATIONAL = {
    "class_path": "flowprior.posterior.Variational",
    "init_args": {"draws": 2, "descent_iterations": 0, "learning_rate": 0.1},
}
SETTINGS = {
    "priors": {"glow": "weights"},
    "data": DATA,
    "images": 5,
    "batch_size": 3,
    "iterations": 4,
    "shown": 1,
    "experiments": [{**BLUR, "noise": noise(0.05)}],
    "methods": {
        "own": {"solver": {"class_path": OWN}, "iterations": 0},
        "chains": {"solver": LANGEVIN},
        "fitted": {"solver": VARIATIONAL},
        "map": {"solver": {"class_path": "flowprior.inversion.MAP"}},
    },
}


@dataclass(frozen=True)
class Warned(Solver):
    """The data, with a warning of some images and one of all."""

    def begin(self, problem):
        return WarnedRun(problem, problem.y)


class WarnedRun(ImageRun):
    def warnings(self):
        mean = self.x.flatten(1).mean(1)
        told = mean.new_tensor([int(index) != 2 for index in self.problem.indices]).bool()
        yield f"{named_rows(told)}: a mean of up to {mean[told].max():.3g}, as few as 3 pixels"
        yield "these are the data."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("notes"))


def notes_of(folder: Path, name: str, **changes) -> list[str]:
    write_config(folder / f"{name}.yaml", {**SETTINGS, **changes})
    assert run_here(folder, "--config", f"{name}.yaml", "--output", name) == 0
    notes = json.loads((folder / name / "table.json").read_text())["notes"]
    return [note for note in notes if note.startswith("method")]


def test_warnings_of_solvers_stand_below_the_table(folder: Path) -> None:
    own, chains, fitted = notes_of(folder, "whole")
    means = own.split("up to ")[1].split(",")[0]
    assert own == (
        f"method own (4 of 5): a mean of up to {means}, as few as 3 pixels; "
        "(5 of 5): these are the data."
    )
    assert chains.startswith("method chains (5 of 5): the warm-up takes 300 iterations")
    assert chains.endswith("there is no posterior.")
    assert re.match(r"method fitted \([1-5] of 5\): the objective still fell by up to", fitted)
    warned = {r["labels"]["method"]: r.get("warnings") for r in rows_of(folder / "whole")}
    assert warned["map"] is warned["data"] is None
    assert f"method own {'; '.join(warned['own'])}" == own
    assert notes_of(folder, "whole") == [own, chains, fitted]  # from the records
    assert notes_of(folder, "parts", batch_size=2) == [own, chains, fitted]


def test_records_without_warnings_stay_valid(folder: Path, capsys: pytest.CaptureFixture) -> None:
    methods = {"own": SETTINGS["methods"]["own"]}
    assert len(notes_of(folder, "old", methods=methods)) == 1
    for path in (folder / "old" / "arrays").rglob("*.npz"):
        with np.load(path) as arrays:
            kept = {n: a for n, a in arrays.items() if n not in ("warnings", "warned")}
        np.savez(path, **kept)
    capsys.readouterr()
    assert notes_of(folder, "old", methods=methods) == []
    assert "Already finished" in capsys.readouterr().out


class Kept:
    def __init__(self, *warnings: str, count: int = 20) -> None:
        self.arrays = kept_warnings(warnings, count)


def test_warnings_that_differ_in_numbers_are_one() -> None:
    rows = "rows 0, 1, 2, 3, 4, 5, 6, 7 and 4 more"
    batches = [
        Kept(f"{rows}: up to 9.5 %, as few as 12 draws of 7", "row 3: up to"),
        Kept("row 0: up to 10.5 %, as few as 2e-3 draws of 8"),
        Kept("rows 1, 2: up to inf %, as few as 30 draws of 9"),
        Kept(),
    ]
    assert told(batches) == [
        "(15 of 4): up to inf %, as few as 2e-3 draws of 7",
        "(1 of 4): up to",
    ]


def test_many_rows_are_not_all_told() -> None:
    rows = [Row({"method": k}, {}, ["(1 of 1): short."]) for k in range(10)]
    notes = solver_notes(Table([], [*rows, Row({"method": "fine"}, {})]))
    assert notes[0] == "method 0 (1 of 1): short."
    assert len(notes) == 9
    assert notes[-1] == "Warnings of 2 more rows are in table.json."
    assert solver_notes(Table([], [Row({}, {}, ["(1 of 1): short"])])) == [
        "the only row (1 of 1): short."
    ]
