"""The data modules of real images, on tiny sets in the real formats."""

import json
import os
import re
import shutil
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from urllib.error import URLError

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from datamodules import CIFAR10, MNIST, CelebA, CelebAHQ, ChestXray, ImageFolder, decoding
from datamodules.base import SPLITS
from datamodules.batches import GlobalBatchSampler
from datamodules.chest_xray import patient
from datamodules.dequantize import ArrayImages, DequantizedImages
from datamodules.errors import DataError, ImageError
from datamodules.faces import MAPPING, PARTITION, read_partition
from datamodules.pictures import image_names, split_of
from datamodules.prepare import prepare
from tests import picture_files


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def names(module):
    return {split: list(module.pictures[split].names) for split in SPLITS}


def paths(folder):
    return image_names(folder)[0]


def counts(module):
    return tuple(len(module.images(split)) for split in SPLITS)


# CelebA and CelebA-HQ


def test_celeba_hq_takes_the_split_of_the_original(tmp_path):
    data = CelebAHQ(str(picture_files.celeba_hq(tmp_path)), image_size=16)
    assert counts(data) == (50, 10, 10)
    assert names(data)["val"] == [f"{i}.jpg" for i in range(70) if i % 7 == 5]
    image = data.images("val")[1]
    assert image.shape == data.image_shape == (3, 16, 16)
    assert image[0].mul(255).mean() == pytest.approx(37 * 12 % 256, abs=3)  # image 12
    assert (image[1].diff(dim=0).mean(dim=1) > 0).all()  # upright


def test_counts_of_the_real_celeba_hq(tmp_path, monkeypatch, caplog):
    """Lists of the true sizes; which of CelebA's images were taken is drawn here."""
    files = {
        "CelebA-HQ-img": [f"{i}.jpg" for i in range(30000)],
        "img_align_celeba": [f"{i:06d}.jpg" for i in range(1, 202600)],
    }
    monkeypatch.setattr("datamodules.pictures.os.listdir", lambda path: files[path.name])
    starts, sizes, taken = (0, 162770, 182637), (162770, 19867, 19962), (24183, 2993, 2824)
    rng = np.random.default_rng(0)
    originals = np.concatenate(
        [s + rng.choice(n, k, replace=False) for s, n, k in zip(starts, sizes, taken, strict=True)]
    )
    rng.shuffle(originals)
    (tmp_path / "CelebA-HQ-img").mkdir()
    mapping = picture_files.celeba_hq_mapping(originals.tolist())
    (tmp_path / "CelebA-HQ-to-CelebA-mapping.txt").write_text(mapping)
    lines = picture_files.partition_lines(sizes)
    (tmp_path / "list_eval_partition.txt").write_text("\n".join(lines))
    (tmp_path / "img_align_celeba").mkdir()
    assert counts(CelebAHQ(str(tmp_path))) == taken == CelebAHQ.official_counts
    assert counts(CelebA(str(tmp_path))) == sizes == CelebA.official_counts
    assert not caplog.messages


def test_faces_that_are_not_all_there_are_refused(tmp_path, caplog):
    source = picture_files.celeba_hq(tmp_path / "hq")
    partition, mapping = source / PARTITION, source / MAPPING
    mapping.write_text("\n".join(mapping.read_text().splitlines()[:-10]))
    assert sum(counts(CelebAHQ(str(source), 16))) == 60
    (message,) = caplog.messages
    assert "not the official splits of 24183 / 2993 / 2824" in message
    partition.write_text("\n".join(partition.read_text().splitlines()[:100]))
    with pytest.raises(DataError, match=r"\d{6}\.jpg is not in list_eval_partition"):
        CelebAHQ(str(source), 16).images("train")

    source = picture_files.celeba(tmp_path / "aligned")
    removed = sorted((source / "img_align_celeba").iterdir())[:2]
    for path in removed:
        path.unlink()
    with pytest.raises(
        DataError, match=rf": 2 of \d+ images are missing .*{removed[0].name} first"
    ):
        CelebA(str(source), 16).images("train")
    (source / PARTITION).write_text("000001.jpg 0", encoding="utf-16")
    with pytest.raises(DataError, match=r"list_eval_partition\.txt: expected UTF-8 text"):
        CelebA(str(source), 16).images("train")


