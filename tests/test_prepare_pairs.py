"""Pairs with migrated data, and python -m datamodules.prepare_pairs: kills, processes, mistakes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from datamodules import LayerModels, Reflectivities, SimulatedPairs
from datamodules import prepare_pairs as prepare
from datamodules.base import SPLITS
from datamodules.errors import DataError
from datamodules.prepare_pairs import PairsError, main, prepare_pairs
from datamodules.prepared_pairs import part_path, read_pairs_info
from flowprior import own_code
from flowprior.command_line import run_command
from flowprior.physics import Gaussian, MigratedData, gaussian_blur
from tests.entry_points import ROOT, environment, scalars, train_here

CONFIG = """
seed_everything: 0
model:
  flow:
    class_path: flowprior.flows.ConditionalHint
    init_args: {in_channels: 1, condition_shape: [1, 16, 16], image_size: 16, steps: 2, depth: 2,
                hidden_channels: 8, squeezes: 2}
  loss: {class_path: flowprior.losses.JointLikelihood}
  optimizer: {class_path: torch.optim.Adam, init_args: {lr: 1.0e-3}}
data:
  class_path: datamodules.SimulatedPairs
  init_args:
    operator: gaussian_blur
    options: {tau: 1.0}
    noise: {class_path: flowprior.physics.Gaussian, init_args: {sigma: 0.1}}
    condition:
      class_path: flowprior.physics.MigratedData
      init_args: {scale: 2.0, depth_power: 1.5}
    folder: made
    images:
      class_path: datamodules.Reflectivities
      init_args: {image_size: 16, num_train: 40, num_val: 9, num_test: 8, batch_size: 8, n_bits: 6}
