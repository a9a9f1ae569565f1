"""python -m datamodules.prepare: what it makes, bad images, kills, and real pictures."""

import io
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from rich.console import Console

from datamodules import CelebA, CelebAHQ, ChestXray, ImageFolder
from datamodules import prepare as prepare_module
from datamodules.base import SPLITS
from datamodules.errors import DataError, ImageError
from datamodules.prepare import main, prepare
from datamodules.prepared_pictures import (
    PreparedImages,
    read_pictures_info,
    read_shard,
    shard_length,
)
from flowprior.command_line import run_command
from flowprior.figures import image_grid
from flowprior.flows import Glow
from lightning_modules import FlowModule
from tests import picture_files
from tests.entry_points import ROOT, environment
from tests.test_decoding import BAD

MODULES = {
    CelebAHQ: picture_files.celeba_hq,
    CelebA: picture_files.celeba,
    ChestXray: picture_files.chest,
    ImageFolder: picture_files.folder,
}


@pytest.fixture
def shards_of_eight(monkeypatch):
    monkeypatch.setattr("datamodules.prepared_pictures._SHARD_IMAGES", 8)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def everything(module):
    """All images of all splits."""
    images = [module.images(split) for split in SPLITS]
    return torch.stack([its[i] for its in images for i in range(len(its))])


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["prepare.py", *map(str, arguments)])
    return run_command(main, failures=(ImageError,))


@pytest.mark.parametrize("module", MODULES)
def test_prepared_images_are_the_decoded_ones(tmp_path, module, shards_of_eight):
    data = module(str(MODULES[module](tmp_path / "source")), image_size=16)
    info = prepare(data, tmp_path / "made")
    prepared = module(str(tmp_path / "made"), image_size=16)
    for split in SPLITS:
        assert isinstance(prepared.images(split), PreparedImages)
        assert sum(info["images"][split]) == len(prepared.images(split)) == len(data.images(split))
    assert everything(prepared).equal(everything(data))
    assert len(info["images"]["train"]) > 2
    one, other = (next(m.batches("train", 5, [30, 2, 9, 8, 7]))[1] for m in (data, prepared))
    assert one.equal(other)


def test_prepared_from_parquet_with_equal_names(tmp_path):
    source = picture_files.parquet(tmp_path / "source", {"train": [9], "test": [4], "val": [3]})
    data = ImageFolder(str(source), 16)
    data.pictures["train"].names[:] = ["same.png"] * 9
    info = prepare(data, tmp_path / "made")
    assert info["images"] == {"train": [9], "val": [3], "test": [4]}
    assert everything(ImageFolder(str(tmp_path / "made"), 16)).equal(everything(data))


def test_number_of_processes_changes_nothing(tmp_path, shards_of_eight):
    data = ImageFolder(str(picture_files.folder(tmp_path / "source", 70)), 16)
    for workers in (0, 2):
        prepare(data, tmp_path / f"made{workers}", workers)
    files = [path for path in sorted((tmp_path / "made0").rglob("*")) if path.is_file()]
    assert len(files) > 9
    for path in files:
        other = tmp_path / "made2" / path.relative_to(tmp_path / "made0")
        assert path.read_bytes() == other.read_bytes()


def test_shards_are_mapped_and_of_bounded_size(tmp_path):
    assert shard_length((3, 128, 128)) * 3 * 128 * 128 <= 2**25
    assert shard_length((3, 9000, 9000)) == 1
    prepare(ImageFolder(str(picture_files.folder(tmp_path / "source")), 16), tmp_path / "made")
    pixels, skipped = read_shard(tmp_path / "made/train/00000.arrow")
    assert pixels.dtype == "uint8"
    assert not pixels.flags.owndata
    assert not pixels.flags.writeable
    assert skipped == []


@pytest.mark.parametrize("kept", [0, 1000, -8, None])
def test_damaged_file_is_named(tmp_path, kept):
    prepare(ImageFolder(str(picture_files.folder(tmp_path / "source")), 16), tmp_path / "made")
    path = tmp_path / "made/train/00000.arrow"
    if kept is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DataError, match=r"00000\.arrow is damaged: remove the folder"):
        ImageFolder(str(tmp_path / "made"), 16).images("train")[0]


