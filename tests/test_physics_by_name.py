"""Operators by import path: deepinv's and a user's own."""

import sys

import deepinv
import numpy as np
import pytest
import scipy.ndimage
import torch

from flowprior.physics import crosshole, find_operator, make_operator

SHAPE = (2, 8, 8)

OWN = """
from deepinv.physics import LinearPhysics
from torch import nn


class RowMean(LinearPhysics):
    def __init__(self, image_shape, weight: float = 1.0):
        super().__init__()
        self.image_shape, self.weight = image_shape, weight

    def A(self, x, **kwargs):
        return self.weight * x.mean(-1)


class Negative(LinearPhysics):
    def A(self, x, **kwargs):
        return -x


def doubled(**options):
    return nn.Linear(2, 2, **options)


def square(x):
    return x**2


def broken():
    raise RuntimeError("first line\\nsecond line")


NUMBER = 3
"""


@pytest.fixture(autouse=True)
def own_operators(tmp_path, monkeypatch):
    (tmp_path / "my_ops.py").write_text(OWN)
    (tmp_path / "with_a_mistake.py").write_text("import a_module_that_nobody_has")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    monkeypatch.delitem(sys.modules, "my_ops", raising=False)


def images(count=2, shape=SHAPE):
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(0))


def test_find_operator_makes_nothing():
    assert find_operator("crosshole_tomography") is crosshole
    assert find_operator("deepinv.physics.Inpainting") is deepinv.physics.Inpainting
    assert find_operator("my_ops.RowMean").__name__ == "RowMean"
    with pytest.raises(ValueError, match="sharpen"):
        find_operator("sharpen")


def test_own_class_gets_the_shape():
    x = images()
    physics = make_operator("my_ops.RowMean", list(SHAPE), weight=3.0)
    assert physics.image_shape == SHAPE
    assert torch.equal(physics.A(x), 3 * x.mean(-1))


def test_own_class_without_a_constructor_and_own_function():
    x = images()
    assert torch.equal(make_operator("my_ops.Negative", SHAPE).A(x), -x)
    assert make_operator("my_ops.doubled", SHAPE, bias=False).bias is None


def test_inpainting_of_deepinv():
    x = images()
    mask = (images(1)[0] > 0.5).float()
    physics = make_operator("deepinv.physics.Inpainting", SHAPE, mask=mask.tolist())
    assert isinstance(physics, deepinv.physics.Inpainting)
    assert torch.equal(physics.A(x), x * mask)


def test_random_operators_are_the_same_at_every_call():
    def mask(**options):
        torch.rand(1)
        return make_operator("deepinv.physics.Inpainting", (1, 16, 16), mask=0.5, **options).mask

    state = torch.get_rng_state()
    first = make_operator("deepinv.physics.Inpainting", (1, 16, 16), mask=0.5).mask
    assert torch.equal(torch.get_rng_state(), state)
    assert 0.3 < first.mean() < 0.7
    assert torch.equal(mask(), first)
    assert torch.equal(mask(rng=3), mask(rng=3))
    assert not torch.equal(mask(rng=4), mask(rng=3))


def test_blur_of_deepinv():
    x = images()
    kernel = torch.tensor([[0.1, 0.2, 0.1], [0.0, 0.3, 0.1], [0.0, 0.2, 0.0]])
    physics = make_operator(
        "deepinv.physics.Blur", SHAPE, filter=[[kernel.tolist()]], padding="circular"
    )
    for image, blurred in zip(x.flatten(0, 1), physics.A(x).flatten(0, 1), strict=True):
        expected = scipy.ndimage.convolve(image.numpy(), kernel.numpy(), mode="wrap")
        assert np.abs(blurred.numpy() - expected).max() < 1e-6


def test_blur_fft_of_deepinv_is_its_circular_blur():
    x, kernel = images(), [[[[0.1, 0.2, 0.1], [0.0, 0.3, 0.1], [0.0, 0.2, 0.0]]]]
    fast = make_operator("deepinv.physics.BlurFFT", SHAPE, filter=kernel)
    plain = make_operator("deepinv.physics.Blur", SHAPE, filter=kernel, padding="circular")
    torch.testing.assert_close(fast.A(x), plain.A(x), rtol=1e-5, atol=1e-6)


def test_downsampling_of_deepinv():
    x = images()
    physics = make_operator("deepinv.physics.Downsampling", SHAPE, filter=None, factor=2)
    assert torch.equal(physics.A(x), x[..., ::2, ::2])


def test_compressed_sensing_of_deepinv():
    x = images()
    first, same, other = (
        make_operator("deepinv.physics.CompressedSensing", SHAPE, m=10, rng=rng).A(x)
        for rng in (1, 1, 2)
    )
    assert first.shape == (2, 10)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_tomography_of_deepinv():
    x = images()
    options = {"img_width": 8, "normalize": False, "circle": False}
    physics = make_operator("deepinv.physics.Tomography", SHAPE, angles=[0.0, 90.0], **options)
    y = physics.A(x)
    assert y.shape[:2] == (2, 2)
    torch.testing.assert_close(y.sum(2), x.sum((2, 3)).unsqueeze(2).expand(-1, -1, 2))


@pytest.mark.parametrize(
    ("path", "options", "named"),
    [
        ("sharpen", {}, "sharpen"),
        ("my_ops.Sharpen", {}, "Sharpen"),
        ("no_ops_here.Sharpen", {}, "no_ops_here"),
        ("with_a_mistake.Sharpen", {}, "a_module_that_nobody_has"),
        (".Sharpen", {}, "Sharpen"),
        ("my_ops.NUMBER", {}, "my_ops.NUMBER"),
        ("my_ops.square", {}, "'x'"),
        ("my_ops.square", {"x": 3}, "int"),
        ("my_ops.broken", {}, "first line"),
        ("my_ops.RowMean", {"heavy": 3}, "heavy"),
        ("my_ops.RowMean", {"heavy": 3}, "options are weight$"),
        ("my_ops.doubled", {"heavy": 3}, "heavy"),
        ("deepinv.physics.Inpainting", {"maks": 0.5}, "maks"),
        ("deepinv.physics.Inpainting", {"mask": "half"}, "mask"),
        ("deepinv.physics.CompressedSensing", {}, "'m'"),
        ("deepinv.physics.Nothing", {}, "Nothing"),
    ],
)
def test_mistakes(path, options, named):
    with pytest.raises(ValueError, match=rf"^operator [^\n]*{named}[^\n]*$"):
        make_operator(path, SHAPE, **options)