def test_celeba_is_cropped_to_its_centre(tmp_path):
    source = picture_files.celeba(tmp_path, counts=(3, 1, 1), size=178)
    data = CelebA(str(source), image_size=32)
    assert counts(data) == (3, 1, 1)
    green = data.images("train")[0][1].mean(dim=1)  # grows from 0 to 1 over all of the 218 rows
    assert green[0].item() == pytest.approx(20 / 218, abs=0.03)
    assert green[-1].item() == pytest.approx(198 / 218, abs=0.03)


def test_damaged_partition_names_its_line(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("000001.jpg 0\n000002.jpg\n")
    with pytest.raises(DataError, match=r"list\.txt, line 2: expected 2 columns"):
        read_partition(path)
    path.write_text("000001.jpg 0\n000002.jpg 3\n")
    with pytest.raises(DataError, match=r"list\.txt: 000002\.jpg .* 3"):
        read_partition(path)


@pytest.mark.parametrize(
    ("module", "make", "file"),
    [
        (CelebAHQ, picture_files.celeba_hq, "list_eval_partition.txt"),
        (CelebAHQ, picture_files.celeba_hq, "CelebA-HQ-to-CelebA-mapping.txt"),
        (CelebA, picture_files.celeba, "list_eval_partition.txt"),
        (ChestXray, picture_files.chest, "train_val_list.txt"),
    ],
)
def test_missing_list_is_named(tmp_path, module, make, file):
    data = module(str(make(tmp_path)), image_size=16)
    (tmp_path / file).unlink()
    with pytest.raises(DataError, match=f"data.source=.*: {file} is missing there"):
        data.images("train")


# Chest X-rays


def test_no_patient_is_on_both_sides(tmp_path):
    source = picture_files.chest(tmp_path, patients=100)
    data = ChestXray(str(source), image_size=16, val_fraction=0.3)
    patients = {
        split: {patient(name.rpartition("/")[2]) for name in its}
        for split, its in names(data).items()
    }
    assert len(set.union(*patients.values())) == sum(map(len, patients.values())) == 100
    assert len(patients["test"]) == 20
    assert 14 <= len(patients["val"]) <= 34
    assert sum(counts(data)) == sum(1 + p % 3 for p in range(1, 101))
    assert data.images("val")[0].shape == (1, 16, 16)


def test_missing_x_rays_are_counted(tmp_path):
    source = picture_files.chest(tmp_path, patients=20)
    data = ChestXray(str(source), image_size=16, val_fraction=0.3)
    name = names(data)["train"][2]
    (tmp_path / name).unlink()
    with pytest.raises(DataError, match=rf"data.source=.*: 1 of the \d+ .*{name[-16:]} first"):
        ChestXray(str(source), image_size=16, val_fraction=0.3).images("train")


def test_chest_lists_are_checked(tmp_path, caplog):
    source = picture_files.chest(tmp_path, patients=20)
    assert sum(counts(ChestXray(str(source), 16, 0.3))) == 41
    (message,) = caplog.messages
    assert "not the official splits of 86524 / 25596" in message
    with (source / "test_list.txt").open("a") as file:
        file.write("\n00000003_000.png")
    with pytest.raises(DataError, match=r"data.source=.*patients.*00000003 first"):
        ChestXray(str(source), 16).images("test")


# Folders and tables


def test_split_depends_on_the_name_alone(tmp_path):
    source = picture_files.folder(tmp_path, number=60)
    before = names(ImageFolder(str(source), 16))
    assert sorted(chain(*before.values())) == paths(source)
    picture_files.folder(tmp_path / "more", number=60)
    after = names(ImageFolder(str(source), 16))
    for split in SPLITS:
        assert [name for name in after[split] if not name.startswith("more")] == before[split]
        assert len(after[split]) > len(before[split])


def test_split_fractions_are_kept():
    found = Counter(split_of(f"{i}.png", 0.2, 0.1) for i in range(10000))
    assert found["val"] == pytest.approx(2000, abs=5 * 40)
    assert found["test"] == pytest.approx(1000, abs=5 * 30)


def test_folder_in_grey(tmp_path):
    data = ImageFolder(str(picture_files.folder(tmp_path)), 16, channels=1)
    assert data.images("train")[0].shape == data.image_shape == (1, 16, 16)


def test_bad_image_is_named_with_what_to_do(tmp_path):
    source = picture_files.folder(tmp_path)
    data = ImageFolder(str(source), 16, batch_size=8)
    name = data.pictures["train"].names[3]
    (source / name).write_bytes(b"")
    with pytest.raises(ImageError, match=f"image {name} cannot be decoded.*datamodules.prepare"):
        [*data.batches("train", 8)]


def test_table_with_all_splits_keeps_them(tmp_path, caplog):
    source = picture_files.parquet(tmp_path, {"train": [5, 4], "validation": [3], "test": [2]})
    data = ImageFolder(str(source), 16)
    assert counts(data) == (9, 3, 2)
    assert not caplog.messages
    red = [image[0].mul(255).mean().item() for image in data.images("val")]
    assert red == pytest.approx([37 * i % 256 for i in (9, 10, 11)], abs=0.6)


@pytest.mark.parametrize("paths", [True, False])
def test_table_without_splits_is_split_by_hash(tmp_path, paths):
    source = picture_files.parquet(tmp_path, {"train": [30, 31]}, paths=paths)
    data = ImageFolder(str(source), 16, val_fraction=0.3)
    found = names(data)
    assert len(set(chain(*found.values()))) == sum(counts(data)) == 61
    assert all(split_of(name, 0.3, 0.1) == split for split, its in found.items() for name in its)
    data.images("test")[0]


def test_splits_of_a_hub_set_are_said_not_to_be_the_papers(tmp_path, caplog):
    source = picture_files.parquet(tmp_path, {"train": [30], "validation": [3]})
    data = CelebAHQ(str(source), image_size=16)
    assert sum(counts(data)) == 33
    (message,) = caplog.messages
    assert re.search(r"/ 3 / \d+ images .* not the official .*24183 / 2993", message)


def test_unknown_hub_set_is_one_line(monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"data.source=hub:nobody/nothing: ") as error:
        ImageFolder("hub:nobody/nothing", 16).images("train")
    assert "\n" not in str(error.value)


def test_table_without_images_is_refused(tmp_path):
    table = datasets.Dataset.from_dict({"text": ["a", "b"]})
    table.to_parquet(tmp_path / "train.parquet")
    with pytest.raises(DataError, match=r"data.source=.*column of images among text"):
        ImageFolder(str(tmp_path), 16).images("train")


def test_table_beside_images_is_not_theirs(tmp_path, caplog):
    source = picture_files.folder(tmp_path)
    expected = names(ImageFolder(str(source), 16))
    datasets.Dataset.from_dict({"file_name": ["0.png"], "text": ["a"]}).to_parquet(
        source / "metadata.parquet"
    )
    assert names(ImageFolder(str(source), 16)) == expected
    (message,) = caplog.messages
    assert ".parquet: 1" in message


def test_image_beside_a_table_is_not_its(tmp_path):
    source = picture_files.parquet(tmp_path, {"train": [9], "validation": [2], "test": [2]})
    picture_files.save(source / "assets/preview.png", picture_files.picture(0, 16, 16))
    assert counts(ImageFolder(str(source), 16)) == (9, 2, 2)


def cell(number, path=None):
    image = picture_files.picture(number, 16, 16)
    return {"bytes": picture_files.encoded(image), "path": path}


STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def table(folder, **columns):
    folder.mkdir(exist_ok=True)
    arrays = {
        name: pa.array(cells, pa.binary() if isinstance(cells[0], bytes) else STRUCT)
        for name, cells in columns.items()
    }
    pq.write_table(pa.table(arrays), folder / "train.parquet")
    return str(folder)


def test_cells_without_image_are_left_out_and_counted(tmp_path, caplog):
    """They move no other image to another split."""
    cells = [cell(i, f"{i}.png") for i in range(40)]
    whole = names(ImageFolder(table(tmp_path / "whole", image=cells), 16))
    empty = {"bytes": None, "path": None}
    source = table(tmp_path / "some", image=[empty, None, *cells[:20], None, *cells[20:]])
    data = ImageFolder(source, 16)
    assert names(data) == whole
    assert sum(counts(data)) == 40
    assert data.images("train")[3].equal(
        ImageFolder(str(tmp_path / "whole"), 16).images("train")[3]
    )
    (message,) = caplog.messages
    assert "left out 3 rows" in message


def test_cell_of_a_missing_file_is_a_bad_image(tmp_path):
    cells = [{"bytes": None, "path": "/nowhere/b.png"}, *(cell(i, f"{i}.png") for i in range(3))]
    options = {"val_fraction": 0.0, "test_fraction": 0.0}
    images = ImageFolder(table(tmp_path, image=cells), 16, **options).images("train")
    with pytest.raises(ImageError, match=r"image /nowhere/b\.png cannot be decoded"):
        images[0]
    assert images[1].shape == (3, 16, 16)


def test_rows_that_share_a_path_are_split_all_the_same(tmp_path):
    data = ImageFolder(table(tmp_path, image=[cell(i, "image.png") for i in range(60)]), 16)
    assert min(counts(data)) >= 1
    assert len(set(chain(*names(data).values()))) == 60


def test_columns_of_images_have_to_be_chosen(tmp_path):
    masks = [cell(i + 100, f"mask{i}.png") for i in range(9)]
    source = table(tmp_path, image=[cell(i, f"{i}.png") for i in range(9)], mask=masks)
    with pytest.raises(DataError, match=r"data\.column: .* image, mask"):
        ImageFolder(source, 16).images("train")
    with pytest.raises(DataError, match=r"data\.column=other: .* image, mask"):
        ImageFolder(source, 16, column="other").images("train")
    data = ImageFolder(source, 16, column="mask", val_fraction=0, test_fraction=0)
    assert data.images("train")[2][0].mul(255).mean() == pytest.approx(37 * 102 % 256, abs=0.6)


@pytest.mark.parametrize("bare", [True, False])
def test_column_of_bytes_alone(tmp_path, bare):
    cells = [cell(i)["bytes"] if bare else {"bytes": cell(i)["bytes"]} for i in range(20)]
    columns = {"image": cells, "vector": [b"no image"] * 20}
    datasets.Dataset.from_dict(columns).to_parquet(tmp_path / "train.parquet")
    data = ImageFolder(str(tmp_path), 16)
    assert sum(counts(data)) == 20
    assert len(set(chain(*names(data).values()))) == 20
    data.images("train")[0]


@pytest.mark.parametrize("splits", [True, False])
def test_folder_of_save_to_disk(tmp_path, splits):
    source = picture_files.parquet(tmp_path / "set", {"train": [30], "validation": [3]})
    expected = ImageFolder(str(source), 16)
    tables = datasets.load_dataset(str(source))
    (tables if splits else tables["train"]).save_to_disk(tmp_path / "saved")
    data = ImageFolder(str(tmp_path / "saved"), 16)
    assert sum(counts(data)) == (33 if splits else 30)
    if splits:
        assert names(data) == names(expected)
        assert data.images("val")[2].equal(expected.images("val")[2])


@pytest.mark.parametrize("kept", [0, 500, -300])
def test_damaged_table_is_named(tmp_path, kept):
    source = picture_files.parquet(tmp_path, {"train": [9, 9]})
    path = source / "data/train-00001-of-00002.parquet"
    path.write_bytes(path.read_bytes()[:kept])
    data = ImageFolder(str(source), 16, batch_size=2)
    with pytest.raises(DataError, match=re.escape(f"data.source={source}: ")) as error:
        list(data.train_dataloader())
    assert "\n" not in str(error.value)


# Folders


def test_folder_is_walked_as_a_user_expects(tmp_path):
    source = picture_files.folder(tmp_path / "source", 5)
    elsewhere = picture_files.folder(tmp_path / "elsewhere", 2)
    before = paths(source)
    assert len(before) == 5
    (source / "album.jpg").mkdir()
    picture_files.save(source / "album.jpg/in.PNG", picture_files.picture(0, 16, 16))
    picture_files.save(source / ".thumbs/t.png", picture_files.picture(0, 16, 16))
    (source / "link").symlink_to(elsewhere)
    (source / "again").symlink_to(elsewhere)
    (source / "round").symlink_to(tmp_path)
    (source / "inside").symlink_to(source / "album.jpg")
    added = {"album.jpg/in.PNG", *(f"again/{name}" for name in paths(elsewhere))}
    assert set(paths(source)) == {*before, *added}


def test_files_of_other_kinds_are_counted(tmp_path, caplog):
    source = picture_files.folder(tmp_path, 9)
    for name in ("photo", "scan", "notes.txt"):
        (source / name).write_bytes(picture_files.encoded(picture_files.picture(0)))
    assert sum(counts(ImageFolder(str(source), 16))) == 9
    (message,) = caplog.messages
    assert "no suffix: 2, .txt: 1" in message


@pytest.mark.parametrize(
    ("suffix", "kind"), [("jfif", "JPEG"), ("avif", "AVIF"), ("JP2", "JPEG2000"), ("tga", "TGA")]
)
def test_rarer_kinds_of_files(tmp_path, suffix, kind):
    data = picture_files.encoded(picture_files.picture(3, 16, 16), kind)
    (tmp_path / f"image.{suffix}").write_bytes(data)
    images = ImageFolder(str(tmp_path), 16, val_fraction=0, test_fraction=0).images("train")
    assert images[0][0].mul(255).mean() == pytest.approx(111, abs=4)


def test_folders_of_splits_are_the_splits(tmp_path):
    source = tmp_path / "set"
    for split, number in (("Train", 12), ("validation", 5), ("test", 4)):
        picture_files.folder(source / split, number)
    found = names(ImageFolder(str(source), 16))
    assert {split: len(its) for split, its in found.items()} == {"train": 12, "val": 5, "test": 4}
    assert all(name.startswith("validation/") for name in found["val"])
    picture_files.save(source / "stray.png", picture_files.picture(0))
    with pytest.raises(DataError, match=r"data.source .*train/.*stray\.png"):
        ImageFolder(str(source), 16).images("train")


def test_split_without_a_folder_is_taken_from_training(tmp_path):
    for split, number in (("train", 60), ("test", 4)):
        picture_files.folder(tmp_path / split, number)
    found = names(ImageFolder(str(tmp_path), 16, val_fraction=0.2))
    assert len(found["test"]) == 4
    assert 4 <= len(found["val"]) <= 24
    assert len(found["train"]) + len(found["val"]) == 60
    with pytest.raises(DataError, match=r"data.source .*train/"):
        ImageFolder(str(picture_files.folder(tmp_path / "x/test", 3).parent), 16).check(1)


def test_class_that_is_called_train_is_no_split(tmp_path):
    for kind in ("train", "car"):
        picture_files.folder(tmp_path / kind, 9)
    assert sum(counts(ImageFolder(str(tmp_path), 16))) == 18


def test_unreadable_folder_is_named(tmp_path, monkeypatch):
    source = picture_files.folder(tmp_path)
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("some"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(DataError, match=r"data.source: .*some .*Permission denied"):
        ImageFolder(str(source), 16).images("train")


def test_pipe_does_not_hang(tmp_path):
    picture_files.folder(tmp_path, 3)
    os.mkfifo(tmp_path / "a.jpg")
    data = ImageFolder(str(tmp_path), 16, val_fraction=0, test_fraction=0)
    with pytest.raises(ImageError, match=r"a\.jpg is not a regular file"):
        data.images("train")[0]
    data.fingerprint("train")


def test_name_that_is_not_utf8(tmp_path):
    source = picture_files.folder(tmp_path, 3)
    Path(os.fsdecode(os.fsencode(source) + b"/caf\xe9.png")).write_bytes(b"damaged")
    data = ImageFolder(str(source), 16, val_fraction=0.0, test_fraction=0.0)
    with pytest.raises(ImageError, match=r"image caf\\udce9\.png cannot be decoded"):
        [*data.batches("train", 4)]


def test_absent_folder_says_how_to_make_it(tmp_path):
    for module in (CelebA, CelebAHQ, ChestXray, ImageFolder):
        with pytest.raises(DataError, match=r"no such folder; .*docs/data\.md.*--source") as error:
            module(str(tmp_path / "none"), image_size=16).check(1)
        assert f"prepare {module.command_name} " in str(error.value)
        assert "\n" not in str(error.value)


def test_empty_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"no images there, expected \.avif, .*tables"):
        ImageFolder(str(tmp_path), 16).check(1)
    with pytest.raises(DataError, match=r"expected hub:owner/name"):
        ImageFolder("hub:", 16).check(1)
    source = picture_files.folder(tmp_path)
    with pytest.raises(ValueError, match=r"data\.batch_size=64: expected at most \d+"):
        ImageFolder(str(source), 16).check(1)
    with pytest.raises(ValueError, match=r"no validation images.*data\.val_fraction"):
        ImageFolder(str(source), 16, val_fraction=0, batch_size=2).check(1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 2}, "data.channels=2: expected 1 or 3"),
        ({"val_fraction": 0.6, "test_fraction": 0.4}, "less than 1 together"),
        ({"val_fraction": -0.1}, "expected 0 or more"),
        ({"n_bits": 9}, "data.n_bits=9: expected 1 to 8"),
        ({"image_size": 0}, "data.image_size=0: expected at least 1"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        ImageFolder(**{"source": "x", "image_size": 16} | options)
    with pytest.raises(ValueError, match=r"data.val_fraction=1"):
        ChestXray("x", val_fraction=1.0)


# MNIST and CIFAR-10


@pytest.fixture
def mnist(tmp_path, monkeypatch):
    """A small set whose files are taken for the original ones."""
    return picture_files.trusted_mnist(tmp_path / "mnist", monkeypatch)


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """A small set whose files are taken for the original ones."""
    return picture_files.trusted_cifar(tmp_path / "cifar", monkeypatch)


@pytest.mark.parametrize("size", [28, 32])
def test_mnist_is_whole_or_padded(mnist, size):
    data = MNIST(str(mnist), image_size=size)
    assert counts(data) == (40, 5000, 7)
    image = data.images("test")[1]
    assert image.shape == data.image_shape == (1, size, size)
    expected = (torch.arange(784, 1568) % 256).float().view(28, 28) / 255
    border = (size - 28) // 2
    assert image[0, border : border + 28, border : border + 28].equal(expected)
    assert image.sum() == pytest.approx(expected.sum().item(), rel=1e-6)
    assert not data.images("train")[39].equal(data.images("val")[0])


def test_mnist_is_not_padded_by_default(mnist):
    assert MNIST(str(mnist)).image_shape == (1, 28, 28)


def test_some_digits_of_mnist(mnist):
    data, every = MNIST(str(mnist), digits=[1, 9]), MNIST(str(mnist))
    assert counts(data) == (8, 1000, 1)  # the digits of the files are 0, 1, ..., 9, 0, ...
    for split, kept in {"train": (1, 9, 11), "val": (1, 9, 11), "test": (1,)}.items():
        for place, index in enumerate(kept):
            assert data.images(split)[place].equal(every.images(split)[index])
    assert data.fingerprint("test") != every.fingerprint("test")


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"image_size": 26}, "image_size=26"),
        ({"image_size": 31}, "image_size=31"),
        ({"n_bits": 9}, "n_bits=9"),
        ({"digits": []}, r"digits=\[\]"),
        ({"digits": [1, 10]}, r"digits=\[1, 10\]"),
    ],
)
def test_wrong_options_of_mnist(mnist, options, name):
    with pytest.raises(ValueError, match=rf"data\.{name}: expected [^\n]*$"):
        MNIST(str(mnist), **options)


