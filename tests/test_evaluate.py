"""evaluate.py, run as a user runs it: interrupted, killed, repeated, with mistakes."""

import importlib
import json
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

import evaluate
import flowprior
from flowprior.command_line import run_command
from tests.conftest import make_perturbed_glow
from tests.entry_points import ROOT, finish, start, with_weights
from tests.inversion_tables import BLUR, DATA, noise, solver, write_config

CONFIG = """
evaluation:
  class_path: evaluation.density.DensityEvaluation
  init_args:
    weights: weights
    data:
      class_path: datamodules.LayerModels
      init_args: {image_size: 16, num_train: 64, num_val: 9, num_test: 300}
    batch_size: 1
"""
TIMES = ("encoding_time", "decoding_time", "seconds_per_image")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    flow = make_perturbed_glow(1, 16, dtype=torch.float32, levels=2, steps=2, coupling="affine")
    flowprior.save(flow, tmp_path / "weights")
    (tmp_path / "density.yaml").write_text(CONFIG)
    return tmp_path


def metrics(folder: Path, name: str) -> dict[str, dict]:
    (row,) = json.loads((folder / name / "table.json").read_text())["rows"]
    return {name: value for name, value in row["metrics"].items() if name not in TIMES}


def wait_for_records(folder: Path, name: str, process: subprocess.Popen) -> None:
    """Wait until the process has added some records to those that are there."""
    path = folder / name / "records.jsonl"
    before = len(path.read_text().splitlines()) if path.exists() else 0
    for _ in range(6000):
        if path.exists() and len(path.read_text().splitlines()) > before + 5:
            return
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.005)
    raise AssertionError("no records")


def test_killed_and_interrupted_evaluation_gives_the_same_table(folder: Path) -> None:
    whole = finish(folder, "evaluate.py", "--config", "density.yaml", "--output", "whole")
    assert str(folder / "whole" / "report.html") in whole
    expected = metrics(folder, "whole")
    assert expected["bits_per_dim"]["n"] == 300
    assert 0 < expected["bits_per_dim"]["ci95"] < expected["bits_per_dim"]["std"]
    assert "Bits per dimension, maximum" in whole
    for suffix in ("csv", "md", "tex", "json"):
        assert (folder / "whole" / f"table.{suffix}").stat().st_size
    assert len(list((folder / "whole" / "figures").glob("*.png"))) == 4

    arguments = ("evaluate.py", "--config", "density.yaml", "--output", "parts")
    process = start(folder, *arguments)
    wait_for_records(folder, "parts", process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process = start(folder, *arguments)
    wait_for_records(folder, "parts", process)
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=60)[0]
    assert process.returncode in (0, 130), output  # 0 if it was done by then
    assert "Traceback" not in output
    finish(folder, *arguments)
    assert metrics(folder, "parts") == expected
    before = (folder / "parts" / "table.json").read_bytes()
    assert "Already finished" in finish(folder, *arguments)
    assert (folder / "parts" / "table.json").read_bytes() == before


