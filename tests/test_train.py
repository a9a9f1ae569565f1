"""train.py, run as a user runs it: interrupted, killed, on two processes, with mistakes."""

import inspect
import io
import math
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from rich.console import Console
from safetensors.torch import load_file

import flowprior
import train
from datamodules import CelebA, CelebAHQ, ChestXray, ImageFolder, LayerModels
from datamodules.prepare import prepare
from flowprior.command_line import run_command
from flowprior.flows import Flow, Glow
from flowprior.metrics import bits_per_dim
from lightning_modules import FlowModule
from tests import picture_files
from tests.entry_points import ROOT, SLOWLY, TINY, finish, scalars, start, train_here

CONFIGS = ROOT / "configs" / "train"
CURVE = "train/bits_per_dim"


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("reference")
    (folder / "tiny.yaml").write_text(TINY)
    finish(folder, "train.py", "--config", "tiny.yaml")
    return folder / "runs" / "tiny"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tiny.yaml").write_text(TINY)
    return tmp_path


def weights(run: Path) -> dict[str, torch.Tensor]:
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return {name: value for name, value in state.items() if name.startswith("flow.")}


def assert_same(run: Path, other: Path, tolerance: float) -> None:
    first, second = weights(run), weights(other)
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(
            first[name].double(), second[name].double(), rtol=tolerance, atol=tolerance
        )


def test_run_leaves_what_it_promises(reference: Path) -> None:
    assert len(scalars(reference, CURVE)) == 24
    names = ("val/nll", "val/bits_per_dim", "train/gradient_norm", "train/images_per_second")
    for name in (*names, "train/step_seconds", "latent/kurtosis"):
        assert scalars(reference, name)
    flow = flowprior.load(reference / "weights")
    assert flow.sample(2).shape == (2, 1, 16, 16)
    assert (reference / "config.yaml").exists()


def test_trajectory_is_that_of_a_plain_loop(reference: Path) -> None:
    torch.manual_seed(0)
    flow = Glow(1, 16, levels=2, steps=2, hidden_channels=8, coupling="affine").train()
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-3)
    loader = LayerModels(16, num_train=64, num_val=9, num_test=8, batch_size=8).train_dataloader()
    losses = []
    for _ in range(3):
        for x in loader:
            optimizer.zero_grad()
            loss = bits_per_dim(flow.log_prob(x), 256, 8).mean()
            loss.backward()
            torch.nn.utils.clip_grad_value_(flow.parameters(), 5.0)
            torch.nn.utils.clip_grad_norm_(flow.parameters(), 100.0)
            optimizer.step()
            losses.append(loss.item())
    assert list(scalars(reference, CURVE).values()) == losses
    for name, value in flow.state_dict().items():
        assert torch.equal(value, weights(reference)[f"flow.{name}"]), name


def test_run_starts_from_exported_weights(folder: Path, reference: Path) -> None:
    config = yaml.safe_load(TINY)
    exported = {"folder": str(reference / "weights")}
    config["model"]["flow"] = {"class_path": "flowprior.load", "init_args": exported}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config))
    train_here(folder, "--trainer.max_steps", "1")
    after = weights(folder / "runs" / "tiny")
    for name, before in flowprior.load(**exported).named_parameters():
        moved = (after[f"flow.{name}"] - before).abs().max()
        assert 0 < moved < 2e-3, name  # one step of Adam at 1e-3


def wait_for_step(run: Path, step: int, process) -> None:
    """Wait until the run has a checkpoint at this step or later."""
    path = run / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 400  # many processes take their time to start
    while time.monotonic() < deadline:
        if path.exists() and torch.load(path, weights_only=True)["global_step"] >= step:
            return
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    raise AssertionError(f"no checkpoint of step {step}")


