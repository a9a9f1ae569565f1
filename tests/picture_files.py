"""Tiny sets of images in the exact formats in which the real ones come."""

import hashlib
import io
import itertools
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import CIFAR10

from datamodules.small_images import MNIST_SUMS


def picture(number: int, width: int = 20, height: int = 20) -> Image.Image:
    """Colour gradients that differ from number to number."""
    rows, columns = np.mgrid[:height, :width]
    red = np.full((height, width), 37 * number % 256)
    pixels = np.stack([red, 255 * rows // height, 255 * columns // width], axis=-1)
    return Image.fromarray(pixels.astype(np.uint8))


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def save(path: Path, image: Image.Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def folder(path: Path, number: int = 60, size: int = 20) -> Path:
    for i in range(number):
        save(path / f"some/{i:03d}.png", picture(i, size, size))
    return path


def partition_lines(counts: tuple[int, int, int]) -> list[str]:
    """CelebA's list_eval_partition.txt: training images first, then validation, then test."""
    codes = [code for code, count in enumerate(counts) for _ in range(count)]
    return [f"{i:06d}.jpg {code}" for i, code in enumerate(codes, start=1)]


def celeba(path: Path, counts: tuple[int, int, int] = (40, 6, 5), size: int = 64) -> Path:
    lines = partition_lines(counts)
    for i, line in enumerate(lines):
        image = picture(i, size, size * 218 // 178)
        save(path / "img_align_celeba" / line.split()[0], image)
    (path / "list_eval_partition.txt").write_text("\n".join(lines) + "\n")
    return path


def celeba_hq_mapping(originals: list[int]) -> str:
    """CelebAMask-HQ's mapping file for the numbers of CelebA images, counted from 0."""
    lines = ["idx\torig_idx\torig_file"]
    lines += [f"{i}\t\t{k}\t\t{k + 1:06d}.jpg" for i, k in enumerate(originals)]
    return "\n".join(lines) + "\n"


def celeba_hq(path: Path, number: int = 70, size: int = 32) -> Path:
    """Training, validation and test images of CelebA in turn: 5 to 1 to 1."""
    counts = (5 * number, 2 * number, 2 * number)
    starts = [0, counts[0], counts[0] + counts[1]]
    originals = [starts[max(i % 7 - 4, 0)] + i for i in range(number)]
    for i in range(number):
        save(path / f"CelebA-HQ-img/{i}.jpg", picture(i, size, size))
    (path / "CelebA-HQ-to-CelebA-mapping.txt").write_text(celeba_hq_mapping(originals))
    (path / "list_eval_partition.txt").write_text("\n".join(partition_lines(counts)))
    return path


def chest(path: Path, patients: int = 40, size: int = 32) -> Path:
    """NIH's folders; patient p has 1 to 3 images, every fifth patient is for testing."""
    lists: dict[str, list[str]] = {"train_val_list.txt": [], "test_list.txt": []}
    for patient in range(1, patients + 1):
        for scan in range(1 + patient % 3):
            name = f"{patient:08d}_{scan:03d}.png"
            lists["train_val_list.txt" if patient % 5 else "test_list.txt"].append(name)
            image = picture(patient + scan, size, size).convert("L")
            save(path / f"images_{1 + patient % 12:03d}/images/{name}", image)
    for name, names in lists.items():
        (path / name).write_text("\n".join(names))
    return path


def parquet(path: Path, splits: dict[str, list[int]], paths: bool = True, size: int = 20) -> Path:
    """A hub's layout, data/train-00000-of-00002.parquet; one file for each number of rows."""
    import datasets

    datasets.disable_progress_bars()
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    (path / "data").mkdir(parents=True)
    numbers = itertools.count()
    for split, files in splits.items():
        for part, rows in enumerate(files):
            cells = []
            for number in itertools.islice(numbers, rows):
                name = f"{split}-{number}.png" if paths else None
                cells.append({"bytes": encoded(picture(number, size, size)), "path": name})
            table = {"image": cells, "label": list(range(rows))}
            name = f"data/{split}-{part:05d}-of-{len(files):05d}.parquet"
            datasets.Dataset.from_dict(table, features).to_parquet(path / name)
    return path


def mnist(path: Path, train: int = 5040, test: int = 7) -> Path:
    """The idx files of MNIST/raw: big-endian sizes, then bytes."""
    raw = path / "MNIST/raw"
    raw.mkdir(parents=True)
    for name, number in (("train", train), ("t10k", test)):
        pixels = np.arange(number * 784, dtype=np.uint32).astype(np.uint8).tobytes()
        images = np.array([2051, number, 28, 28], dtype=">i4").tobytes() + pixels
        labels = np.array([2049, number], dtype=">i4").tobytes()
        labels += bytes(index % 10 for index in range(number))
        (raw / f"{name}-images-idx3-ubyte").write_bytes(images)
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(labels)
    return path


def trusted_mnist(path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small set whose files are taken for the original ones."""
    mnist(path)
    for name in MNIST_SUMS:
        content = (path / "MNIST/raw" / name).read_bytes()
        monkeypatch.setitem(MNIST_SUMS, name, hashlib.md5(content).hexdigest())
    return path


def cifar(path: Path, per_batch: int = 1010, noisy: bool = False) -> Path:
    """The pickles of cifar-10-batches-py: rows of 3072 bytes, red before green before blue."""
    batches = path / "cifar-10-batches-py"
    batches.mkdir(parents=True)
    for number, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        data = np.full((per_batch, 3072), number, dtype=np.uint8)
        data[:, 1024:2048] = 100
        data[:, 2048:] = np.arange(per_batch)[:, None] % 256
        if noisy:  # a flow cannot begin with images of one colour
            data = np.random.default_rng(number).integers(0, 256, data.shape, dtype=np.uint8)
        content = {"data": data, "labels": [0] * per_batch}
        (batches / name).write_bytes(pickle.dumps(content))
    (batches / "batches.meta").write_bytes(pickle.dumps({"label_names": ["thing"]}))
    return path


def trusted_cifar(path: Path, monkeypatch: pytest.MonkeyPatch, noisy: bool = False) -> Path:
    """A small set whose files are taken for the original ones."""
    for files in ("train_list", "test_list"):
        names = [name for name, _ in getattr(CIFAR10, files)]
        monkeypatch.setattr(CIFAR10, files, [[name, None] for name in names])
    monkeypatch.setitem(CIFAR10.meta, "md5", None)
    return cifar(path, noisy=noisy)