@pytest.mark.parametrize(
    "change",
    [
        lambda info: info.pop("images"),
        lambda info: info.pop("image_size"),
        lambda info: info.pop("finished"),
        lambda info: info["images"].pop("val"),
        lambda info: info["images"].update(train=["many"]),
        lambda info: info.update(images=7),
    ],
)
def test_edited_description_is_named(tmp_path, change):
    made = tmp_path / "made"
    prepare(ImageFolder(str(picture_files.folder(tmp_path / "source")), 16), made)
    info = json.loads((made / "prepared.json").read_text())
    change(info)
    (made / "prepared.json").write_text(json.dumps(info))
    with pytest.raises(DataError, match=r"prepared\.json is damaged"):
        ImageFolder(str(made), 16).images("train")


def test_wrong_number_of_images_is_noticed(tmp_path):
    made = tmp_path / "made"
    info = prepare(ImageFolder(str(picture_files.folder(tmp_path / "source")), 16), made)
    info["images"]["train"][0] += 1
    (made / "prepared.json").write_text(json.dumps(info))
    with pytest.raises(DataError, match=r"00000\.arrow is damaged"):
        ImageFolder(str(made), 16).images("train")[0]


def test_indices_outside_are_refused(tmp_path):
    prepare(ImageFolder(str(picture_files.folder(tmp_path / "source")), 16), tmp_path / "made")
    images = ImageFolder(str(tmp_path / "made"), 16).images("val")
    for index in (-1, len(images)):
        with pytest.raises(IndexError, match="expected 0 to"):
            images[index]


# Bad images


@pytest.fixture
def damaged(tmp_path):
    """A folder with good images, and one of every bad kind; size 16."""
    source = picture_files.folder(tmp_path / "source", 20)
    for number, (data, _) in enumerate(BAD.values()):
        (source / f"bad{number}.png").write_bytes(data)
    (source / "cmyk.jpg").write_bytes(picture_files.encoded(Image.new("CMYK", (16, 16)), "JPEG"))
    (source / "notes.txt").write_text("no image")
    (source / "._hidden.png").write_bytes(b"of another system")
    return source


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_images_are_named_and_counted(tmp_path, damaged, workers):
    output = io.StringIO()
    console = Console(file=output, width=300)
    info = prepare(ImageFolder(str(damaged), 16), tmp_path / "made", workers, console=console)
    assert len(info["skipped"]) == len(BAD)
    for number, (_, reason) in enumerate(BAD.values()):
        (line,) = [line for line in info["skipped"] if line.startswith(f"bad{number}.png ")]
        assert reason.split(",")[0] in line
        assert f"skipped: {line}" in output.getvalue()
    assert sum(map(sum, info["images"].values())) == 21
    assert f"{len(BAD)} skipped" in output.getvalue()


def test_strict_stops_at_the_first_bad_image(tmp_path, damaged, monkeypatch, capsys):
    arguments = ("folder", "--source", damaged, "--output", tmp_path / "made", "--image-size", 16)
    assert run(monkeypatch, *arguments, "--workers", 0, "--strict") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "error: image bad" in line
    assert not read_pictures_info(tmp_path / "made")["finished"]
    assert run(monkeypatch, *arguments, "--workers", 0) == 0  # continues, and leaves them out


def test_strict_heeds_what_was_left_out_before(tmp_path, damaged, monkeypatch, capsys):
    arguments = ("folder", "--source", damaged, "--output", tmp_path / "made", "--image-size", 16)
    assert run(monkeypatch, *arguments, "--workers", 0) == 0
    for finished in (True, False):
        info = json.loads((tmp_path / "made/prepared.json").read_text())
        (tmp_path / "made/prepared.json").write_text(json.dumps({**info, "finished": finished}))
        capsys.readouterr()
        assert run(monkeypatch, *arguments, "--workers", 0, "--strict") == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert "error: image bad" in line
    assert not read_pictures_info(tmp_path / "made")["finished"]