def test_killed_run_resumes_exactly(folder: Path, reference: Path) -> None:
    run = folder / "runs" / "tiny"
    for step in (3, 14):  # within an epoch, and after one
        process = start(folder, "train.py", "--config", "tiny.yaml", SLOWLY)
        wait_for_step(run, step, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert "resuming at step" in finish(folder, "train.py", "--config", "tiny.yaml")
    expected, found = scalars(reference, CURVE), scalars(run, CURVE)
    assert found == pytest.approx(expected, abs=1e-6)
    assert scalars(run, "val/nll") == pytest.approx(scalars(reference, "val/nll"), abs=1e-3)
    assert_same(run, reference, 1e-6)


@pytest.mark.parametrize("limits", [(15,), (16, 20)], ids=str)
def test_limited_run_goes_on_to_its_end(
    folder: Path, reference: Path, limits: tuple[int, ...], capsys: pytest.CaptureFixture
) -> None:
    for limit in limits:
        train_here(folder, "--trainer.max_steps", str(limit))
        assert f"finished at step {limit}" in capsys.readouterr().out
    train_here(folder)
    assert "finished at step 24" in capsys.readouterr().out
    run = folder / "runs" / "tiny"
    assert scalars(run, CURVE) == pytest.approx(scalars(reference, CURVE), abs=1e-6)
    assert_same(run, reference, 1e-6)
    found = scalars(run, CURVE)
    train_here(folder)
    assert "finished already" in capsys.readouterr().out
    assert scalars(run, CURVE) == found


def test_resuming_in_double_precision_rounds_nothing(folder: Path) -> None:
    precision = ("--trainer.precision", "64-true")
    train_here(folder, *precision, "--output", "whole")
    for limit in ("5", "24"):
        train_here(folder, *precision, "--output", "parts", "--trainer.max_steps", limit)
    assert_same(folder / "parts", folder / "whole", 1e-12)


def test_run_without_validation_exports_its_last_weights(
    folder: Path, capsys: pytest.CaptureFixture
) -> None:
    config = folder / "tiny.yaml"
    config.write_text(
        TINY.replace("trainer: {", "trainer: {callbacks: [{class_path: callbacks.EMA}], ")
    )
    train_here(folder, "--trainer.max_steps", "3")
    exported = Path(capsys.readouterr().out.strip().splitlines()[-1].partition("weights: ")[2])
    assert exported == Path("runs/tiny/weights")
    flow = flowprior.load(folder / exported)
    for name, value in weights(folder / "runs" / "tiny").items():  # the averaged ones
        torch.testing.assert_close(flow.state_dict()[name.removeprefix("flow.")], value)


def test_run_killed_before_its_first_checkpoint_draws_each_step_once(
    folder: Path, reference: Path
) -> None:
    train_here(folder, "--trainer.max_steps", "3")
    shutil.rmtree(folder / "runs" / "tiny" / "checkpoints")
    train_here(folder)
    assert scalars(folder / "runs" / "tiny", CURVE).keys() == scalars(reference, CURVE).keys()


def test_resuming_after_an_epoch_keeps_what_was_drawn_of_it(folder: Path, reference: Path) -> None:
    train_here(folder, "--trainer.max_epochs", "2")
    train_here(folder)
    for name in ("latent/kurtosis", "val/nll"):
        found = scalars(folder / "runs" / "tiny", name)
        assert found == pytest.approx(scalars(reference, name), abs=1e-3)
        assert list(found) == [7, 15, 23]


def test_longer_run_keeps_the_last_rate_of_its_schedule(folder: Path) -> None:
    schedule = ["--model.lr_scheduler", "flowprior.schedules.WarmupCosine"]
    options = [*schedule, "--model.lr_scheduler.warmup_steps", "2", "--trainer.max_epochs"]
    train_here(folder, *options, "2", "--trainer.max_steps", "5")
    train_here(folder, *options, "2")
    train_here(folder, *options, "3")
    rates = list(scalars(folder / "runs" / "tiny", "train/learning_rate").values())
    falling = [1e-5 + 0.99e-3 * (1 + math.cos(math.pi * step / 14)) / 2 for step in range(14)]
    assert rates == pytest.approx([0.5e-3, 1e-3, *falling, *[1e-5] * 8])


def test_what_a_kill_left_behind_is_removed(folder: Path) -> None:
    checkpoints = folder / "runs" / "tiny" / "checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / ".01ab23cd-last.ckpt").write_bytes(b"half a checkpoint")
    (checkpoints / ".mine-last.ckpt").write_bytes(b"of the user")
    train_here(folder, "--trainer.max_steps", "1")
    assert sorted(path.name for path in checkpoints.iterdir()) == [".mine-last.ckpt", "last.ckpt"]


def test_second_run_into_a_folder_is_refused(folder: Path, capsys: pytest.CaptureFixture) -> None:
    run = folder / "runs" / "tiny"
    run.mkdir(parents=True)
    holder = (
        "import sys; from flowprior.io import sole_writer\n"
        "with sole_writer(sys.argv[1]): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(run)],
        cwd=ROOT,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout.readline() == "held\n"
        train_here(folder, status=1)
        process.stdin.close()
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "Seed set" not in line]
    assert "runs/tiny" in line
    assert "another process" in line
    assert [path.name for path in run.iterdir()] == [".lock"]
    train_here(folder, "--trainer.max_steps", "1")


def test_bar_shows_steps_and_loss(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    console = partial(Console, file=screen, force_terminal=True, width=120)
    monkeypatch.setattr("callbacks.progress.Console", console)
    train_here(folder, "--trainer.max_steps", "3")
    bars = [line for line in screen.getvalue().splitlines() if "━" in line]
    assert "/3" in bars[-1]
    assert "train/bits_per_dim" in bars[-1]


INTERRUPTED = """
import runpy, signal, sys

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == "pytorch_lightning.cli":
            sys.meta_path.remove(self)
            signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, Interrupt())
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
sys.argv = ["train.py", "--config", "tiny.yaml"]
runpy.run_path(sys.path[0] + "/train.py", run_name="__main__")
"""


def test_ctrl_c_during_the_imports_is_one_word(folder: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}){INTERRUPTED}"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (run.returncode, run.stdout, run.stderr) == (130, "", "stopped\n")


def test_ctrl_c_saves_and_resumes_exactly_with_averaging(folder: Path) -> None:
    config = folder / "tiny.yaml"
    config.write_text(
        TINY.replace("trainer: {", "trainer: {callbacks: [{class_path: callbacks.EMA}], ")
    )
    train_here(folder, "--output", "whole")
    process = start(folder, "train.py", "--config", "tiny.yaml", "--output", "parts", SLOWLY)
    wait_for_step(folder / "parts", 3, process)
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 130, output
    assert "Traceback" not in output
    assert "train.py: stopped by SIGINT" in output  # asked for, so not an error
    finish(folder, "train.py", "--config", "tiny.yaml", "--output", "parts")
    assert_same(folder / "parts", folder / "whole", 1e-6)
    whole = scalars(folder / "whole", CURVE)
    assert scalars(folder / "parts", CURVE) == pytest.approx(whole, abs=1e-6)
    assert scalars(folder / "parts", "train/step_seconds").keys() == whole.keys()
    exported = [load_file(folder / run / "weights/model.safetensors") for run in ("parts", "whole")]
    for name in exported[0]:
        torch.testing.assert_close(exported[0][name], exported[1][name])


def test_two_processes_follow_the_trajectory_of_one(folder: Path) -> None:
    # In double precision: in single, Adam makes steps of full length of gradients that are nothing
    # but rounding errors.
    config = folder / "tiny.yaml"
    digest = "{class_path: tests.entry_points.ParameterDigest}"
    config.write_text(
        TINY.replace("trainer: {", f"trainer: {{precision: 64-true, callbacks: [{digest}], ")
    )
    train_here(folder, "--output", "one")
    arguments = ("--output", "two", "--trainer.devices", "2")
    two = finish(folder, "train.py", "--config", "tiny.yaml", *arguments)
    assert "on 2 x cpu" in two
    digests = [(folder / "two" / f"digests-{rank}").read_text().splitlines() for rank in (0, 1)]
    assert len(set(digests[0])) == 24
    assert digests[0] == digests[1]
    for name in (CURVE, "train/gradient_norm", "val/nll"):
        found, expected = scalars(folder / "two", name), scalars(folder / "one", name)
        assert found == pytest.approx(expected, rel=1e-6), name  # curves are kept as float32
    assert_same(folder / "two", folder / "one", 1e-9)


MISTAKES = {
    "unknown config": (["--config", "tinny"], ["tinny", "glow_layers_demo"]),
    "misspelt option": (["--config", "tiny.yaml", "--data.batchsize", "4"], ["batchsize"]),
    "misspelt flow option": (["--config", "tiny.yaml", "--model.flow.hiden", "4"], ["hiden"]),
    "wrong type": (["--config", "tiny.yaml", "--data.batch_size", "many"], ["batch_size", "many"]),
    "odd size": (
        ["--config", "tiny.yaml", "--model.flow.image_size", "18"],
        ["image_size", "divisible", "18"],
    ),
    "sizes differ": (["--config", "tiny.yaml", "--data.image_size", "32"], ["(1, 32, 32)"]),
    "bad value": (["--config", "tiny.yaml", "--data.n_bits", "40"], ["n_bits", "40"]),
    "batch over processes": (
        ["--config", "tiny.yaml", "--trainer.devices", "3"],
        ["batch_size", "3 processes"],
    ),
    "batch too large": (["--config", "tiny.yaml", "--data.batch_size", "65"], ["batch_size", "64"]),
    "flow too large": (
        ["--config", "tiny.yaml", "--model.flow.hidden_channels", "10000000"],
        ["model.flow", "memory"],
    ),
    "binary config": (["--config", "binary.yaml"], ["--config", "binary.yaml"]),
    "config without options": (["--config", "words.yaml"], ["--config", "words.yaml"]),
    "schedule by validation": (
        [
            *["--config", "tiny.yaml"],
            *["--model.lr_scheduler", "torch.optim.lr_scheduler.ReduceLROnPlateau"],
        ],
        ["model.lr_scheduler", "ReduceLROnPlateau"],
    ),
    "bad schedule": (
        [
            *["--config", "tiny.yaml"],
            *["--model.lr_scheduler", "flowprior.schedules.WarmupCosine"],
            *["--model.lr_scheduler.warmup_steps", "-1"],
        ],
        ["warmup_steps", "-1"],
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_is_one_clear_line(
    mistake: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    arguments, words = MISTAKES[mistake]
    (folder / "binary.yaml").write_bytes(b"\x89PNG\r\n\x1a\n\x00\xff")
    (folder / "words.yaml").write_text("only words")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    assert run_command(train.main) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "Seed set" not in line]
    assert len(lines) == 1, lines
    assert len(lines[0]) < 500
    assert all(word in lines[0] for word in words)
    assert not (folder / "runs").exists()


def test_other_architecture_does_not_overwrite(
    folder: Path, reference: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    before = (reference / "checkpoints" / "last.ckpt").read_bytes()
    arguments = ["--config", "tiny.yaml", "--output", str(reference), "--model.flow.steps", "3"]
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    assert run_command(train.main) == 2
    assert "model.flow.steps=2" in capsys.readouterr().err
    assert (reference / "checkpoints" / "last.ckpt").read_bytes() == before


OWN = """
import own_helper
from flowprior.losses import MaximumLikelihood

class Doubled(MaximumLikelihood):
    monitor = "twice"

    def __call__(self, flow, images):
        return {"twice": own_helper.FACTOR * super().__call__(flow, images)["bits_per_dim"]}
"""


@pytest.fixture
def own(folder: Path) -> Iterator[Path]:
    """A folder with a config and a loss of one's own beside it."""
    (folder / "own_losses.py").write_text(OWN)
    (folder / "own_helper.py").write_text("FACTOR = 2")
    config = yaml.safe_load(TINY)
    config["imports"] = ["own_losses"]
    config["model"]["loss"] = "own_losses.Doubled"
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config))
    yield folder
    for name in ("own_losses", "own_helper"):
        sys.modules.pop(name, None)


def test_loss_beside_the_config(own: Path, reference: Path) -> None:
    before = list(sys.path)
    train_here(own, "--trainer.max_epochs", "1")
    assert sys.path == [*before, str(own)]  # for worker processes
    found = scalars(own / "runs" / "tiny", "train/twice")
    assert found[0] == pytest.approx(2 * scalars(reference, CURVE)[0])
    assert flowprior.weights.read_config(own / "runs/tiny/weights")["card"]["val/twice"] > 0


OWN_FLOW = """
import torch
from flowprior.flows import Flow
from flowprior.latent import Latent

class Scaling(Flow):
    def __init__(self, size, gain=1.0):
        arguments = {"size": size, "gain": gain}
        latent = Latent({"a": (100,), "b": (size**2 - 100,)})
        super().__init__((1, size, size), (-0.5, 0.5), arguments, latent)
        self.log_scale = torch.nn.Parameter(torch.full((size**2,), gain).log())

    def encode(self, x):
        return x.flatten(1) * (-self.log_scale).exp(), -self.log_scale.sum().expand(len(x))

    def decode(self, z):
        x = z * self.log_scale.exp()
        return x.view(-1, *self.image_shape), self.log_scale.sum().expand(len(z))
"""


@pytest.fixture
def own_flow(folder: Path) -> Iterator[Path]:
    """A folder with a config and a flow of one's own, whose latent is no image, beside it."""
    (folder / "own_flow.py").write_text(OWN_FLOW)
    config = yaml.safe_load(TINY)
    config["imports"] = ["own_flow"]
    scaling = {"class_path": "own_flow.Scaling", "init_args": {"size": 16, "gain": 2.0}}
    config["model"]["flow"] = scaling
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config))
    yield folder
    sys.modules.pop("own_flow", None)
    Flow.registry.pop("own_flow.Scaling", None)


