import io
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import cached_property, partial
from pathlib import Path

import pytest
from rich.console import Console

from evaluation import Cell, Evaluation, Metric, run, runner
from evaluation.arrays import ArrayStore
from evaluation.batches import Job, missing_batches
from evaluation.runner import ProcessPool, _measured, _values
from flowprior.command_line import run_command
from flowprior.distribution_figures import histogram
from flowprior.progress import SweepProgress

ROOT = Path(__file__).parents[1]


class Fake(Evaluation):
    """Metrics are a function of the cell and the image; optionally hangs or dies at one."""

    title = "Fake"
    metrics = (
        Metric("psnr", "PSNR", "dB", higher_is_better=True),
        Metric("steps"),
        Metric("best_psnr", "PSNR, best"),
    )
    compare = ("method",)

    def __init__(self, log, hang_at=None, die_at=None, methods=("a", "b"), noise=0.1):
        self.log, self.hang_at, self.die_at, self.noise = Path(log), hang_at, die_at, noise
        self.methods = methods

    def check(self):
        assert self.model()
        if not self.methods:
            raise ValueError("methods: expected at least one")

    def cells(self):
        return [
            Cell({"method": method}, range(10), {"noise": self.noise}, 4, repeat)
            for method in self.methods
            for repeat in (0, 1)
        ]

    @cached_property
    def model(self):
        return lambda: "cannot be pickled"

    def evaluate(self, cell, images, arrays):
        assert self.model()
        method, first = cell.labels["method"], images[0]
        with open(self.log, "a") as log:
            log.write("".join(f"{method}{cell.repeat}-{image}\n" for image in images))
        if (method, cell.repeat, first) == self.hang_at:
            Path(f"{self.log}.hangs").touch()
            time.sleep(60)
        if (method, cell.repeat, first) == self.die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        base = (20.1 if method == "a" else 22.7) + cell.repeat
        arrays.save(cell.key, first, {"base": [base]})
        return [
            {"psnr": float("nan") if image == 5 else base + image**0.5, "steps": 3 * image}
            for image in images
        ]

    def derived(self, results):
        best = max(result.metrics["steps"] for result in results)
        return [{"best_psnr": best} for _ in results]

    def figures(self, table, results):
        kept = [result for result in results if "base" in result.arrays]
        assert [result.image for result in kept[:3]] == [0, 4, 8]
        psnr = [result.metrics["psnr"] for result in results]
        caption = f"From {kept[0].arrays['base'][0]}"
        return {"psnr / image": (histogram({"y": psnr}, 5, "PSNR (dB)"), caption)}

    def paper(self, labels, metric):
        return 23.5 if (labels["method"], metric) == ("a", "psnr") else None


def quiet():
    return Console(file=io.StringIO(), width=100)


def without_times(path):
    content = json.loads(path.read_text())
    for row in content["rows"]:
        assert row["metrics"].pop("seconds_per_image")["n"] == 10
    return content