trainer: {accelerator: cpu, max_epochs: 2, log_every_n_steps: 1}
samples: {images: 2}
"""


def module(folder: Path | None = None, sigma: float = 0.1, **options) -> SimulatedPairs:
    """That of the config."""
    sizes = {"num_train": 40, "num_val": 9, "num_test": 8}
    images = Reflectivities(image_size=16, batch_size=8, n_bits=6, **sizes)
    options = {
        "options": {"tau": 1.0},
        "condition": MigratedData(2.0, 1.5),
        **options,
    }
    return SimulatedPairs(images, "gaussian_blur", Gaussian(sigma), folder=folder, **options)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    for place in ("prepared_pairs", "prepare_pairs"):
        monkeypatch.setattr(f"datamodules.{place}.PART_ROWS", 8)


def command(folder: Path, *options: str) -> list[str]:
    (folder / "tiny.yaml").write_text(CONFIG)
    config = ["--config", str(folder / "tiny.yaml"), "--data.folder", str(folder / "made")]
    return [sys.executable, "-m", "datamodules.prepare_pairs", *config, *options]


def run(monkeypatch, folder: Path, *options: str) -> int:
    monkeypatch.setattr(sys, "argv", ["prepare_pairs.py", *command(folder, *options)[3:]])
    return run_command(main, failures=(PairsError,))


def test_reflectivities_are_models_without_their_background():
    options = {"image_size": 24, "num_train": 5, "n_bits": None}
    model = LayerModels(**options).images("train").pixels(range(3))
    x = Reflectivities(scales=(0.05, 0.1), **options).images("train").pixels(range(3))
    for one, found in zip(model[:, 0], x[:, 0], strict=True):
        fine, coarse = (gaussian_filter(one, scale, mode="nearest") for scale in (1.2, 2.4))
        np.testing.assert_allclose(2 * found - 1, fine - coarse, atol=1e-6)
    assert x.dtype == np.float32
    finer = Reflectivities(scales=(0.05, 0.1), **options).finer([0, 1, 2], 3, "train")
    assert finer.shape == (3, 1, 70, 70)
    assert (finer[..., ::3, ::3] - torch.from_numpy(x)).abs().mean() < 0.01  # another grid's blurs
    other = Reflectivities(scales=(0, 0.1), **options)
    assert other.fingerprint() != Reflectivities(scales=(0.05, 0.1), **options).fingerprint()
    with pytest.raises(ValueError, match=r"data.scales=\(0.1, 0.1\): expected \(fine, coarse\)"):
        Reflectivities(scales=(0.1, 0.1))


def test_data_are_taken_back_to_images():
    data, physics = module(), gaussian_blur((1, 16, 16), tau=1.0)
    indices, _, y = next(data.pairs("test", 4))
    truth = torch.stack([data.images("test")[index] for index in indices])
    plain = module(condition=None)
    noisy = next(plain.pairs("test", 4))[2]
    assert (noisy - physics.A(truth)).std().item() == pytest.approx(0.1, rel=0.1)
    depth = ((torch.arange(16) + 0.5) / 16)[:, None]
    expected = 2 * depth**1.5 * physics.A_adjoint(noisy - physics.A(torch.full_like(truth, 0.5)))
    torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-4)
    assert torch.equal(next(data.pairs("test", 1, [2]))[2][0], y[2])
    others = [plain, *(module(condition=MigratedData(*given)) for given in ((3.0, 1.5), (2.0,)))]
    data.check(1)
    found = [one.fingerprint() for one in (data, *others)]
    assert all(found.count(one) == 1 for one in found)
    no_adjoint = SimulatedPairs(
        LayerModels(image_size=16),
        f"{__name__}.Broken",
        Gaussian(0.1),
        {"value": 1.0},
        MigratedData(),
    )
    with pytest.raises(ValueError, match="has no A_adjoint, which MigratedData needs"):
        no_adjoint.simulated("train", [0])


def test_prepared_pairs_are_those_made_when_asked_for(tmp_path):
    made = tmp_path / "made"
    info = prepare_pairs(module(made))
    assert info["finished"]
    assert info["shape"] == [1, 16, 16]
    stored, simulated = module(made), module()
    for split in SPLITS:
        for one, other in zip(stored.pairs(split, 50), simulated.pairs(split, 50), strict=True):
            assert one[0] == other[0]
            assert torch.equal(one[1], other[1])
            assert torch.equal(one[2], other[2])
    assert stored.fingerprint() == simulated.fingerprint()
    assert "physics" not in vars(stored)  # nothing was simulated
    assert prepare_pairs(module(made)) == info
    with pytest.raises(IndexError, match="index 8, expected 0 to 7"):
        stored.conditions("test", [8])


def test_number_of_processes_changes_nothing(tmp_path):
    for workers in (0, 2):
        prepare_pairs(module(tmp_path / f"made{workers}"), workers)
    one, two = (sorted((tmp_path / f"made{w}").rglob("*.npy")) for w in (0, 2))
    assert len(one) == len(two) == 8
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(one, two, strict=True))


SLOW = """
import time
from deepinv.physics import LinearPhysics
from datamodules import prepare_pairs, prepared_pairs

prepare_pairs.PART_ROWS = prepared_pairs.PART_ROWS = 8

class Slow(LinearPhysics):
    def A(self, x, **kwargs):
        time.sleep(0.05)
        return x

    def A_adjoint(self, y, **kwargs):
        return y