def test_flow_of_ones_own_with_a_latent_that_is_no_image(own_flow: Path) -> None:
    train_here(own_flow, "--trainer.max_epochs", "2")
    run = own_flow / "runs" / "tiny"
    assert len(scalars(run, "latent/radius")) == 2
    first, last = (scalars(run, CURVE)[step] for step in (0, 15))
    assert last < first
    assert flowprior.load(run / "weights").arguments["gain"] == 2.0


def test_flow_that_could_not_be_loaded_again_is_named_before_it_is_trained(
    own_flow: Path, capsys: pytest.CaptureFixture
) -> None:
    forgets = OWN_FLOW.replace(', "gain": gain}', "}")
    (own_flow / "own_flow.py").write_text(forgets)
    train_here(own_flow, status=2)
    line = capsys.readouterr().err.splitlines()[-1]
    assert "Scaling.arguments" in line
    assert "must have gain" in line
    assert not (own_flow / "runs").exists()


@pytest.mark.parametrize(
    ("imports", "source", "words"),
    [
        ("[own_losses]", "1 / 0", ["own_losses", "ZeroDivisionError"]),
        ("[own_losses]", "def", ["own_losses", "SyntaxError"]),
        ("[nowhere]", "", ["nowhere"]),
        ("own_losses", "", ["imports", "list"]),
        ("[callbacks]", "", ["callbacks", "another name"]),
    ],
)
def test_wrong_imports_are_one_line(
    own: Path, imports: str, source: str, words: list[str], capsys: pytest.CaptureFixture
) -> None:
    (own / "own_losses.py").write_text(source)
    (own / "callbacks.py").write_text("")
    (own / "tiny.yaml").write_text(f"{TINY}imports: {imports}\n")
    train_here(own, status=2)
    (line,) = capsys.readouterr().err.splitlines()
    assert all(word in line for word in ["imports", *words])