@pytest.mark.parametrize(
    "content", [b"", bytes(99), b"random bytes", None], ids=["empty", "zeros", "random", "cut"]
)
def test_damaged_mnist_is_one_line_and_fetched_again(mnist, monkeypatch, content):
    path = mnist / "MNIST/raw/t10k-images-idx3-ubyte"
    original = path.read_bytes()
    path.write_bytes(original[:-5] if content is None else content)
    with pytest.raises(DataError, match=r"data.root=[^\n]*`download: true` of[^\n]*$"):
        MNIST(str(mnist)).images("test")

    def download(self):
        if not path.exists():
            path.write_bytes(original)

    monkeypatch.setattr("torchvision.datasets.MNIST.download", download)
    assert len(MNIST(str(mnist), download=True).images("test")) == 7


def test_cifar_is_in_colour(cifar):
    data = CIFAR10(str(cifar))
    assert counts(data) == (50, 5000, 1010)
    image = data.images("test")[3].mul(255)
    assert image.shape == data.image_shape == (3, 32, 32)
    assert image.mean(dim=(1, 2)).tolist() == pytest.approx([5, 100, 3])


@pytest.mark.parametrize("module", [MNIST, CIFAR10])
def test_absent_torchvision_files_are_one_line(tmp_path, module):
    with pytest.raises(DataError, match=r"data.root=.*`download: true` of.*docs/data.md"):
        module(str(tmp_path)).images("train")