def test_set_without_images_is_not_finished(tmp_path):
    source = picture_files.folder(tmp_path / "source", 30)
    output = io.StringIO()
    console = Console(file=output, width=300)
    with pytest.raises(DataError, match=r"no image for training .*20x20 pixels, expected .*64x64"):
        prepare(ImageFolder(str(source), 64), tmp_path / "small", console=console)
    assert not read_pictures_info(tmp_path / "small")["finished"]
    assert "finished" not in output.getvalue()
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/photo.heic").write_bytes(b"of a telephone")
    with pytest.raises(DataError, match="no images there"):
        prepare(ImageFolder(str(tmp_path / "empty"), 16), tmp_path / "none")
    prepare(ImageFolder(str(source), 16), tmp_path / "made")
    with pytest.raises(DataError, match="made is a prepared set"):
        prepare(ImageFolder(str(tmp_path / "made"), 16), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_name_that_is_not_utf8(tmp_path):
    source = picture_files.folder(tmp_path / "source", 3)
    good = picture_files.encoded(picture_files.picture(0, 16, 16))
    for name, data in ((b"caf\xe9", good), (b"\xff", b"")):
        Path(os.fsdecode(os.fsencode(source) + b"/" + name + b".png")).write_bytes(data)
    info = prepare(ImageFolder(str(source), 16), tmp_path / "made", workers=1)
    assert sum(map(sum, info["images"].values())) == 4
    assert [line.split()[0] for line in info["skipped"]] == ["\\udcff.png"]


@pytest.mark.parametrize("seconds", [0, 30], ids=["anywhere", "between two images"])
def test_process_that_dies_is_reported(tmp_path, monkeypatch, seconds):
    # More images than the processes decode ahead, so that some are always missing.
    data = ImageFolder(str(picture_files.folder(tmp_path / "source", 160)), 16)
    advance = prepare_module.SweepProgress.advance
    killed = []

    def kill_once(progress, count):
        advance(progress, count)
        if not killed:
            killed.extend(child.pid for child in multiprocessing.active_children())
            for pid in killed:
                os.kill(pid, signal.SIGKILL)
            time.sleep(seconds)  # until torch's handler of SIGCHLD raises

    monkeypatch.setattr(prepare_module.SweepProgress, "advance", kill_once)
    with pytest.raises(ImageError, match=r"a process died.*fewer --workers"):
        prepare(data, tmp_path / "made", workers=2)
    assert len(killed) == 2


# The command


def command(source, output, *options):
    return [
        *(sys.executable, "-m", "datamodules.prepare", "folder", "--source", str(source)),
        *("--output", str(output), "--image-size", "16", *options),
    ]


SLOW = """
import time
from datamodules import decoding, prepared_pictures

read_square, prepared_pictures._SHARD_IMAGES = decoding.read_square, 10

def slowly(*arguments):
    time.sleep(0.02)
    return read_square(*arguments)

decoding.read_square = slowly
"""


def test_ctrl_c_is_one_line_also_while_processes_start(tmp_path):
    """As a terminal does it, the signal goes to all processes."""
    source = picture_files.folder(tmp_path / "source", 200)
    (tmp_path / "sitecustomize.py").write_text(SLOW)
    options = {"cwd": ROOT, "env": {**environment(), "PYTHONPATH": f"{tmp_path}:{ROOT}"}}
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    for awaited in ("prepared.json", "train/00000.arrow"):
        process = subprocess.Popen(
            command(source, tmp_path / "made", "--workers", "2"),
            **options,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            process_group=0,
            preexec_fn=heed,
        )
        while not (tmp_path / "made" / awaited).exists():
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(0.5)
        os.killpg(process.pid, signal.SIGINT)
        output = process.communicate(timeout=180)[0]
        assert process.returncode == 130, output
        assert output.strip().splitlines()[-1] == "stopped"
        assert "Traceback" not in output


def test_killed_command_continues(tmp_path):
    """Killed as soon as a few files are there; those stay as they are."""
    source = picture_files.folder(tmp_path / "source", 200)
    (tmp_path / "sitecustomize.py").write_text(SLOW)
    path = f"{tmp_path}:{ROOT}"
    options = {"cwd": ROOT, "env": {**environment(), "PYTHONPATH": path}}
    made = tmp_path / "made"
    process = subprocess.Popen(command(source, made, "--workers", "1"), **options)
    while len(list(made.glob("train/0*.arrow"))) < 3:
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 3
    while str(made) in subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout:
        assert time.monotonic() < deadline  # its own processes end too
    before = {path: path.stat().st_mtime_ns for path in made.glob("*/0*.arrow")}
    assert 3 <= len(before) < 20
    assert not read_pictures_info(made)["finished"]
    with pytest.raises(DataError, match="is not finished: run the same prepare command again"):
        ImageFolder(str(made), 16).images("train")

    again = subprocess.run(
        command(source, made, "--workers", "1"), capture_output=True, text=True, **options
    )
    assert again.returncode == 0, again.stderr
    assert all(path.stat().st_mtime_ns == time_ for path, time_ in before.items())
    assert {path.name for path in made.rglob(".*")} == {".lock"}
    prepared = everything(ImageFolder(str(made), 16))
    assert prepared.equal(everything(ImageFolder(str(source), 16)))


def test_finished_set_is_left_alone(tmp_path, monkeypatch, capsys):
    source = picture_files.folder(tmp_path / "source")
    arguments = ("folder", "--source", source, "--output", tmp_path / "made", "--image-size", 16)
    assert run(monkeypatch, *arguments, "--workers", 0) == 0
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "made").rglob("*")}
    capsys.readouterr()
    assert run(monkeypatch, *arguments, "--workers", 0) == 0
    assert "is finished already: " in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "made").rglob("*")} == files


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--image-size", "8"], "begun with image_size=16, now it is 8"),
        (["--val-fraction", "0.2"], "begun with val_fraction=0.1, now it is 0.2"),
        (["--channels", "1"], "begun with channels=3, now it is 1"),
    ],
)
def test_other_settings_do_not_mix(tmp_path, monkeypatch, capsys, change, message):
    source = picture_files.folder(tmp_path / "source")
    arguments = ("folder", "--source", source, "--output", tmp_path / "made", "--workers", 0)
    assert run(monkeypatch, *arguments, "--image-size", 16) == 0
    assert run(monkeypatch, *arguments, "--image-size", 16, *change) == 2
    assert message in capsys.readouterr().err


