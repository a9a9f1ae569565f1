"""Sweeps on the workers of a Dask cluster: processes that come, die and differ."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from evaluation import run
from evaluation.batches import SentJob, measure_sent
from evaluation.cluster import ClusterExecutor
from evaluation.cluster_worker import check_software, software
from flowprior.command_line import run_command
from tests.dask_cluster import PATIENCE, ROOT, Cluster, wait
from tests.test_evaluate import folder, run_here, save_own_flow  # noqa: F401
from tests.test_evaluation_run import Fake, quiet


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with Cluster(tmp_path_factory.mktemp("cluster"), workers=2) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    output = tmp_path_factory.mktemp("here")
    run(Fake(output / "log"), output / "out", "", quiet())
    return records(output / "out")


def records(output):
    """What a run has measured but for the times, whatever the order."""
    found = {}
    for line in (output / "records.jsonl").read_text().splitlines()[1:]:
        content = json.loads(line)
        content.get("metrics", {}).pop("seconds_per_image", None)
        key = content["cell"], content.get("image")
        assert key not in found
        found[key] = content
    return found


class Waits(Fake):
    """Waits at one batch until a file is there, in Python; notes who unpickles it."""

    def __init__(self, log, at=None, **options):
        super().__init__(log, **options)
        self.at = at

    def __setstate__(self, state):
        self.__dict__.update(state)
        with open(f"{self.log}.pids", "a") as file:
            file.write(f"{os.getpid()}\n")

    def evaluate(self, cell, images, arrays):
        if (cell.labels["method"], cell.repeat, images[0]) == self.at:
            Path(f"{self.log}.waits").write_text(str(os.getpid()))
            wait(Path(f"{self.log}.go").exists)
        return super().evaluate(cell, images, arrays)


def test_two_workers_give_the_records_of_one_process_and_read_the_evaluation_once(
    tmp_path, cluster, expected
):
    with ClusterExecutor(str(cluster.file)) as executor:
        assert executor.workers == 2
        run(Waits(tmp_path / "log"), tmp_path / "out", "", quiet(), executor)
    assert records(tmp_path / "out") == expected
    pids = (tmp_path / "log.pids").read_text().split()
    assert sorted(map(int, pids)) == sorted(cluster.pids().values())
    assert [path for path in (tmp_path / "out").rglob(".*") if path.is_file()] == []


def test_batches_of_a_killed_worker_are_done_elsewhere(tmp_path, cluster, expected):
    more = cluster.add(2)
    log = tmp_path / "log"

    def kill_one():
        wait(Path(f"{log}.waits").exists)
        wait(lambda: Path(f"{log}.waits").read_text())
        pid = int(Path(f"{log}.waits").read_text())
        os.kill(pid, signal.SIGKILL)
        Path(f"{log}.go").touch()

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    with ClusterExecutor(cluster.address) as executor:
        run(Waits(log, at=("a", 1, 4)), tmp_path / "out", "", quiet(), executor)
    killer.join()
    assert records(tmp_path / "out") == expected
    wait(lambda: len(cluster.client.nthreads()) == 3)
    for process in more:
        if process.poll() is None:
            cluster.kill(process)
    cluster.add(2 - len(cluster.client.nthreads()))


def test_result_that_is_lost_with_its_worker_is_computed_again(tmp_path, cluster):
    with received_later(cluster) as (executor, receive):
        future = executor.submit(second_waits, tmp_path)
        wait(lambda: executor._done)
        (one,) = executor._done
        first = int((tmp_path / "first").read_text())
        os.kill(first, signal.SIGKILL)
        wait(lambda: one.status == "lost")
        receive()
        wait(lambda: not executor._done)
        (tmp_path / "go").touch()
        assert future.result(PATIENCE) not in (None, first)
        assert not executor._running
    wait(lambda: len(cluster.client.nthreads()) == 1)
    cluster.add(1)


def test_results_that_do_not_come_together_come_one_by_one(cluster, monkeypatch):
    async def gather(group):
        raise ArithmeticError("one of them")

    with received_later(cluster) as (executor, receive):
        monkeypatch.setattr(executor._client, "gather", gather)
        futures = [executor.submit(divmod, 7, number) for number in (2, 0, 3)]
        wait(lambda: len(executor._done) == 3)
        receive()
        assert [futures[0].result(PATIENCE), futures[2].result(PATIENCE)] == [(3, 1), (2, 1)]
        with pytest.raises(ZeroDivisionError):
            futures[1].result(PATIENCE)
        assert not executor._running


@contextlib.contextmanager
def received_later(cluster):
    """An executor that takes what is done when it is told to."""
    with ClusterExecutor(cluster.address) as executor:
        receive, executor._receive = executor._receive, lambda: None
        yield executor, partial(executor._client.loop.add_callback, receive)


def second_waits(place):
    """The process; the second time, once `go` is there."""
    try:
        with (place / "first").open("x") as file:
            file.write(str(os.getpid()))
    except FileExistsError:
        wait((place / "go").exists)
    return os.getpid()


@contextlib.contextmanager
def started(cluster, at, log, output):
    # A shell that starts the tests in the background would have SIGINT ignored.
    child = subprocess.Popen(
        [sys.executable, __file__, cluster.address, *at, str(log), str(output)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.default_int_handler),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        wait(lambda: Path(f"{log}.waits").exists() or child.poll() is not None)
        yield child
    finally:
        child.kill()
        child.wait()


def images_kept(output):
    return (output / "records.jsonl").read_text().count('"image"')


def test_interrupt_stops_what_workers_do_and_a_later_run_continues(tmp_path, cluster, expected):
    log, output = tmp_path / "log", tmp_path / "out"
    with started(cluster, ("a", "1", "4"), log, output) as child:
        wait(lambda: images_kept(output) == 36)
        child.send_signal(signal.SIGINT)
        text = child.communicate(timeout=PATIENCE)[0]
    assert (child.returncode, text.strip()) == (130, "stopped")
    wait(lambda: not any(cluster.client.processing().values()))
    assert not any(cluster.client.run(calls).values())
    with ClusterExecutor(cluster.address) as executor:
        run(Fake(log), output, "", quiet(), executor)
    assert records(output) == expected


def calls():
    from evaluation.cluster_worker import _calls

    return [*_calls]


def test_lost_scheduler_is_one_line_and_nothing_is_lost(tmp_path, expected):
    log, output = tmp_path / "log", tmp_path / "out"
    with (
        Cluster(tmp_path, workers=1) as cluster,
        started(cluster, ("b", "1", "8"), log, output) as child,
    ):
        wait(lambda: images_kept(output) > 0)
        cluster.scheduler.kill()
        text = child.communicate(timeout=PATIENCE)[0]
    assert child.returncode == 1
    (line,) = text.splitlines()
    assert f"error: the scheduler at {cluster.address} is gone" in line
    Path(f"{log}.go").touch()
    run(Fake(log), output, "", quiet())
    assert records(output) == expected


def test_mistake_of_an_evaluation_is_its_own(tmp_path, cluster):
    with pytest.raises(ZeroDivisionError), ClusterExecutor(cluster.address) as executor:
        run(Wrong(tmp_path / "log"), tmp_path / "out", "", quiet(), executor)


class Wrong(Fake):
    def evaluate(self, cell, images, arrays):
        return images[0] / 0


def test_worker_that_differs_is_named(tmp_path, cluster):
    with ClusterExecutor(cluster.address) as executor:
        setup = executor._setup
        changes = {
            "/nowhere": {"folder": Path("/nowhere")},
            "torch": {"software": {**software(), "torch": "1.0"}},
            "my_missing": {"imports": [(tmp_path / "own.yaml", ["my_missing"])]},
        }
        for word, change in changes.items():
            executor._setup = setup._replace(token=word, **change)
            address = "tcp://" if word != "torch" else "scheduler"
            with pytest.raises(ValueError, match=f"{address}.*{word}") as error:
                executor._check()
            assert "\n" not in str(error.value)
            with pytest.raises(ValueError, match=f"worker tcp://.* on .*{word}"):
                executor.submit(os.getpid).result()


def test_output_that_a_worker_does_not_see_is_named(tmp_path, cluster):
    job = SentJob(tmp_path / "out" / "job", "0")
    with (
        ClusterExecutor(cluster.address) as executor,
        pytest.raises(OSError, match=rf"process \d+ on .* does not see {job.path.parent}"),
    ):
        executor.submit(measure_sent, job, 0, [0]).result()


def test_worker_with_several_threads_is_refused(cluster):
    (worker,) = cluster.add(1, threads=3)
    with pytest.raises(ValueError, match=r"worker tcp://.* has 3 threads.*--nthreads 1"):
        ClusterExecutor(cluster.address)
    cluster.kill(worker)


def test_worker_with_other_code_is_refused(tmp_path, cluster):
    for package in ("flowprior", "evaluation", "datamodules", "callbacks", "lightning_modules"):
        ignored = shutil.ignore_patterns("shipped", "__pycache__")
        shutil.copytree(ROOT / package, tmp_path / package, ignore=ignored)
    with (tmp_path / "flowprior" / "latent.py").open("a") as file:
        file.write("# changed\n")
    (worker,) = cluster.add(1, path=tmp_path)
    with pytest.raises(ValueError, match=r"worker tcp://.* has code of flowprior"):
        ClusterExecutor(cluster.address)
    cluster.kill(worker)


OWN = """
from tests.test_evaluation_run import Fake