@pytest.mark.parametrize("module", [MNIST, CIFAR10])
def test_failed_download_is_one_line(tmp_path, module, monkeypatch):
    def refuse(*_, **__):
        raise URLError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(DataError, match=r"data.root=.*: .*no route to host[^\n]*$"):
        module(str(tmp_path), download=True).images("train")


def test_one_of_several_downloads(tmp_path, mnist, monkeypatch):
    downloads = []

    def download(self):
        if not (tmp_path / "new/MNIST").exists():
            downloads.append(self)
            time.sleep(0.2)
            shutil.copytree(mnist / "MNIST", tmp_path / "new/MNIST")

    monkeypatch.setattr("torchvision.datasets.MNIST.download", download)
    root = str(tmp_path / "new")
    with ThreadPoolExecutor(3) as pool:
        parts = pool.map(lambda _: MNIST(root, download=True).images("test"), range(3))
        assert [len(part) for part in parts] == [7, 7, 7]
    assert len(downloads) == 1


def test_altered_cifar_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"data.root=.*not the original"):
        CIFAR10(str(picture_files.cifar(tmp_path))).images("train")


# Fingerprints


def copies(source, target, number):
    """A copy of a folder where some images are others of the same size and time."""
    shutil.copytree(source, target)
    for path in sorted(target.rglob("*.bmp"))[:number]:
        status = path.stat()
        picture_files.picture(99, 20, 20).save(path)
        assert path.stat().st_size == status.st_size
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    return target