def wait_until_it_hangs(child, log):
    hangs = Path(f"{log}.hangs")
    deadline = time.monotonic() + 60
    while not hangs.exists():
        assert child.poll() is None, child.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def started(mode, log, output):
    # A shell that starts the tests in the background would have SIGINT ignored.
    return subprocess.Popen(
        [sys.executable, __file__, mode, str(log), str(output)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.default_int_handler),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def test_killed_sweep_continues_to_the_same_table(tmp_path):
    log, output = tmp_path / "log", tmp_path / "killed"
    child = started("hang", log, output)
    wait_until_it_hangs(child, log)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert not (output / "table.json").exists()
    records = output / "records.jsonl"
    assert records.read_bytes().count(b'"image"') == 10 + 10 + 4
    with records.open("ab") as file:
        file.write(b'{"cell": "b", "ima')
    half = next(output.glob("arrays/*/4.npz")).with_name(".1234abcd-4.npz")
    half.write_bytes(b"half")

    console = quiet()
    run(Fake(log), output, "seed: 0", console)
    assert "Continuing: 24 of 40 images are done." in console.file.getvalue()
    evaluated = log.read_text().split()
    twice = {name for name in evaluated if evaluated.count(name) == 2}
    assert twice == {"b0-4", "b0-5", "b0-6", "b0-7"}
    assert len(set(evaluated)) == 40
    assert not half.exists()

    run(Fake(tmp_path / "other"), tmp_path / "whole", "seed: 0", quiet())
    resumed = without_times(output / "table.json")
    assert resumed == without_times(tmp_path / "whole" / "table.json")
    psnr = resumed["rows"][0]["metrics"]["psnr"]
    assert (psnr["n"], psnr["n_excluded"], psnr["paper"]) == (9, 2, 23.5)
    assert resumed["rows"][0]["metrics"]["best_psnr"]["mean"] == 27


@pytest.mark.parametrize("mode", ["hang", "hang-in-processes"])
def test_interrupt_is_one_word_and_loses_nothing(tmp_path, mode):
    log, output = tmp_path / "log", tmp_path / "out"
    child = started(mode, log, output)
    wait_until_it_hangs(child, log)
    done = (output / "records.jsonl").read_bytes()
    child.send_signal(signal.SIGINT)
    text = child.communicate(timeout=30)[0]
    assert (child.returncode, text.strip()) == (130, "stopped")
    assert (output / "records.jsonl").read_bytes().startswith(done)
    run(Fake(log), output, "seed: 0", quiet())


def test_interrupt_that_a_library_turns_into_an_exit_is_still_one_word(tmp_path):
    child = started("exit", tmp_path / "log", tmp_path / "out")
    text = child.communicate(timeout=30)[0]
    assert (child.returncode, text.strip()) == (130, "stopped")


def test_interrupt_that_python_loses_stops_after_the_batch(tmp_path):
    child = started("lose", tmp_path / "log", tmp_path / "out")
    text = child.communicate(timeout=30)[0]
    assert (child.returncode, text.splitlines()[-1]) == (130, "stopped")
    assert (tmp_path / "out" / "records.jsonl").read_bytes().count(b'"image"') == 4


def test_killed_worker_is_one_line_and_nothing_is_lost(tmp_path):
    log, output = tmp_path / "log", tmp_path / "out"
    with ProcessPool(2) as pool, pytest.raises(OSError, match="killed"):
        run(Fake(log, die_at=("b", 1, 8)), output, "", quiet(), pool)
    run(Fake(log), output, "", quiet())
    run(Fake(tmp_path / "other"), tmp_path / "whole", "", quiet())
    assert without_times(output / "table.json") == without_times(tmp_path / "whole" / "table.json")


class SolverFailed(Exception):
    """Cannot be unpickled: its arguments are not its text."""

    def __init__(self, where, row):
        super().__init__(f"{where}: row {row} failed")


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (SolverFailed, RuntimeError, "^SolverFailed: here: row 3 failed$"),
        (LookupError, LookupError, "'here', 3"),
    ],
)
def test_error_of_an_evaluation_is_told_by_another_process(tmp_path, error, kind, words):
    with ProcessPool(1) as pool, pytest.raises(kind, match=words) as raised:
        run(Fails(tmp_path / "log", error), tmp_path / "out", "", quiet(), pool)
    assert "raise self.error" in str(raised.value.__cause__)


def test_workers_end_that_do_not_heed_a_signal(tmp_path):
    with ProcessPool(1) as pool:
        pool.submit(ignore_signals, tmp_path / "started")
        while not (tmp_path / "started").exists():
            time.sleep(0.01)
        (process,) = pool._processes.values()
    process.join(10)
    assert process.exitcode == -signal.SIGKILL


def test_what_a_worker_hangs_on_a_cell_stays_there(tmp_path):
    with ProcessPool(2) as pool:
        run(Hangs(tmp_path / "log"), tmp_path / "out", "", quiet(), pool)


@pytest.mark.parametrize("pool", [lambda: ProcessPool(2), lambda: ThreadPoolExecutor(2)])
def test_any_executor_gives_the_same_table(tmp_path, pool):
    run(Fake(tmp_path / "log"), tmp_path / "here", "", quiet())
    with pool() as executor:
        run(Fake(tmp_path / "log"), tmp_path / "there", "", quiet(), executor)
    tables = [without_times(tmp_path / name / "table.json") for name in ("here", "there")]
    assert tables[0] == tables[1]


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
    assert "Already finished: 40 of 40 images." in text
    assert text.splitlines()[-1] == str(output / "report.html")
    report = (output / "report.html").read_text()
    assert "note: &lt;settings&gt;" in report
    assert "From 20.1" in report
    assert len(list((output / "tensorboard").iterdir())) == 1
    leftover = [path for path in output.rglob(".*") if path.is_file()]
    assert leftover == []


def test_each_file_of_arrays_is_read_once(tmp_path, monkeypatch):
    read = []
    load = ArrayStore.load
    monkeypatch.setattr(ArrayStore, "load", lambda *at: read.append(at[1:]) or load(*at))
    run(Fake(tmp_path / "log"), tmp_path / "out", "", quiet())
    assert len(read) == len(set(read)) == 2 * 2 * 3