def test_source_that_changed_does_not_mix(tmp_path, damaged):
    data = ImageFolder(str(damaged), 16)
    with pytest.raises(ImageError):
        prepare(data, tmp_path / "made", strict=True)
    picture_files.folder(damaged / "more")
    with pytest.raises(DataError, match=r"--output .* was begun when --source had other images"):
        prepare(ImageFolder(str(damaged), 16), tmp_path / "made")


def tables(path):
    return picture_files.parquet(path, {"train": [20]})


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize("make", [tables, picture_files.folder])
def test_images_that_were_replaced_are_noticed(tmp_path, finished, make):
    """Their names are those of before."""
    source, made = make(tmp_path / "source"), tmp_path / "made"
    info = prepare(ImageFolder(str(source), 16), made)
    assert prepare(ImageFolder(str(source), 16), made) == info
    (made / "prepared.json").write_text(json.dumps({**info, "finished": finished}))
    os.utime(next(path for path in sorted(source.rglob("*")) if path.is_file()))
    with pytest.raises(DataError, match=r"--output .*begun when --source had other images"):
        prepare(ImageFolder(str(source), 16), made)


def test_finished_set_needs_no_source(tmp_path):
    source, made = picture_files.folder(tmp_path / "source"), tmp_path / "made"
    info = prepare(ImageFolder(str(source), 16), made)
    source.rename(tmp_path / "gone")
    assert prepare(ImageFolder(str(source), 16), made) == info