@pytest.mark.parametrize("prepared", [False, True])
def test_fingerprint_changes_with_the_images(tmp_path, prepared):
    source = tmp_path / "source"
    for split, number in (("train", 3), ("test", 14)):
        for i in range(number):
            picture_files.save(source / split / f"{i:02d}.bmp", picture_files.picture(i))

    def fingerprint(folder, **options):
        if prepared:
            prepare(ImageFolder(str(folder), 16), tmp_path / f"made-{folder.name}")
            folder = tmp_path / f"made-{folder.name}"
        return ImageFolder(str(folder), 16, **options).fingerprint()

    before = fingerprint(source)
    assert before == fingerprint(source) == json.loads(json.dumps(before))
    assert before["images"] == 14
    assert before["digest"] == fingerprint(copies(source, tmp_path / "same", 0))["digest"]
    assert before["digest"] != fingerprint(copies(source, tmp_path / "one", 1))["digest"]
    changed = fingerprint(source, n_bits=5, data_range=(-1.0, 1.0), seed=1)
    assert [name for name in before if before[name] != changed[name]] == [
        "n_bits",
        "data_range",
        "seed",
    ]
    assert changed["digest"] == before["digest"]


def test_fingerprint_of_much_data_reads_the_beginnings(tmp_path, monkeypatch):
    monkeypatch.setattr("datamodules.decoding._HASHED_WHOLE", 2000)
    monkeypatch.setattr("datamodules.decoding._HASHED_HEAD", 100)
    read = []
    head = decoding._head
    monkeypatch.setattr(decoding, "_head", lambda path, n: read.append(n) or head(path, n))
    data = ImageFolder(str(picture_files.folder(tmp_path)), 16, val_fraction=0, test_fraction=0)
    before = data.fingerprint("train")
    assert read[0] == 2000
    assert read[-1] == 100
    files = [tmp_path / name for name in data.pictures["train"].names]
    whole = np.cumsum([file.stat().st_size for file in files]) <= 2000
    for index in (0, whole.sum() - 1, whole.sum(), 50):  # the last that is read whole, and the next
        os.utime(files[index], ns=(0, 0))
        after = data.fingerprint("train")
        assert (after == before) is bool(whole[index])
        before = after