def test_imports_on_the_command_line_are_refused(
    folder: Path, capsys: pytest.CaptureFixture
) -> None:
    train_here(folder, "--imports", "[own_losses]", status=2)
    assert "config file" in capsys.readouterr().err


def test_fast_dev_run_writes_nothing(folder: Path) -> None:
    train_here(folder, "--trainer.fast_dev_run", "true")
    assert not (folder / "runs").exists()


def test_divergence_stops_with_the_last_good_checkpoint(
    folder: Path, capsys: pytest.CaptureFixture
) -> None:
    train_here(folder, "--model.optimizer.lr", "1e20", status=1)
    assert "gradient norm became" in capsys.readouterr().err
    assert not list(folder.glob("runs/tiny/checkpoints/*.ckpt"))


def test_truncated_checkpoint_is_reported(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    checkpoints = folder / "runs" / "tiny" / "checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / "last.ckpt").write_bytes(b"PK\x03\x04 half a checkpoint")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["train.py", "--config", "tiny.yaml"])
    assert run_command(train.main) == 2
    assert "last.ckpt" in capsys.readouterr().err


def test_checkpoint_without_optimiser_is_reported(
    folder: Path, reference: Path, capsys: pytest.CaptureFixture
) -> None:
    path = folder / "runs" / "tiny" / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    state = torch.load(reference / "checkpoints" / "last.ckpt", weights_only=True)
    del state["optimizer_states"]
    torch.save(state, path)
    train_here(folder, status=2)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "last.ckpt" in error
    assert "optimizer_states" in error


def test_full_disk_keeps_the_last_checkpoint(folder: Path, reference: Path) -> None:
    run = folder / "runs" / "tiny"
    shutil.copytree(reference, run)
    before = (run / "checkpoints" / "last.ckpt").read_bytes()
    # A limit on the size of files fails as a full disk does: in the middle of a write.
    process = start(
        *(folder, "train.py", "--config", "tiny.yaml", "--trainer.max_epochs", "5"),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
    )
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 1, output
    (line,) = [line for line in output.splitlines() if "error" in line]
    assert "runs/tiny" in line
    assert "Traceback" not in output
    assert (run / "checkpoints" / "last.ckpt").read_bytes() == before
    train_here(folder, "--trainer.max_epochs", "5")
    assert len(scalars(run, CURVE)) == 40


@pytest.mark.parametrize("changed", ["images", "code"])
def test_other_images_or_code_are_not_continued_with(own: Path, capsys, changed: str) -> None:
    source = picture_files.folder(own / "pictures", size=16)
    config = yaml.safe_load((own / "tiny.yaml").read_text())
    config["model"]["flow"]["init_args"]["in_channels"] = 3
    config["data"] = {
        "class_path": "datamodules.ImageFolder",
        "init_args": {"source": str(source), "image_size": 16, "batch_size": 2, "n_bits": 8},
    }
    (own / "tiny.yaml").write_text(yaml.safe_dump(config))
    train_here(own, "--trainer.max_epochs", "1")
    before = (own / "runs/tiny/checkpoints/last.ckpt").read_bytes()
    if changed == "images":
        first, second = sorted(path for path in source.rglob("*") if path.is_file())[:2]
        second.write_bytes(first.read_bytes())
    else:
        (own / "own_helper.py").write_text("FACTOR = 3")
    train_here(own, "--trainer.max_epochs", "2", status=2)
    assert "other images or code" in capsys.readouterr().err
    assert (own / "runs/tiny/checkpoints/last.ckpt").read_bytes() == before


TINY_SETS = {
    "glow_celeba": (CelebAHQ, partial(picture_files.celeba_hq, number=14, size=128)),
    "glow_celeba32": (CelebA, picture_files.celeba),
    "glow_chest": (ChestXray, partial(picture_files.chest, size=128)),
    "glow_folder": (ImageFolder, partial(picture_files.folder, size=64)),
    "glow_folder_small": (ImageFolder, partial(picture_files.folder, size=32)),
    "coupling1x1_celeba32": (CelebA, picture_files.celeba),
    "trumpet_celeba64": (CelebA, picture_files.celeba),
    "trumpet_chest": (ChestXray, partial(picture_files.chest, size=128)),
}
SMALL = {
    "glow": "--model.flow.hidden_channels 8 --model.flow.steps 1",
    "coupling1x1": "--model.flow.hidden_channels 8",
    "trumpet": "--model.flow.low_hidden_channels 8 --model.flow.low_steps 1 "
    "--model.flow.widths [4,4]",
    "rosenbrock": "--model.flow.hidden_channels 8",
    # Waves take long, and have tests of their own.
    "seismic": "--model.flow.hidden_channels 8 --model.flow.steps 1 --data.operator denoising "
    "--data.options {} --data.folder null",
}


def small_options(name: str) -> str:
    """Options that make the network of a shipped config small."""
    return SMALL[name.removeprefix("conditional_glow_").partition("_")[0]]


@pytest.mark.parametrize("name", [file.stem for file in CONFIGS.glob("*.yaml")])
def test_every_config_makes_a_step(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if name in TINY_SETS:
        init_args = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())["data"]["init_args"]
        module, make = TINY_SETS[name]
        (tmp_path / "source").mkdir()
        data = module(str(make(tmp_path / "source")), init_args["image_size"])
        prepare(data, Path(init_args["source"]))
    if "mnist" in name:
        picture_files.trusted_mnist(tmp_path / "data", monkeypatch)
    if name.endswith("cifar10"):
        picture_files.trusted_cifar(tmp_path / "data", monkeypatch, noisy=True)
    images = "data.images" if "data.operator" in small_options(name) else "data"
    options = (
        f"{small_options(name)} --{images}.batch_size 2 --{images}.num_workers 0 "
        "--trainer.accelerator cpu --trainer.devices 1 --trainer.fast_dev_run true"
    )
    arguments = ["--config", name, *options.split()]
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    cli = train.build()
    assert cli.output == Path("runs") / name
    train.fit(cli)
    assert cli.trainer.global_step == len(cli.phases)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", TINY_SETS)
def test_missing_images_are_one_clear_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py", "--config", name, "--trainer.devices", "1"])
    assert run_command(train.main) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "Seed set" not in line]
    module = TINY_SETS[name][0]
    assert f"python -m datamodules.prepare {module.command_name} --source" in line
    assert "docs/data.md" in line
    assert not list(tmp_path.iterdir())


