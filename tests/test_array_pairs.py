"""Pairs of images and data from two files of one's own."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

import flowprior
from datamodules import ArrayPairs
from datamodules.errors import DataError
from flowprior.inversion import invert
from flowprior.physics import ScaledData, denoising
from flowprior.posterior import Amortised
from tests.test_train_pairs import run

CONFIG = """
seed_everything: 0
model:
  flow:
    class_path: flowprior.flows.Glow
    init_args: {in_channels: 1, image_size: 8, levels: 1, steps: 2, hidden_channels: 8,
                coupling: affine, condition_shape: [1, 8, 8]}
  loss: {class_path: flowprior.losses.ConditionalLikelihood}
data:
  class_path: datamodules.ArrayPairs
  init_args:
    {x: x.npy, y: y.npy, num_val: 3, num_test: 2, scale: 2.0, batch_size: 4, num_workers: 1}
trainer: {accelerator: cpu, max_epochs: 2, log_every_n_steps: 1}
"""


def arrays(count: int = 20, kind: type = np.float32) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    x = generator.random((count, 1, 8, 8))
    x = (255 * x).astype(np.uint8) if kind is np.uint8 else x.astype(kind)
    return x, generator.standard_normal((count, 1, 8, 8))


def saved(folder: Path, x: np.ndarray, y: np.ndarray, **options: object) -> ArrayPairs:
    np.save(folder / "x.npy", x)
    np.save(folder / "y.npy", y)
    given = {"num_val": 3, "num_test": 2, "batch_size": 4, **options}
    return ArrayPairs(folder / "x.npy", folder / "y.npy", **given)


@pytest.mark.parametrize("kind", [np.uint8, np.float32, np.float64])
def test_pairs_are_the_rows_of_the_files(tmp_path: Path, kind: type) -> None:
    x, y = arrays(kind=kind)
    data = saved(tmp_path, x, y, scale=2.0)
    data.check(1)
    assert [len(data.images(split)) for split in ("train", "val", "test")] == [15, 3, 2]
    unit = x / 255 if kind is np.uint8 else x
    for split, rows in (("train", range(15)), ("val", range(15, 18)), ("test", range(18, 20))):
        _, images, given = next(data.pairs(split, 20, dequantized=False))
        np.testing.assert_allclose(images + 0.5, unit[list(rows)], atol=1e-6)
        np.testing.assert_allclose(given, 2 * y[list(rows)], rtol=1e-6)
        assert given.dtype == images.dtype == torch.float32
        measured = data.measured(split, range(len(rows)))
        np.testing.assert_allclose(measured, y[list(rows)], rtol=1e-6)
    assert data.conditioning == ScaledData(2.0)
    assert data.condition_shape == (1, 8, 8)
    assert data.image_shape == (1, 8, 8)


def test_numbers_stay_in_the_files(tmp_path: Path) -> None:
    data = saved(tmp_path, *arrays(2000))
    assert isinstance(data._x, np.memmap)
    stored = pickle.dumps(data)
    assert len(stored) < 5000
    again = pickle.loads(stored)
    assert torch.equal(again.conditions("test", [1]), data.conditions("test", [1]))
    saved(tmp_path, *arrays(30))
    with pytest.raises(DataError, match=r"data.x=.*has changed"):
        pickle.loads(stored)


def test_fingerprint_is_of_both_files(tmp_path: Path) -> None:
    x, y = arrays()
    prints = [saved(tmp_path, x, y).fingerprint(), saved(tmp_path, x, y, scale=2.0).fingerprint()]
    for array in (x, y):
        array[19, 0, 0, 0] = 0.5
        prints.append(saved(tmp_path, x, y).fingerprint())
    assert len({str(one) for one in prints}) == 4


def test_a_flow_is_trained_on_them_and_given_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = arrays()
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    monkeypatch.chdir(tmp_path)
    folder = run(tmp_path, CONFIG)
    flow = flowprior.load(folder / "weights")
    assert flow.conditioning == ScaledData(2.0)
    measured = ArrayPairs("x.npy", "y.npy", num_val=3, num_test=2).measured("test", range(2))
    options = {"sigma": 1.0, "solver": Amortised(mean_draws=2), "iterations": 0}
    found = invert(flow, denoising((1, 8, 8)), measured, **options)
    given = invert(flow, denoising((1, 8, 8)), measured, **options, condition=2 * measured)
    assert torch.equal(found.x, given.x)


def edited(array: np.ndarray, index: tuple[int, ...], value: float) -> np.ndarray:
    array = array.copy()
    array[index] = value
    return array


X, Y = arrays()


@pytest.mark.parametrize(
    ("x", "y", "options", "message"),
    [
        (X[:, 0], Y, {}, r"data.x=.*x.npy: expected square images \(N, C, S, S\)"),
        (X[..., :4], Y, {}, r"data.x=.*expected square images"),
        (X.astype(int), Y, {}, r"data.x=.*got int64"),
        (X, Y[:19], {}, r"data.y=.*y.npy: expected real data \(20, ...\), a row for each image"),
        (X, Y[:, 0, 0, 0], {}, r"data.y=.*expected real data"),
        (X, Y + 1j, {}, "give real and imaginary parts as channels"),
        (X, Y, {"num_val": 0}, "data.num_val=0: expected at least 1"),
        (X, Y, {"num_val": 19}, r"data.num_val \+ num_test=21: expected fewer than 20 pairs"),
        (X, Y, {"scale": 0.0}, "data.scale must be"),
        (X, Y, {"n_bits": 17}, "data.n_bits=17"),
        (
            arrays(kind=np.uint8)[0],
            Y,
            {"n_bits": 9},
            "data.n_bits=9: expected 1 to 8 for images of",
        ),
        (X[:0], Y[:0], {}, "data.x=.*expected one array that is not empty"),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path, x: np.ndarray, y: np.ndarray, options: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        saved(tmp_path, x, y, **options)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (
            edited(X, (7, 0, 1, 1), 1.5),
            Y,
            r"data.x=.*expected in \[0, 1\], which rows \[7\] are not",
        ),
        (edited(X, (3, 0, 1, 1), np.nan), Y, r"data.x=.*rows \[3\]"),
        (
            X,
            edited(Y, (19, 0, 1, 1), np.inf),
            r"data.y=.*finite in single precision, which rows \[19\]",
        ),
        (X, edited(Y, (2, 0, 1, 1), 1e39), r"data.y=.*rows \[2\] are not"),
    ],
)
def test_numbers_are_checked_before_training(
    tmp_path: Path, x: np.ndarray, y: np.ndarray, message: str
) -> None:
    data = saved(tmp_path, x, y)
    with pytest.raises(DataError, match=message):
        data.check(1)


def test_files_that_are_none(tmp_path: Path) -> None:
    data = saved(tmp_path, X, Y)
    options = {"num_val": 3, "num_test": 2}
    with pytest.raises(DataError, match=r"data.y=.*there is no such file"):
        ArrayPairs(data.files["x"], tmp_path / "none.npy", **options)
    (tmp_path / "text.npy").write_text("nothing")
    np.savez(tmp_path / "both.npz", x=X)
    (tmp_path / "zip.npy").write_bytes(b"PK\x03\x04abc")
    for name in ("text.npy", "both.npz", "zip.npy"):
        with pytest.raises(DataError, match=rf"data.x=.*{name}"):
            ArrayPairs(tmp_path / name, data.files["y"], **options)
