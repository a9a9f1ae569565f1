"""Training on parquet files that are only read from start to end."""

import os
import signal
import time
from itertools import chain

import pytest
import torch

from datamodules import ImageFolder
from datamodules.dequantize import DataError
from datamodules.streaming import StreamingLoader
from tests import picture_files
from tests.entry_points import SLOWLY, finish, scalars, start

ROWS = [13, 11, 12, 8]
EPOCHS = 3

TINY = """
seed_everything: 0
model:
  flow:
    class_path: flowprior.flows.Glow
    init_args:
      {{in_channels: 3, image_size: 16, levels: 2, steps: 1, hidden_channels: 4, coupling: affine}}
  optimizer: {{class_path: torch.optim.Adam, init_args: {{lr: 1.0e-3}}}}
data:
  class_path: datamodules.ImageFolder
  init_args: {{source: {source}, streaming: true, lanes: 2, image_size: 16, batch_size: 4}}
trainer: {{accelerator: cpu, precision: 64-true, max_epochs: 3, log_every_n_steps: 1}}
checkpoints: {{every_n_steps: 4}}
samples: {{images: 2}}
"""


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch):
    monkeypatch.setattr("datamodules.streaming.BLOCK", 5)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return str(picture_files.parquet(tmp_path_factory.mktemp("hub") / "set", {"train": ROWS}))


def streamed(source, **options):
    defaults = {"image_size": 16, "batch_size": 4, "lanes": 2, "streaming": True}
    return ImageFolder(source, **{**defaults, **options})


def loader(source, **options):
    return streamed(source, **options).train_dataloader()


def epochs(loader):
    return [list(loader) for _ in range(EPOCHS)]


def flat(lists):
    return list(chain.from_iterable(lists))


def levels(batches):
    """Sorted descriptions of the images, whatever their order and noise."""
    return sorted(tuple((x + 0.5).mul(256).floor().flatten().tolist()) for x in torch.cat(batches))


@pytest.fixture(scope="module")
def reference(source):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datamodules.streaming.BLOCK", 5)
        return epochs(loader(source))


def test_epochs_are_new_orders_of_the_training_images(source, reference):
    images = ImageFolder(source, 16, batch_size=4).dataset("train")
    every = levels([images.__getitems__([(0, i) for i in range(len(images))])])
    for epoch in reference:
        seen = levels(epoch)
        assert len(set(seen)) == len(seen) == 4 * len(epoch)
        assert set(seen) <= set(every)
        assert len(seen) > 0.8 * len(every)
    one, other = (torch.cat(epoch[:5]) for epoch in reference[:2])
    assert not one.equal(other)
    noisy = torch.cat(flat(reference)).flatten(1)
    assert len(noisy.unique(dim=0)) == len(noisy)


def test_one_lane_sees_every_image(source):
    images = ImageFolder(source, 16, batch_size=1).dataset("train")
    seen = list(loader(source, lanes=1, batch_size=1))
    assert levels(seen) == levels([images.__getitems__([(0, i) for i in range(len(images))])])