HOLD = """
import sys
from flowprior.io import sole_writer

with sole_writer(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_second_process_is_refused(tmp_path):
    data = ImageFolder(str(picture_files.folder(tmp_path / "source")), 16)
    made = tmp_path / "made"
    made.mkdir()
    arguments = [sys.executable, "-c", HOLD, str(made)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(arguments, cwd=ROOT, **pipes) as process:
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(DataError, match=r"--output .* another process"):
            prepare(data, made)
    assert read_pictures_info(made) is None
    prepare(data, made)
    assert read_pictures_info(made)["finished"]


def test_column_of_a_table_is_kept(tmp_path):
    source = picture_files.parquet(tmp_path / "source", {"train": [20], "test": [2], "val": [2]})
    table = datasets.load_dataset(str(source))
    table = table.map(lambda row: {"mask": row["image"]}).cast_column("mask", datasets.Image())
    table.save_to_disk(tmp_path / "saved")
    prepare(ImageFolder(str(tmp_path / "saved"), 16, column="mask"), tmp_path / "made")
    assert len(ImageFolder(str(tmp_path / "made"), 16).images("train")) == 20
    with pytest.raises(DataError, match="begun with column=mask"):
        prepare(ImageFolder(str(tmp_path / "saved"), 16, column="image"), tmp_path / "made")


def test_mistakes_are_one_line(tmp_path, monkeypatch, capsys):
    source = picture_files.folder(tmp_path / "source")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("kept")
    made = ("--output", tmp_path / "made", "--workers", 0)
    for arguments, status, message in (
        (("folder", "--source", tmp_path / "none", *made), 2, "no such folder"),
        (("folder", "--source", source, *made, "--channels", 2), 2, "expected 1 or 3"),
        (("celeba", "--source", source, *made, "--channels", 3), 2, "celeba: .*'channels'"),
        (("celeba", "--source", source, *made), 2, "list_eval_partition.txt is missing"),
        (("folder", "--source", source, "--output", tmp_path / "full"), 2, "is not empty"),
    ):
        assert run(monkeypatch, *arguments) == status
        (line,) = capsys.readouterr().err.splitlines()
        assert re.search(message, line)
    assert not (tmp_path / "made").exists()


def test_data_module_of_another_size_is_refused(tmp_path):
    prepare(ImageFolder(str(picture_files.folder(tmp_path / "source")), 16), tmp_path / "made")
    with pytest.raises(DataError, match="prepared with image_size=16, expected 8"):
        ImageFolder(str(tmp_path / "made"), 8).images("train")
    with pytest.raises(DataError, match="prepared with set=folder, expected celeba"):
        CelebA(str(tmp_path / "made"), 16).images("train")
    assert json.loads((tmp_path / "made/prepared.json").read_text())["finished"]


# Real pictures


def photographs(folder: Path) -> Path:
    """scikit-image's own photographs and faces, none of them downloaded."""
    folder.mkdir()
    for name in ("astronaut", "chelsea", "coffee", "rocket"):
        Image.fromarray(getattr(skimage.data, name)()).save(folder / f"{name}.jpg", quality=95)
    for i, face in enumerate(skimage.data.lfw_subset()[:100:4]):
        Image.fromarray((255 * face).round().astype("uint8")).save(folder / f"face{i:02d}.png")
    return folder


def test_training_on_real_pictures(tmp_path):
    source = photographs(tmp_path / "source")
    options = {"image_size": 24, "batch_size": 8, "val_fraction": 0.2, "test_fraction": 0}
    prepare(ImageFolder(str(source), 24, 3, 0.2, 0), tmp_path / "made")
    digests = []
    for folder in (source, tmp_path / "made"):
        data = ImageFolder(str(folder), **options)
        module = FlowModule(Glow(3, 24, levels=2, steps=2, hidden_channels=8, coupling="affine"))
        optimizer = torch.optim.Adam(module.flow.parameters(), 1e-3)
        torch.manual_seed(0)
        for _, x in zip(range(2), data.train_dataloader(), strict=False):
            loss = -module.flow.log_prob(x).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            assert loss.isfinite()
        digests.append(x.double().sum().item())
    assert digests[0] == digests[1]
    x = torch.cat([x for split in SPLITS for _, x in data.batches(split, 32)])
    assert len(x) == 29
    image_grid(x + 0.5, value_range=(0, 1)).savefig(tmp_path / "grid.png")
    assert (tmp_path / "grid.png").stat().st_size > 10000


@pytest.mark.parametrize(("bits", "told"), [(12, True), (16, False)])
def test_pictures_of_12_bits_in_files_of_16_are_told(tmp_path, bits, told):
    source, numbers = tmp_path / "source", np.random.default_rng(0)
    source.mkdir()
    for number in range(20):
        pixels = numbers.integers(0, 2**bits, (16, 16)).astype(np.uint16)
        Image.fromarray(pixels).save(source / f"{number}.png")
    output = io.StringIO()
    console = Console(file=output, width=300)
    prepare(ImageFolder(str(source), 16, channels=1), tmp_path / "made", 0, console=console)
    assert ("the images are dark" in output.getvalue()) == told