MISTAKES = {
    "unknown config": (["--config", "densty"], ["densty", "density_layers_demo"]),
    "missing weights": (["--evaluation.weights", "nowhere"], ["nowhere"]),
    "misspelt option": (["--evaluation.batchsize", "4"], ["batchsize"]),
    "wrong type": (["--evaluation.batch_size", "many"], ["batch_size", "many"]),
    "sizes differ": (["--evaluation.data.image_size", "32"], ["(1, 16, 16)", "(1, 32, 32)"]),
    "ranges differ": (
        ["--evaluation.data.data_range", "[0, 1]"],
        ["data_range", "(-0.5, 0.5)", "(0.0, 1.0)"],
    ),
    "no process": (["--processes", "0"], ["processes"]),
    "unknown device": (["--evaluation.device", "tpu"], ["device", "tpu"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_is_one_clear_line(
    mistake: str, folder: Path, capsys: pytest.CaptureFixture
) -> None:
    arguments, words = MISTAKES[mistake]
    config = [] if "--config" in arguments else ["--config", "density.yaml"]
    assert run_here(folder, *config, *arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert len(line) < 700
    assert all(word in line for word in words)
    assert not (folder / "runs").exists()


def test_other_settings_do_not_overwrite(folder: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = ("--config", "density.yaml", "--evaluation.images", "2")
    assert run_here(folder, *arguments) == 0
    before = (folder / "runs" / "density" / "records.jsonl").read_bytes()
    assert run_here(folder, *arguments, "--evaluation.data.n_bits", "3") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "n_bits" in line
    assert (folder / "runs" / "density" / "records.jsonl").read_bytes() == before


def run_here(folder: Path, *arguments: str) -> int:
    """The same as a command, in one process that has imported everything."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", [*sys.path])
        patch.setattr(sys, "argv", ["evaluate.py", *arguments])
        return run_command(evaluate.main)


def test_other_data_are_noticed_and_another_flow_is_another_row(
    folder: Path, capsys: pytest.CaptureFixture
) -> None:
    arguments = ("--config", "density.yaml", "--evaluation.images", "2")
    assert run_here(folder, *arguments) == 0
    # The first two images stay; others of the test split change.
    changed = (*arguments, "--evaluation.data.num_test", "299")
    assert run_here(folder, *changed) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "data." in line
    shutil.copytree(folder / "weights", folder / "others")
    assert run_here(folder, *arguments, "--evaluation.weights", "others") == 0
    records = (folder / "runs" / "density" / "records.jsonl").read_text()
    assert records.count('"settings"') == 2


def test_settings_beside_the_weights_are_noticed(
    folder: Path, capsys: pytest.CaptureFixture
) -> None:
    arguments = ("--config", "density.yaml", "--evaluation.images", "2")
    assert run_here(folder, *arguments) == 0
    config = folder / "weights" / "config.json"
    text = config.read_text()
    config.write_text(json.dumps(json.loads(text), indent=7))
    assert config.read_text() != text
    assert run_here(folder, *arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "config.json" in line


def save_own_flow(folder: Path, module: str) -> None:
    (folder / f"{module}.py").write_text(OWN_FLOW)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        own = importlib.import_module(module)
        flow = own.MyGlow(1, 16, levels=2, steps=2, hidden_channels=8).eval()
        flow.encode(torch.rand(4, 1, 16, 16) - 0.5)
        flowprior.save(flow, folder / "weights")


INVERSION = {
    "priors": {"glow": "weights"},
    "data": DATA,
    "images": 4,
    "iterations": 1,
    "batch_size": 2,
    "methods": {"map": {"solver": solver(), "start": "random"}},
    "experiments": [{**BLUR, "noise": noise(0.1)}],
}


@pytest.mark.parametrize("kind", ["density", "inversion"])
def test_worker_processes_know_an_own_flow(folder: Path, kind: str) -> None:
    module = f"my_{kind}_glow"
    save_own_flow(folder, module)
    if kind == "density":
        (folder / "own.yaml").write_text(f"imports: [{module}]{CONFIG}    images: 4\n")
    else:
        write_config(folder / "own.yaml", INVERSION, imports=[module])
    (folder / "elsewhere").mkdir()
    (folder / "weights").rename(folder / "elsewhere" / "weights")
    arguments = ("--config", "../own.yaml", "--output", "own", "--processes", "2")
    finish(folder / "elsewhere", "evaluate.py", *arguments)
    assert (folder / "elsewhere" / "own" / "table.json").is_file()


def test_changed_code_of_an_own_flow_is_noticed(
    folder: Path, capsys: pytest.CaptureFixture
) -> None:
    save_own_flow(folder, "my_glow")
    (folder / "density.yaml").write_text("imports: [my_glow]" + CONFIG)
    arguments = ("--config", "density.yaml", "--evaluation.images", "2")
    assert run_here(folder, *arguments) == 0, capsys.readouterr().err
    (folder / "my_glow.py").write_text(OWN_FLOW + "# changed\n")
    assert run_here(folder, *arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "code" in line


OWN_FLOW = """
from flowprior.flows import Glow


class MyGlow(Glow):
    pass
"""


@pytest.mark.parametrize("option", ["n_bits", "init_args.n_bits"])
def test_null_of_a_nested_option(folder: Path, option: str) -> None:
    arguments = ("--config", "density.yaml", "--evaluation.images", "2")
    assert run_here(folder, *arguments, f"--evaluation.data.{option}", "null") == 0
    assert '"n_bits": null' in (folder / "runs" / "density" / "records.jsonl").read_text()


def test_null_within_named_parts_is_for_the_config(folder: Path, capsys) -> None:
    option = "--evaluation.methods.flow.iterations"
    assert run_here(folder, "--config", "density.yaml", option, "null") == 2
    assert "config file" in capsys.readouterr().err


def test_an_option_of_one_of_several_experiments_is_refused(folder: Path, capsys) -> None:
    option = "--evaluation.experiments.options.measurements=100"
    config = str(ROOT / "configs/evaluate/compressed_sensing_layers.yaml")
    assert run_here(folder, "--config", config, option, "--output", "one_of_several") == 2
    assert "there are 4 experiments" in capsys.readouterr().err
    assert not (folder / "one_of_several").exists()


OWN = """
from datamodules import LayerModels

class OwnModels(LayerModels):
    pass
"""


def test_classes_beside_the_config(folder: Path, capsys: pytest.CaptureFixture) -> None:
    (folder / "my_models.py").write_text(OWN)
    config = CONFIG.replace("datamodules.LayerModels", "my_models.OwnModels")
    (folder / "own.yaml").write_text(f"imports: [my_models]\n{config}    images: 2\n")
    (folder / "elsewhere").mkdir()
    weights = ("--evaluation.weights", "../weights")
    arguments = ("--config", "../own.yaml", "--output", "own")
    assert run_here(folder / "elsewhere", *arguments, *weights) == 0
    before = (folder / "elsewhere" / "own" / "records.jsonl").read_bytes()
    (folder / "my_models.py").write_text(f"{OWN}    # changed\n")
    assert run_here(folder / "elsewhere", *arguments, *weights) == 2
    assert "code" in capsys.readouterr().err
    assert (folder / "elsewhere" / "own" / "records.jsonl").read_bytes() == before


@pytest.mark.parametrize(("code", "word"), [(None, "my_broken"), ("1 / 0", "division")])
def test_own_module_that_cannot_be_imported(
    folder: Path, capsys: pytest.CaptureFixture, code: str | None, word: str
) -> None:
    (folder / "own.yaml").write_text(f"imports: [my_broken]\n{CONFIG}")
    if code:
        (folder / "my_broken.py").write_text(code)
    assert run_here(folder, "--config", "own.yaml") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "imports" in line
    assert word in line
    assert not (folder / "runs").exists()


SLOW = """
import time
from pathlib import Path

Path("importing").touch()
try:
    time.sleep(60)
except BaseException:
    raise ImportError("a library has lost the interrupt")
"""


def test_interrupt_during_the_imports_is_one_word(folder: Path) -> None:
    (folder / "my_slow.py").write_text(SLOW)
    (folder / "own.yaml").write_text(f"imports: [my_slow]\n{CONFIG}")
    # A shell that starts the tests in the background would have SIGINT ignored.
    heed = partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    process = start(folder, "evaluate.py", "--config", "own.yaml", preexec_fn=heed)
    while not (folder / "importing").exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=30)[0]
    assert (process.returncode, output) == (130, "stopped\n")


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "evaluate").glob("*.yaml")))
def test_every_config_can_be_built(path: Path, folder: Path) -> None:
    parser = evaluate.make_parser()
    options = with_weights(path, folder / "weights")
    config = parser.parse_args(["--config", path.stem, *options])
    assert parser.instantiate(config).evaluation.title