"""


def test_killed_command_continues(tmp_path):
    """Killed as soon as a few files are there; those stay as they are."""
    (tmp_path / "slow.py").write_text(SLOW)
    words = command(tmp_path, "--workers", "0", "--data.options", "null")
    config = CONFIG.replace("gaussian_blur", "slow.Slow")
    (tmp_path / "tiny.yaml").write_text(f"imports: [slow]\n{config}")
    options = {"cwd": ROOT, "env": environment()}
    made = tmp_path / "made"
    process = subprocess.Popen(words, **options)
    while len(list(made.glob("train/0*.npy"))) < 2:
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = {path: path.stat().st_mtime_ns for path in made.glob("*/0*.npy")}
    assert 2 <= len(before) < 5
    assert not read_pairs_info(made)["finished"]

    again = subprocess.run(words, capture_output=True, text=True, **options)
    assert again.returncode == 0, again.stderr
    assert all(path.stat().st_mtime_ns == time_ for path, time_ in before.items())
    assert read_pairs_info(made)["finished"]
    assert {path.name for path in made.rglob(".*")} == {".lock"}
    rows = np.concatenate([np.load(path) for path in sorted(made.glob("train/*.npy"))])
    images = Reflectivities(image_size=16, num_train=40).images("train")
    assert rows.shape == (40, 1, 16, 16)
    depth = ((np.arange(16) + 0.5) / 16)[:, None]
    noise = rows / (2 * depth**1.5) - (images.pixels(range(40)) - 0.5)
    assert noise.std() == pytest.approx(0.1, rel=0.05)


def test_flow_is_trained_on_prepared_pairs(tmp_path, monkeypatch, capsys):
    assert run(monkeypatch, tmp_path, "--workers", "0") == 0
    assert "made is finished: 57 pairs" in " ".join(capsys.readouterr().out.split())
    train_here(tmp_path)
    curve = scalars(tmp_path / "runs" / "tiny", "val/conditional_nll")
    assert curve[9] < curve[4]


def test_mistakes_are_one_line(tmp_path, monkeypatch, capsys):
    def refused(status: int, words: str, *options: str) -> None:
        assert run(monkeypatch, tmp_path, "--workers", "0", *options) == status
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line

    refused(2, "Option 'bogus' is not accepted", "--data.bogus", "3")
    refused(2, "operator must be one of", "--data.operator", "nothing")
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "something").touch()
    refused(2, "made is not empty: expected a new folder")
    (tmp_path / "made" / "something").unlink()
    capsys.readouterr()
    assert run(monkeypatch, tmp_path, "--workers", "0") == 0
    capsys.readouterr()
    other = "other pairs (pairs.train.data.condition.scale was 2.0, is now 3.0"
    refused(2, other, "--data.condition.init_args.scale", "3")
    changed = json.loads((tmp_path / "made" / "pairs.json").read_text())
    del changed["shape"]
    (tmp_path / "made" / "pairs.json").write_text(json.dumps(changed))
    refused(2, "pairs.json is damaged")


def test_training_needs_finished_pairs_of_its_own(tmp_path, capsys):
    with pytest.raises(DataError, match=r"no finished pairs; make them with python -m datamodules"):
        module(tmp_path / "made").check(1)
    prepare_pairs(module(tmp_path / "made"))
    module(tmp_path / "made").check(1)
    with pytest.raises(DataError, match=r"has other pairs \(pairs.train.data.noise"):
        module(tmp_path / "made", sigma=0.2).check(1)
    path = part_path(tmp_path / "made", "test", 0)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"00000\.npy is damaged"):
        module(tmp_path / "made").conditions("test", [3])


def swap(made: Path) -> None:
    first, second = (part_path(made, "train", number) for number in (0, 1))
    rows = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(rows)


def fill_with_nan(made: Path) -> None:
    path = part_path(made, "train", 1)
    np.save(path, np.full_like(np.load(path), np.nan))


DAMAGES = {
    "swapped": swap,
    "NaN": fill_with_nan,
    "deleted": lambda made: part_path(made, "train", 1).unlink(),
    "garbage": lambda made: part_path(made, "train", 1).write_bytes(b"garbage"),
    "cut": lambda made: os.truncate(part_path(made, "train", 1), 200),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_noticed_and_made_anew(tmp_path, damage):
    made = tmp_path / "made"
    info = prepare_pairs(module(made))
    before = {path: path.read_bytes() for path in made.rglob("*.npy")}
    DAMAGES[damage](made)
    word = "missing" if damage == "deleted" else "damaged"
    message = rf"^[^\n]*00001\.npy is {word}: run python -m datamodules.prepare_pairs again[^\n]*$"
    with pytest.raises(DataError, match=message):
        module(made).conditions("train", [9])
    if damage in ("deleted", "garbage", "cut"):
        with pytest.raises(DataError, match=message):
            module(made).check(1)
    untouched = part_path(made, "val", 0).stat().st_mtime_ns
    assert prepare_pairs(module(made)) == info
    assert {path: path.read_bytes() for path in made.rglob("*.npy")} == before
    assert part_path(made, "val", 0).stat().st_mtime_ns == untouched
    module(made).check(1)


def test_pairs_of_another_code_or_package_are_refused(tmp_path, monkeypatch):
    made = tmp_path / "made"
    prepare_pairs(module(made))
    with monkeypatch.context() as patch:
        patch.setattr(own_code, "version", lambda name: "9.9")
        with pytest.raises(DataError, match=r"other pairs \(made by.versions.deepinv was .*9.9"):
            module(made).check(1)
    real = own_code.file_digest
    for file, changes in (("operators.py", True), ("condition.py", True), ("born.py", False)):
        with monkeypatch.context() as patch:
            named = {file: "changed"}
            patch.setattr(own_code, "file_digest", lambda p, n=named: n.get(p.name) or real(p))
            if changes:
                with pytest.raises(DataError, match=r"other pairs \((condition )?made by.code was"):
                    module(made).check(1)
            else:
                module(made).check(1)
    # Of a folder that was made before these were written.
    info = json.loads((made / "pairs.json").read_text())
    del info["made by"], info["files"]
    (made / "pairs.json").write_text(json.dumps(info))
    for use in (prepare_pairs, lambda data: data.check(1)):
        with pytest.raises(DataError, match=r"^[^\n]*other pairs \(made by was \(absent\)[^\n]*$"):
            use(module(made))


def test_damage_is_still_known_after_a_kill(tmp_path, monkeypatch):
    """Files that were swapped stay suspect until the last of them is made anew."""
    made = tmp_path / "made"
    info = prepare_pairs(module(made))
    swap(made)
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "write_part", lambda path, rows: sys.exit("killed"))
        with pytest.raises(SystemExit):
            prepare_pairs(module(made))
    assert not read_pairs_info(made)["finished"]
    assert prepare_pairs(module(made)) == info
    module(made).conditions("train", range(40))


class Broken(torch.nn.Module):
    """An operator that fails on some images, or gives what is not finite."""

    def __init__(self, value: float = 0.0) -> None:
        super().__init__()
        self.value = value

    def A(self, x, **kwargs):
        if (x == 0.5).all():  # the grey one that tells the shape
            return x
        if self.value:
            return x * self.value
        raise RuntimeError("out of\nluck")


@pytest.mark.parametrize(("value", "words"), [(0.0, "out of luck"), (float("inf"), "NaN or inf")])
def test_operator_that_fails_is_named_with_its_image(tmp_path, value, words):
    data = SimulatedPairs(
        Reflectivities(image_size=16, num_train=9, num_val=1, num_test=1),
        f"{__name__}.Broken",
        Gaussian(0.1),
        {"value": value},
        folder=tmp_path / "made",
    )
    with pytest.raises(PairsError, match=f"train image 0: .*{words}"):
        prepare_pairs(data)
    assert not read_pairs_info(tmp_path / "made")["finished"]


@pytest.mark.parametrize("what", ["own pairs", "own images"])
def test_code_of_pairs_and_images_of_ones_own_counts(monkeypatch, what):
    class Own(SimulatedPairs if what == "own pairs" else LayerModels):
        pass

    if what == "own pairs":
        images = LayerModels(image_size=16)
        data = Own(images, "denoising", Gaussian(0.1))
    else:
        data = SimulatedPairs(Own(image_size=16), "denoising", Gaussian(0.1))
    before = data.described()
    assert what in before
    monkeypatch.setattr("datamodules.pairs.code_digest", lambda kind: "changed")
    assert data.described()[what] != before[what]
    plain = SimulatedPairs(LayerModels(image_size=16), "denoising", Gaussian(0.1))
    monkeypatch.undo()
    assert not any(name.startswith("own") for name in plain.described())