@pytest.mark.parametrize("lanes", [2, 4])
def test_processes_and_workers_change_nothing(source, lanes):
    options = {"lanes": lanes, "horizontal_flips": True}
    expected = epochs(loader(source, **options))
    stream = streamed(source, **options)._stream("train")
    for world_size, workers in ((1, 2), (2, 0), (2, lanes // 2)):
        loaders = [StreamingLoader(stream, rank, world_size, workers) for rank in range(world_size)]
        for epoch in expected:
            parts = zip(*(list(its) for its in loaders), strict=False)
            assert torch.stack([torch.cat(part) for part in parts]).equal(torch.stack(epoch))


@pytest.mark.parametrize("position", [0, 1, 4, 5, 9, 13])
@pytest.mark.parametrize("workers", [0, 2])
def test_resume_at_another_number_of_workers(source, reference, position, workers):
    whole = flat(reference)
    first = loader(source, num_workers=2 - workers)
    iterator = iter(first)
    for _ in range(position + 1):
        try:
            next(iterator)
        except StopIteration:
            iterator = iter(first)
            next(iterator)
    resumed = loader(source, num_workers=workers)
    iter(resumed)
    resumed.load_state_dict(first.state_dict())
    rest = list(resumed) + list(resumed)
    count = min(len(rest), len(whole) - position)
    assert count > len(reference[0])
    assert torch.stack(rest[:count]).equal(torch.stack(whole[position : position + count]))


@pytest.mark.parametrize(
    ("option", "message"),
    [({"batch_size": 8}, "batch_size=4, now it is 8"), ({"seed": 1}, "seed=0, now it is 1")],
)
def test_state_of_other_data_is_refused(source, option, message):
    with pytest.raises(DataError, match=f"cannot resume: .*{message}"):
        loader(source, **option).load_state_dict(loader(source).state_dict())


def test_bad_image_is_left_out_and_named(tmp_path, monkeypatch):
    monkeypatch.setattr(picture_files, "encoded", lambda image: b"damaged")
    picture_files.parquet(tmp_path / "bad", {"train": [1]}, paths=True)
    monkeypatch.undo()
    source = picture_files.parquet(tmp_path / "set", {"train": [20], "val": [3]})
    (tmp_path / "bad/data/train-00000-of-00001.parquet").rename(
        tmp_path / "set/data/train-00001-of-00002.parquet"
    )
    with pytest.warns(UserWarning, match=r"left out train-0\.png: cannot be decoded"):
        assert len(torch.cat(list(loader(str(source), lanes=1, test_fraction=0)))) == 20


def test_held_sets_are_the_first_images(source, monkeypatch):
    monkeypatch.setattr("datamodules.image_folder._HELD", 2)
    data = streamed(source, val_fraction=0.3)
    assert len(data.images("val")) == len(data.images("test")) == 2
    whole = ImageFolder(source, 16, val_fraction=0.3).images("val")
    assert data.images("val")[1].equal(whole[1])
    assert len(torch.cat(list(data.val_dataloader()))) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lanes": 3}, "data.lanes=3: expected a multiple of the 1 loading processes"),
        ({"num_workers": 3}, "multiple of the 3 loading processes"),
        ({"val_fraction": 0}, "no validation images"),
    ],
)
def test_what_does_not_fit_is_one_line(source, options, message):
    with pytest.raises(ValueError, match=message):
        streamed(source, **options).check(1)


def test_folder_of_images_is_not_streamed(tmp_path):
    with pytest.raises(DataError, match=r"data.streaming: .* has no parquet files"):
        streamed(str(picture_files.folder(tmp_path))).check(1)


def test_too_few_images_for_a_batch(source):
    with pytest.raises(DataError, match="fewer training images than a batch"):
        list(loader(source, batch_size=64))


@pytest.mark.slow
def test_train_killed_and_on_two_processes_follows_one_trajectory(tmp_path, source):
    (tmp_path / "tiny.yaml").write_text(TINY.format(source=source))
    arguments = ("train.py", "--config", "tiny.yaml", "--output")
    finish(tmp_path, *arguments, "one")
    finish(tmp_path, *arguments, "two", "--trainer.devices", "2")
    process = start(tmp_path, *arguments, "killed", SLOWLY)
    checkpoint = tmp_path / "killed/checkpoints/last.ckpt"
    while not checkpoint.exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert "resuming" in finish(tmp_path, *arguments, "killed", "--data.num_workers", "2")
    expected = scalars(tmp_path / "one", "train/bits_per_dim")
    assert len(expected) > 20
    for run in ("two", "killed"):
        found = scalars(tmp_path / run, "train/bits_per_dim")
        assert found == pytest.approx(expected, rel=1e-6), run