def test_missing_arrays_of_a_record_are_named(tmp_path):
    run(Fake(tmp_path / "log"), tmp_path / "out", "", quiet())
    (path,) = (tmp_path / "out").glob(f"arrays/{Fake('').cells()[0].key}/4.npz")
    path.unlink()
    with pytest.raises(ValueError, match=str(path)):
        run(Fake(tmp_path / "log"), tmp_path / "out", "", quiet())


def test_tensorboard_holds_the_table_and_figures(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(Fake(tmp_path / "log"), tmp_path / "out", "", quiet())
    events = EventAccumulator(str(tmp_path / "out" / "tensorboard"))
    events.Reload()
    assert "figures/psnr / image" in events.Tags()["images"]
    assert events.Tags()["scalars"] == []  # a chart of one dot says nothing
    assert b"PSNR" in events.Tensors("table/text_summary")[0].tensor_proto.string_val[0]


def test_another_row_measures_that_row_alone(tmp_path):
    log, output = tmp_path / "log", tmp_path / "out"
    run(Fake(log, methods=["a"]), output, "", quiet())
    log.unlink()
    table = run(Fake(log, methods=["b", "a"]), output, "", quiet())
    assert {line[0] for line in log.read_text().split()} == {"b"}
    assert [row.labels["method"] for row in table.rows] == ["b", "a"]
    log.unlink()
    assert len(run(Fake(log, methods=["b"]), output, "", quiet()).rows) == 1
    assert len(run(Fake(log), output, "", quiet()).rows) == 2
    assert not log.exists()


def test_other_settings_are_refused(tmp_path):
    run(Fake(tmp_path / "log"), tmp_path / "out", "", quiet())
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()}
    with pytest.raises(ValueError, match=r"method a.*noise was 0.1, is now 0.2.*3 other rows"):
        run(Fake(tmp_path / "log", noise=0.2), tmp_path / "out", "", quiet())
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()} == before


def test_a_mistake_writes_nothing_and_blocks_nothing(tmp_path):
    with pytest.raises(ValueError, match="methods"):
        run(Fake(tmp_path / "log", methods=[]), tmp_path / "out", "", quiet())
    assert not (tmp_path / "out").exists()
    fake = Fake(tmp_path / "log")
    fake.evaluate = lambda *_: []  # found only when the first batch is measured
    with pytest.raises(ValueError, match="0 results"):
        run(fake, tmp_path / "out", "", quiet())
    run(Fake(tmp_path / "log", noise=0.2), tmp_path / "out", "", quiet())


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
    ("labels", "word"), [([{"a": 1, "b": 2}, {"b": 2, "a": 1}], "labels"), ([{}, {}], "labels")]
)
def test_ambiguous_cells_are_refused(tmp_path, labels, word):
    fake = Fake(tmp_path / "log")
    fake.cells = lambda: [Cell(label, [0], {}) for label in labels]
    with pytest.raises(ValueError, match=word):
        run(fake, tmp_path / "out", "", quiet())
    assert not (tmp_path / "out").exists()


def test_mistaken_cells_are_refused():
    with pytest.raises(ValueError, match="batch_size"):
        Cell({}, [0], {}, batch_size=0)
    with pytest.raises(ValueError, match="twice"):
        Cell({}, [0, 0], {})


def test_batches_stay_where_they_were():
    cell = Cell({}, range(10), {}, batch_size=4)
    batches = missing_batches(cell, frozenset({0, 1, 2, 3, 5}))
    assert [batch.images for batch in batches] == [[4, 6, 7], [8, 9]]


def test_progress_counts_only_this_run():
    now = [0.0]
    console = Console(file=io.StringIO(), width=200, get_time=lambda: now[0])
    progress = SweepProgress(100, 40, console)
    assert progress.text() == "40/100 images"
    now[0] = 4.0
    progress.advance(20)
    assert progress.text() == "60/100 images, 5 images/s, 0:00:08 left"
    now[0] = 44.0
    progress.advance(1)
    assert progress.text() == "61/100 images, 2.1 s/image, 0:01:22 left"


