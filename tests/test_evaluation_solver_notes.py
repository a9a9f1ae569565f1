"""What solvers warn of stands below the table."""

import copy
import json
import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from evaluation.solver_notes import kept_warnings, solver_notes, told
from evaluation.table import Row, Table
from flowprior.inversion import ImageRun, Solver, Warned
from tests.inversion_tables import BLUR, DATA, make_folder, noise, rows_of, run_here, write_config

OWN = "tests.test_evaluation_solver_notes.Warns"
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
        "fitted": {"solver": VARIATIONAL, "iterations": 20},
        "map": {"solver": {"class_path": "flowprior.inversion.MAP"}},
    },
}


@dataclass(frozen=True)
class Warns(Solver):
    """The data, with a warning of some images and one of all."""

    def begin(self, problem):
        return WarnsRun(problem, problem.y)


class WarnsRun(ImageRun):
    def warnings(self):
        mean = self.x.flatten(1).mean(1)
        told = mean.new_tensor([int(index) != 2 for index in self.problem.indices]).bool()
        size = mean[told].max()
        yield Warned(f"a mean of up to {size:.3g}, as few as 3 pixels", "mean", told, size)
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
    assert chains.startswith("method chains (5 of 5): the first draw is kept after 301 iterations")
    assert chains.endswith("there is no posterior.")
    assert re.match(r"method fitted \([1-5] of 5\): the objective is up to .* above its", fitted)
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


def kept(*warnings: str, count: int = 20) -> SimpleNamespace:
    return SimpleNamespace(arrays=kept_warnings(warnings, count))


def mask(*rows: int) -> torch.Tensor:
    return torch.isin(torch.arange(20), torch.tensor(rows))


def test_the_worst_of_each_kind_is_told() -> None:
    batches = [
        kept(
            Warned("up to 9.5 % of 7", "high", mask(*range(12)), 9.5),
            Warned("as few as 9", "few", mask(3), -9),
        ),
        kept(Warned("up to inf % of 8", "high", mask(0), torch.tensor(torch.inf))),
        kept(Warned("as few as 5", "few", mask(1, 2), -5), Warned("all of them", "all")),
        kept(),
    ]
    notes = [
        "(13 of 4): up to inf % of 8",
        "(3 of 4): as few as 5",
        "(20 of 4): all of them",
    ]
    assert told(batches) == notes
    batches.reverse()
    assert sorted(told(batches)) == sorted(notes)


def test_strings_of_own_solvers_are_about_all_images() -> None:
    batches = [kept("3 steps were 2.5 too long"), kept("4 steps were 1e-3 too long", "short")]
    assert told(batches) == ["(40 of 2): 3 steps were 2.5 too long", "(20 of 2): short"]
    older = {name: batches[0].arrays[name] for name in ("warnings", "warned")}
    assert told([SimpleNamespace(arrays=older), *batches[1:]]) == told(batches)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda w: pickle.loads(pickle.dumps(w))])
def test_a_warning_is_a_sentence_with_its_rows(again) -> None:
    warning = again(Warned("too short", "short", mask(*range(0, 20, 2)), 2))
    assert warning == "rows 0, 2, 4, 6, 8, 10, 12, 14 and 2 more: too short"
    assert (warning.reason, warning.kind, warning.size) == ("too short", "short", 2.0)
    assert warning.rows == tuple(range(0, 20, 2))
    assert again(Warned("became NaN", rows=mask(5), joint=" ")) == "row 5 became NaN"
    assert again(Warned("all")).rows is None


def test_many_rows_are_not_all_told() -> None:
    rows = [Row({"method": k}, {}, ["(1 of 1): short."]) for k in range(10)]
    notes = solver_notes(Table([], [*rows, Row({"method": "fine"}, {})]))
    assert notes[0] == "method 0 (1 of 1): short."
    assert len(notes) == 9
    assert notes[-1] == "Warnings of 2 more rows are in table.json."
    assert solver_notes(Table([], [Row({}, {}, ["(1 of 1): short"])])) == [
        "the only row (1 of 1): short."
    ]
