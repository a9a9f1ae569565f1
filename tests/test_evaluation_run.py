import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from evaluation import Cell, Evaluation, Metric, run
from evaluation.runner import _batches
from flowprior.figures import curves
from flowprior.progress import Meter

ROOT = Path(__file__).parents[1]


class Fake(Evaluation):
    """Metrics are a function of the cell and the image; optionally hangs at one of them."""

    title = "Fake"
    metrics = (
        Metric("psnr", "PSNR", "dB", higher_is_better=True),
        Metric("steps"),
        Metric("rate", "Sampling", "images/s"),
    )
    compare = ("method",)

    def __init__(self, log, hang_at=None, seed=0):
        self.log, self.hang_at, self.seed = log, hang_at, seed

    def fingerprint(self):
        return {"config": {"seed": self.seed}}

    def cells(self):
        labels = [{"method": method, "noise": 0.1} for method in ("a", "b")]
        images = [Cell(label, range(10), batch_size=4) for label in labels]
        return [*images, Cell(labels[0], range(3), part="sampling", timed=False)]

    def evaluate(self, cell, images, arrays):
        with open(self.log, "a") as log:
            for image in images:
                log.write(f"{cell.labels['method']}{cell.part}{image}\n")
        if self.hang_at == (cell.labels["method"], images[0]):
            Path(f"{self.log}.hangs").touch()
            time.sleep(60)
        if cell.part:
            return [{"rate": 100.0 + image} for image in images]
        base = 20.1 if cell.labels["method"] == "a" else 22.7
        arrays.save(f"{cell.labels['method']}-{images[0]}", {"x": [base]})
        return [
            {"psnr": float("nan") if image == 5 else base + image**0.5, "steps": 3 * image}
            for image in images
        ]

    def figures(self, table, records, arrays):
        y = [record.metrics["psnr"] for record in records if not record.part]
        base = arrays.load("a-4")["x"]
        return {"psnr / image": (curves({"y": (range(len(y)), y)}), f"From {base[0]}")}

    def paper(self, labels, metric):
        return 23.5 if (labels["method"], metric) == ("a", "psnr") else None


def quiet():
    return Console(file=io.StringIO(), width=100)


def without_times(path):
    content = json.loads(path.read_text())
    for row in content["rows"]:
        assert row["metrics"].pop("seconds_per_image")["n"] == 10
    return content


def test_killed_sweep_continues_to_the_same_table(tmp_path):
    log, output = tmp_path / "log", tmp_path / "killed"
    command = [sys.executable, __file__, str(log), str(output)]
    child = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)})
    hangs = Path(f"{log}.hangs")
    deadline = time.monotonic() + 60
    while not hangs.exists():
        assert child.poll() is None, "the child ended early"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert not (output / "table.json").exists()
    records = output / "records.jsonl"
    assert records.read_bytes().count(b"\n") == 1 + 10 + 4
    with records.open("ab") as file:
        file.write(b'{"labels": {"method": "b", "noi')

    console = quiet()
    run(Fake(log), output, "seed: 0", console)
    assert "Continuing: 14 of 23 images are done." in console.file.getvalue()
    evaluated = log.read_text().split()
    twice = {name for name in evaluated if evaluated.count(name) == 2}
    assert twice == {"b4", "b5", "b6", "b7"}
    assert len(set(evaluated)) == 23

    run(Fake(tmp_path / "other"), tmp_path / "whole", "seed: 0", quiet())
    resumed = without_times(output / "table.json")
    assert resumed == without_times(tmp_path / "whole" / "table.json")
    psnr = resumed["rows"][0]["metrics"]["psnr"]
    assert (psnr["n"], psnr["excluded"], psnr["paper"]) == (9, 1, 23.5)
    rate = {"mean": 101.0, "std": 1.0, "n": 3, "paper": None}
    assert resumed["rows"][0]["metrics"]["rate"] == rate
    assert "rate" not in resumed["rows"][1]["metrics"]


def test_finished_run_measures_nothing_and_rebuilds_all(tmp_path):
    log, output = tmp_path / "log", tmp_path / "out"
    run(Fake(log), output, "note: <settings>", quiet())
    names = ["table.json", "table.csv", "table.md", "table.tex", "figures/psnr-image.png"]
    first = {name: (output / name).read_bytes() for name in names}
    assert all(first.values())
    for name in [*names, "report.html"]:
        (output / name).unlink()
    log.unlink()

    console = quiet()
    run(Fake(log), output, "note: <settings>", console)
    assert not log.exists()
    assert {name: (output / name).read_bytes() for name in names} == first
    text = console.file.getvalue()
    assert "Already finished: 23 of 23 images." in text
    assert text.splitlines()[-1] == str(output / "report.html")
    report = (output / "report.html").read_text()
    assert "note: &lt;settings&gt;" in report
    assert "From 20.1" in report
    assert len(list((output / "tensorboard").iterdir())) == 1
    leftover = [path for path in output.rglob(".*") if path.is_file()]
    assert leftover == []


def test_tensorboard_holds_means_and_figures(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(Fake(tmp_path / "log"), tmp_path / "out", "", quiet())
    events = EventAccumulator(str(tmp_path / "out" / "tensorboard"))
    events.Reload()
    assert "figures/psnr / image" in events.Tags()["images"]
    assert events.Scalars("steps/method a, noise 0.1")[0].value == 13.5


def test_other_settings_are_refused(tmp_path):
    run(Fake(tmp_path / "log"), tmp_path / "out", "", quiet())
    before = (tmp_path / "out" / "table.json").read_bytes()
    with pytest.raises(ValueError, match=r"config\.seed was 0, is now 1"):
        run(Fake(tmp_path / "log", seed=1), tmp_path / "out", "", quiet())
    assert (tmp_path / "out" / "table.json").read_bytes() == before


@pytest.mark.parametrize(
    ("results", "message"),
    [([], "0 results for 4 images"), ([{"pnsr": 1.0}] * 4, r"\['pnsr'\], which its `metrics`")],
)
def test_wrong_results_are_named(tmp_path, results, message):
    fake = Fake(tmp_path / "log")
    fake.evaluate = lambda cell, images, arrays: results
    with pytest.raises(ValueError, match=message):
        run(fake, tmp_path / "out", "", quiet())


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([Cell({"a": 1, "b": 2}, [0]), Cell({"b": 2, "a": 1}, [1])], "two cells"),
        ([Cell({"a": 1}, [0, 0])], "occurs twice"),
    ],
)
def test_ambiguous_cells_are_refused(tmp_path, cells, message):
    fake = Fake(tmp_path / "log")
    fake.cells = lambda: cells
    with pytest.raises(ValueError, match=message):
        run(fake, tmp_path / "out", "", quiet())
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        Cell({}, [0], batch_size=0)


def test_batches_stay_where_they_were():
    cell = Cell({}, range(10), batch_size=4)
    assert _batches(cell, frozenset({0, 1, 2, 3, 5})) == [[4, 6, 7], [8, 9]]


def test_meter_counts_only_this_run():
    times = iter([0.0, 4.0, 4.0, 5.0, 5.0])
    meter = Meter(total=100, done=40, clock=lambda: next(times))
    assert meter.text() == "40/100 images"
    meter.advance(20)
    assert meter.text() == "60/100 images, 5 images/s, 0:00:08 left"
    assert meter.text() == "60/100 images, 5 images/s, 0:00:07 left"


if __name__ == "__main__":
    assert not {"matplotlib", "tensorboard", "PIL"} & {*sys.modules}, "import evaluation is slow"
    run(Fake(sys.argv[1], hang_at=("b", 4)), sys.argv[2], "seed: 0")