def defaults(kind: type) -> dict[str, object]:
    parameters = inspect.signature(kind).parameters
    return {name: parameter.default for name, parameter in parameters.items()}


def test_paper_configuration_of_celeba_hq() -> None:
    config = yaml.safe_load((CONFIGS / "glow_celeba.yaml").read_text())
    model, data, trainer = config["model"], config["data"], config["trainer"]
    flow = {**defaults(Glow), **model["flow"]["init_args"]}
    optimizer = model["optimizer"]["init_args"]
    assert (flow["levels"], flow["steps"], flow["hidden_channels"]) == (4, 32, 512)
    assert (flow["coupling"], flow["image_size"]) == ("additive", 128)
    assert (float(optimizer["lr"]), optimizer["betas"]) == (1e-4, [0.9, 0.99])
    module = {**defaults(FlowModule), **model}
    assert (module["gradient_clip_value"], module["gradient_clip_norm"]) == (5, 100)
    assert (module["lr_scheduler"], module["loss"]) == (None, None)
    assert data["init_args"]["batch_size"] == 64
    assert trainer == {"max_epochs": 850}


TRUMPETS = {"mnist": (1, 32), "cifar10": (3, 32), "celeba64": (3, 64), "chest": (1, 128)}


@pytest.mark.parametrize("name", TRUMPETS)
def test_paper_configurations_of_trumpet(name: str) -> None:
    config = yaml.safe_load((CONFIGS / f"trumpet_{name}.yaml").read_text())
    model, data, phases = config["model"], config["data"]["init_args"], config["phases"]
    flow, optimizer = model["flow"]["init_args"], model["optimizer"]
    assert (flow["in_channels"], flow["image_size"]) == TRUMPETS[name]
    assert optimizer["class_path"] == "torch.optim.Adam"
    assert float(optimizer["init_args"]["lr"]) == 1e-4
    assert (model["gradient_clip_norm"], model.get("lr_scheduler")) == (1, None)
    assert (data["batch_size"], data["n_bits"], data["data_range"]) == (64, None, [-1, 1])
    losses = ["flowprior.losses.Reconstruction", "flowprior.losses.LatentLikelihood"]
    assert [phase["loss"]["class_path"] for phase in phases] == losses
    assert [phase["epochs"] for phase in phases] == [150, 150]
    assert "trainer" not in config  # all GPUs of the machine