def test_progress_within_a_batch():
    now = [0.0]
    console = Console(file=io.StringIO(), width=200, get_time=lambda: now[0])
    progress = SweepProgress(20, 0, console)
    now[0] = 4.0
    progress.show_part(1.5)
    assert progress.text() == "1/20 images"
    now[0] = 10.0
    progress.advance(2)  # with what comes after the iterations
    assert progress.text() == "2/20 images, 5 s/image, 0:01:30 left"
    now[0] = 11.0
    progress.show_part(1.0)
    assert progress.text() == "3/20 images, 5 s/image, 0:01:25 left"
    now[0] = 20.0
    progress.advance(2)
    assert progress.text() == "4/20 images, 5 s/image, 0:01:20 left"


class Halfway(Fake):
    """Says when half of a batch is done."""

    def evaluate(self, cell, images, arrays):
        if self.on_progress is not None:
            self.on_progress(len(images) / 2)
        return super().evaluate(cell, images, arrays)


def test_evaluation_in_this_process_shows_how_far_a_batch_is(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(SweepProgress, "show_part", lambda self, part: seen.append(part))
    evaluation = Halfway(tmp_path / "log")
    run(evaluation, tmp_path / "here", "", quiet())
    assert seen
    assert all(0 < part < 3 for part in seen)
    assert evaluation.on_progress is None
    del seen[:]
    with ThreadPoolExecutor(2) as pool:
        run(Halfway(tmp_path / "log"), tmp_path / "there", "", quiet(), pool)
    assert not seen


@pytest.mark.parametrize("worth", [1e-9, 60.0])
def test_more_processes_are_advised_once_where_they_would_help(tmp_path, monkeypatch, worth):
    monkeypatch.setattr(runner, "_gpus", lambda: ["0", "1", "2"])
    monkeypatch.setattr(runner, "WORTH_PROCESSES", worth)

    def told(fake, output, executor=None):
        console = quiet()
        run(fake, tmp_path / output, "", console, executor)
        return " ".join(console.file.getvalue().split()).count("with --processes 3 shares")

    assert told(Fake(tmp_path / "log"), "here") == (worth < 1)
    with ThreadPoolExecutor(2) as pool:
        assert told(Fake(tmp_path / "log"), "there", pool) == 0
    alone = Fake(tmp_path / "log")
    alone.parallel = False
    assert told(alone, "alone") == 0


@pytest.mark.parametrize("method", ["total variation", "flow + layers"])
def test_progress_names_the_method(method):
    file = io.StringIO()
    console = Console(file=file, width=80, force_terminal=True, legacy_windows=False)
    cell = Cell({"noise": 0.00512345, "method": method}, range(1000), {})
    with SweepProgress(1000, 0, console) as progress:
        progress.start(_values(cell))
        progress.advance(500)
    assert method in file.getvalue()
    assert "left" in file.getvalue()


def ignore_signals(path):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    path.touch()
    time.sleep(60)


class Hangs(Fake):
    """Leaves something on a cell that cannot be pickled, as a method with a state may."""

    def evaluate(self, cell, images, arrays):
        object.__setattr__(cell, "used", lambda: None)
        return super().evaluate(cell, images, arrays)


class Fails(Fake):
    """Raises an error."""

    def __init__(self, log, error):
        super().__init__(log)
        self.error = error

    def evaluate(self, cell, images, arrays):
        raise self.error("here", 3)


class Exits(Fake):
    """Does with Ctrl-C what Lightning does."""

    def evaluate(self, cell, images, arrays):
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            sys.exit(1)


class Loses(Fake):
    """Is interrupted where Python cannot raise."""

    def evaluate(self, cell, images, arrays):
        class Deleted:
            def __del__(self):
                signal.raise_signal(signal.SIGINT)

        Deleted()
        return super().evaluate(cell, images, arrays)


def main(mode, log, output):
    assert not {"matplotlib", "tensorboard", "PIL", "pandas"} & {*sys.modules}, "a slow import"
    kinds = {"exit": Exits, "lose": Loses}
    fake = kinds[mode](log) if mode in kinds else Fake(log, hang_at=("b", 0, 4))
    with ProcessPool(2) if mode == "hang-in-processes" else nullcontext() as pool:
        run(fake, output, "seed: 0", quiet(), pool)


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(*sys.argv[1:])))


class Stubborn:
    """Cannot be pickled, as modules with spectral norm."""

    def __reduce__(self):
        raise RuntimeError("Serialization of parametrized modules\nis only supported by state_dict")


def test_what_cannot_be_sent_to_a_process_is_one_line(tmp_path):
    with ThreadPoolExecutor(1) as executor, pytest.raises(ValueError, match="--processes 1") as e:
        list(_measured(Job(Stubborn(), [], ArrayStore(tmp_path)), [], executor))
    assert "\n" not in str(e.value)