def test_fingerprint_of_tables_and_arrays(tmp_path, mnist):
    cells = [[cell(i) for i in range(n, n + 20)] for n in (0, 20)]
    sources = [table(tmp_path / str(n), image=its) for n, its in enumerate(cells)]
    tables = [ImageFolder(source, 16).fingerprint("train") for source in sources]
    assert tables[0] != tables[1]
    splits = [MNIST(str(mnist)).fingerprint(split) for split in SPLITS]
    assert len({each["digest"] for each in splits}) == 3


# What all share


@pytest.fixture(scope="module")
def arrays():
    pixels = np.random.default_rng(0).integers(0, 256, (9, 3, 5, 7), dtype=np.uint8)
    pixels[0].flat[:4] = (0, 1, 254, 255)
    return pixels


@pytest.mark.parametrize("data_range", [(-0.5, 0.5), (0.0, 1.0), (-1.0, 1.0), (3.0, 3.7)])
@pytest.mark.parametrize("n_bits", [None, 1, 5, 8])
def test_bytes_are_dequantised_as_their_float_images(arrays, n_bits, data_range):
    keys = [(3, i) for i in range(9)]
    bytes_, floats = (
        DequantizedImages(ArrayImages(its), "train", n_bits, data_range, 7, True).__getitems__(keys)
        for its in (arrays, (arrays / 255).astype(np.float32))
    )
    assert bytes_.equal(floats)
    assert bytes_.min() >= np.float32(data_range[0])
    assert bytes_.max() <= np.float32(data_range[1])


