"""train.py on many processes: one is killed, all are told to stop, others start them."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from tests.entry_points import (
    SLOWLY,
    TINY,
    command,
    environment,
    finish,
    scalars,
    start,
    train_here,
)
from tests.test_train import assert_same, wait_for_step
from tests.test_train_pairs import ROSENBROCK, SIMULATED
from tests.test_train_preparation import CONFIG as TRUMPET

GLOW = "class_path: flowprior.flows.Glow"
COUPLING1X1 = """class_path: flowprior.flows.Coupling1x1Flow
    init_args: {in_channels: 1, image_size: 16, steps: [2, 1, 2], hidden_channels: 8,
                data_range: [-0.5, 0.5]}
  optimizer:"""
DIED = "has died"


@dataclass(frozen=True)
class Kind:
    """A kind of training, the curves to compare, and the step after which a process is killed.

    The tolerance, of weights, is above what Adam makes of rounding errors in double precision.
    """

    config: str
    curves: tuple[str, ...]
    step: int
    processes: int = 4
    tolerance: float = 1e-9

    def write(self, folder: Path) -> None:
        digest = "callbacks: [{class_path: tests.entry_points.ParameterDigest}]"
        config = self.config.replace("trainer: {", f"trainer: {{precision: 64-true, {digest}, ")
        every_third = "" if "checkpoints:" in config else "checkpoints: {every_n_steps: 3}\n"
        (folder / "tiny.yaml").write_text(config + every_third)


GLOW_CURVES = ("train/bits_per_dim", "train/gradient_norm", "val/nll")
HINT_CURVES = ("train/joint_nll", "train/conditional_nll", "val/conditional_nll")
# Starting eight processes takes 40 seconds of CPU time: one kind stands for all of them there.
KINDS = {
    "glow": Kind(TINY, GLOW_CURVES, 11, 8),
    "coupling1x1": Kind(
        TINY.partition(GLOW)[0] + COUPLING1X1 + TINY.partition("optimizer:")[2], GLOW_CURVES, 11
    ),
    "trumpet": Kind(TRUMPET, ("train/squared_error", "train/latent_nll", "val/latent_nll"), 12),
    "hint": Kind(ROSENBROCK, HINT_CURVES, 10),
    "conditional glow": Kind(
        SIMULATED,
        ("train/conditional_nll", "train/gradient_norm", "val/conditional_nll"),
        step=9,
        tolerance=1e-7,
    ),
}


def others(process: subprocess.Popen) -> list[int]:
    """The processes that a run has started, by their number."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid=,stat="], capture_output=True, text=True)
    rows = [line.split() for line in listed.stdout.splitlines()]
    return [int(pid) for pid, parent, _ in rows if int(parent) == process.pid]


def assert_same_run(run: Path, whole: Path, kind: Kind) -> None:
    for name in kind.curves:
        found, expected = scalars(run, name), scalars(whole, name)
        assert found == pytest.approx(expected, rel=1e-6), name  # curves are kept as float32
    assert_same(run, whole, kind.tolerance)