class Own(Fake):
    def evaluate(self, cell, images, arrays):
        return [{"psnr": NUMBER, "steps": 1} for image in images]

    def figures(self, table, results):
        return {}
"""


def test_own_module_that_has_changed_is_imported_anew(tmp_path, cluster, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    for number in ("1.5", "22.5"):
        (tmp_path / "my_own_evaluation.py").write_text(OWN.replace("NUMBER", number))
        imports = [(tmp_path / "own.yaml", ["my_own_evaluation"])]
        sys.modules.pop("my_own_evaluation", None)
        import my_own_evaluation

        output = tmp_path / number
        with ClusterExecutor(cluster.address, imports) as executor:
            own = my_own_evaluation.Own(tmp_path / "log")
            table = run(own, output, "", quiet(), executor)
            assert table.rows[0].stats["psnr"].mean == float(number)
            (tmp_path / "my_own_evaluation.py").write_text("changed = True\n")
            executor._setup = executor._setup._replace(token=number)  # as a worker that comes now
            with pytest.raises(ValueError, match="my_own_evaluation is not the one"):
                executor.submit(os.getpid).result()
    del sys.modules["my_own_evaluation"]


def test_command_gives_the_records_of_one_process(folder, cluster, capsys):  # noqa: F811
    from tests.inversion_tables import write_config
    from tests.test_evaluate import INVERSION

    save_own_flow(folder, "my_cluster_glow")
    methods = {"map": {**INVERSION["methods"]["map"], "tune": {"beta": [0.1, 1.0]}}}
    tuned = {**INVERSION, "methods": methods, "tune_images": 2}
    write_config(folder / "own.yaml", tuned, imports=["my_cluster_glow"])
    arguments = ("--config", "own.yaml", "--tune")
    assert run_here(folder, *arguments, "--output", "here") == 0, capsys.readouterr().err
    file = str(cluster.file)
    assert run_here(folder, *arguments, "--output", "there", "--cluster", file) == 0
    assert "2 workers" in capsys.readouterr().out
    for inner in ("", "tuning"):
        there = records(folder / "there" / inner)
        assert there == records(folder / "here" / inner)
        assert len(there) > 4


def test_mistaken_option_is_one_line(folder, capsys):  # noqa: F811
    wrong = {"wrong": "{}", "number": '{"address": 5}', "null": '{"address": null}'}
    for name, content in wrong.items():
        (folder / f"{name}.json").write_text(content)
    mistakes = {
        ("--cluster", "tcp://here:1", "--processes", "2"): "--processes",
        ("--cluster", "scheduler.json"): "neither the file",
        ("--cluster", "wrong.json"): "not a file of a Dask scheduler",
        ("--cluster", "number.json"): "not a file of a Dask scheduler",
        ("--cluster", "null.json"): "not a file of a Dask scheduler",
        ("--cluster", "ftp://here:1"): "ftp",
    }
    for arguments, words in mistakes.items():
        assert run_here(folder, "--config", "density.yaml", *arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line
    assert not (folder / "runs").exists()


def test_scheduler_that_is_not_there_is_one_line(folder, capsys, monkeypatch):  # noqa: F811
    monkeypatch.setattr("evaluation.cluster._ANSWER", 1.0)
    start = time.monotonic()
    assert run_here(folder, "--config", "density.yaml", "--cluster", "127.0.0.1:9") == 1
    assert time.monotonic() - start < 20
    (line,) = capsys.readouterr().err.splitlines()
    assert "no Dask scheduler answers at 127.0.0.1:9" in line
    assert not (folder / "runs").exists()


def test_same_software_passes():
    check_software(software(), "this process")


def main(address, method, repeat, first, log, output):
    at = method, int(repeat), int(first)
    with ClusterExecutor(address) as executor:
        run(Waits(log, at=at), output, "", quiet(), executor)


if __name__ == "__main__":
    from tests import test_evaluate_cluster

    sys.exit(run_command(lambda: test_evaluate_cluster.main(*sys.argv[1:])))