def test_half_of_the_images_is_flipped_others_in_each_epoch():
    images = np.zeros((400, 1, 1, 2), np.float32)
    images[..., 1] = 1
    source = ArrayImages(images)
    data = DequantizedImages(source, "train", None, (0, 1), horizontal_flips=True)
    epochs = torch.stack(
        [data.__getitems__([(epoch, i) for i in range(400)])[:, 0, 0, 0] for epoch in range(2)]
    )
    assert epochs.sum(dim=1).tolist() == pytest.approx([200, 200], abs=50)
    assert (epochs[0] != epochs[1]).sum().item() == pytest.approx(200, abs=50)
    assert data[(1, 7)][0, 0, 0] == epochs[1, 7]


def test_only_training_images_are_flipped(tmp_path):
    source = picture_files.folder(tmp_path)
    plain, flips = (
        ImageFolder(str(source), 16, val_fraction=0.3, horizontal_flips=flag, batch_size=8)
        for flag in (False, True)
    )
    for split, dequantized, same in (
        ("val", True, True),
        ("train", False, True),
        ("train", True, False),
    ):
        one, other = (next(m.batches(split, 20, None, dequantized))[1] for m in (plain, flips))
        assert one.equal(other) is same


@pytest.mark.parametrize("workers", [0, 2])
def test_epoch_is_the_same_at_any_number_of_processes(tmp_path, workers):
    data = ImageFolder(str(picture_files.folder(tmp_path)), 16, batch_size=8, num_workers=workers)
    whole = torch.cat(list(data.train_dataloader()))
    images = data.dataset("train")
    shares = [GlobalBatchSampler(len(images), 8, 0, rank, 2) for rank in range(2)]
    together = [images.__getitems__([*one, *other]) for one, other in zip(*shares, strict=True)]
    assert torch.cat(together).equal(whole)