def end(process: subprocess.Popen, status: int, word: str) -> None:
    """The run, all of it, ends soon and with one line."""
    output, _ = process.communicate(timeout=120)  # until no process has the pipe
    assert process.returncode == status, output
    assert "Traceback" not in output
    assert output.splitlines()[-1].startswith("train.py: ")
    assert [word in line for line in output.splitlines()].count(True) == 1, output


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_killed_process_changes_nothing(name: str, tmp_path: Path) -> None:
    kind, run = KINDS[name], tmp_path / "parts"
    kind.write(tmp_path)
    train_here(tmp_path, "--output", "one")
    arguments = ("--config", "tiny.yaml", "--output", "parts", "--trainer.devices")
    process = start(tmp_path, "train.py", *arguments, str(kind.processes), SLOWLY)
    wait_for_step(run, kind.step, process)
    os.kill(others(process)[kind.processes // 2], signal.SIGKILL)
    end(process, 1, DIED)
    fewer = kind.processes // 2
    output = finish(tmp_path, "train.py", *arguments, str(fewer))
    assert "resuming at step" in output
    assert f"on {fewer} x cpu" in output
    assert_same_run(run, tmp_path / "one", kind)


@pytest.mark.slow
def test_eight_processes_follow_the_trajectory_of_one(tmp_path: Path) -> None:
    kind = KINDS["glow"]
    kind.write(tmp_path)
    train_here(tmp_path, "--output", "one")
    arguments = ("--config", "tiny.yaml", "--output", "eight", "--trainer.devices", "8")
    assert "on 8 x cpu" in finish(tmp_path, "train.py", *arguments)
    files = [tmp_path / "eight" / f"digests-{rank}" for rank in range(8)]
    digests = [file.read_text().splitlines() for file in files]
    assert len(set(digests[0])) == 24
    assert all(each == digests[0] for each in digests)
    assert_same_run(tmp_path / "eight", tmp_path / "one", kind)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tiny.yaml").write_text(TINY)
    return tmp_path


@pytest.fixture
def two(folder: Path) -> subprocess.Popen:
    """A run on two processes that has made a checkpoint."""
    process = start(folder, "train.py", "--config", "tiny.yaml", SLOWLY, "--trainer.devices", "2")
    wait_for_step(folder / "runs" / "tiny", 3, process)
    return process


def test_a_killed_second_process_is_one_line(two: subprocess.Popen) -> None:
    os.kill(others(two)[0], signal.SIGKILL)
    end(two, 1, "another process of the run has died (number 1: SIGKILL)")


def test_a_killed_first_process_is_one_line(two: subprocess.Popen) -> None:
    two.kill()
    end(two, -signal.SIGKILL, "the first process of the run has died")


def test_two_processes_stop_when_told(two: subprocess.Popen, folder: Path) -> None:
    for number in (two.pid, *others(two)):  # as a scheduler does it
        os.kill(number, signal.SIGTERM)
    end(two, 130, "stopped by SIGTERM after step")
    finish(folder, "train.py", "--config", "tiny.yaml")
    assert list(scalars(folder / "runs" / "tiny", GLOW_CURVES[0])) == list(range(24))


class Handlers(Callback):
    """Notes who takes the signals while training runs."""

    def on_train_batch_start(self, trainer: pl.Trainer, *_) -> None:
        taking = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        names = {getattr(handler, "__qualname__", repr(handler)) for handler in taking}
        Path(trainer.logger.save_dir, "handlers").write_text("\n".join(names))


def test_nobody_else_takes_the_signals(folder: Path) -> None:
    callback = "--trainer.callbacks+=tests.test_train_processes.Handlers"
    train_here(folder, callback, "--trainer.max_steps", "1")
    assert (folder / "runs/tiny/handlers").read_text() == "StopOnSignal._receive"


class KillLoaders(Callback):
    """Kills the loading processes after the second step."""

    def on_train_batch_end(self, trainer: pl.Trainer, *_) -> None:
        if trainer.global_step == 2:
            for child in multiprocessing.active_children():
                child.kill()


def test_a_killed_loading_process_is_one_line(folder: Path, capsys: pytest.CaptureFixture) -> None:
    callback = "--trainer.callbacks+=tests.test_train_processes.KillLoaders"
    # More images than are loaded ahead, so that some are always missing.
    train_here(folder, callback, "--data.num_workers", "1", "--data.num_train", "128", status=1)
    (line,) = [each for each in capsys.readouterr().err.splitlines() if "error" in each]
    assert "a loading process has died, perhaps because memory ran out" in line


def test_sharded_flows_are_refused(folder: Path, capsys: pytest.CaptureFixture) -> None:
    sharded = "{class_path: pytorch_lightning.strategies.ModelParallelStrategy}"
    (folder / "tiny.yaml").write_text(
        TINY.replace("trainer: {", f"trainer: {{strategy: {sharded}, ")
    )
    train_here(folder, "--trainer.devices", "2", status=2)
    assert "trainer.strategy is ModelParallelStrategy: expected auto or ddp" in (
        capsys.readouterr().err
    )
    assert not (folder / "runs").exists()


def test_too_few_validation_images_are_named(folder: Path, capsys: pytest.CaptureFixture) -> None:
    train_here(folder, "--trainer.devices", "4", "--data.num_val", "3", status=2)
    assert "3 validation images, expected at least 4, one for each process" in (
        capsys.readouterr().err
    )


def torchrun(node: int) -> dict:
    """As in docs/training.md, with one process on each of two nodes."""
    options = "--nnodes 2 --nproc-per-node 1 --node-rank {} --master-addr localhost"
    port = 15000 + os.getpid() % 10000  # two tests at once must not meet there
    options = f"{options.format(node)} --master-port {port}".split()
    before = [sys.executable, "-m", "torch.distributed.run", *options]
    return {"args": [*before, *command("train.py")[1:]], "env": environment()}


def srun(node: int) -> dict:
    """What SLURM's srun gives a process, of one task on each of two nodes."""
    settings = {"JOB_ID": os.getpid(), "JOB_NAME": "train", "NTASKS": 2, "NTASKS_PER_NODE": 1}
    settings |= {"NNODES": 2, "NODELIST": "localhost", "PROCID": node, "LOCALID": 0}
    variables = {f"SLURM_{name}": str(value) for name, value in settings.items()}
    given = {**environment(), **variables, "SLURM_NODEID": str(node)}
    return {"args": command("train.py"), "env": given}


def run_on_nodes(starter, folders: list[Path], *options: str) -> list[tuple[int, str]]:
    """Status and output of train.py on two nodes, which see these folders."""
    pipes = {"text": True, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    options = ("--config", "tiny.yaml", "--trainer.num_nodes", "2", *options)
    nodes = []
    for given, folder in zip(map(starter, range(2)), folders, strict=True):
        arguments = [*given["args"], *options, "--trainer.devices", "1"]
        nodes.append(subprocess.Popen(arguments, cwd=folder, env=given["env"], **pipes))
    outputs = [node.communicate(timeout=400)[0] for node in nodes]
    return [(node.returncode, output) for node, output in zip(nodes, outputs, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize("starter", [torchrun, srun])
def test_nodes_started_by_others_train_as_one(starter, tmp_path: Path) -> None:
    kind, epoch = KINDS["glow"], ("--trainer.max_epochs", "1")
    kind.write(tmp_path)
    train_here(tmp_path, *epoch, "--output", "one")
    ends = run_on_nodes(starter, [tmp_path] * 2, *epoch, "--output", "two")
    assert [status for status, _ in ends] == [0, 0], ends
    assert "on 2 x cpu" in ends[0][1]
    assert_same_run(tmp_path / "two", tmp_path / "one", kind)


@pytest.mark.slow
def test_nodes_that_see_different_folders_are_refused(folder: Path) -> None:
    (folder / "elsewhere").mkdir()
    shutil.copy(folder / "tiny.yaml", folder / "elsewhere")
    train_here(folder, "--trainer.max_steps", "3")
    ends = run_on_nodes(srun, [folder, folder / "elsewhere"])
    for status, output in ends:
        assert status == 1, output
        assert "processes start at the steps 3, 0: all nodes must see the same" in output
        assert "Traceback" not in output


def test_devices_that_are_not_the_tasks_are_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for name, value in srun(0)["env"].items():
        if name.startswith("SLURM_"):
            monkeypatch.setenv(name, value)
    train_here(folder, "--trainer.devices", "4", "--trainer.num_nodes", "2", status=2)
    assert "--ntasks-per-node=1` does not match" in capsys.readouterr().err
    monkeypatch.delenv("SLURM_NTASKS_PER_NODE")
    train_here(folder, status=2)
    assert capsys.readouterr().err.startswith("train.py: error: You set `--ntasks=2`")
