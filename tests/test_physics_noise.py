"""Noise: its size, and that it belongs to an image and not to a batch."""

import pytest
import torch

from flowprior.physics.noise import (
    gaussian_noise,
    noise_for_snr,
    relative_noise,
    sigma_in_data_units,
    standard_normal,
)

SHAPE = (3, 40, 40)


def signals(count=4, dtype=torch.float32):
    generator = torch.Generator().manual_seed(5)
    return torch.rand(count, *SHAPE, generator=generator, dtype=dtype) + 0.5


def half_mask(count=1):
    mask = torch.zeros(count, 1, *SHAPE[1:])
    mask[..., ::2] = 1
    return mask


NOISES = {
    "gaussian": lambda y, **keys: gaussian_noise(y, 0.1, **keys),
    "gaussian 255": lambda y, **keys: gaussian_noise(y, 50, scale="255", **keys),
    "snr": lambda y, **keys: noise_for_snr(y, 20, **keys),
    "snr observed": lambda y, **keys: noise_for_snr(y, 20, observed=half_mask(), **keys),
    "relative": lambda y, **keys: relative_noise(y, 0.01, **keys),
}


@pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_batch_equals_singles_bitwise(noise, dtype):
    y = signals(5, dtype)
    batch = noise(y, seed=3, indices=[4, 0, 9, 2, 70_000])
    assert batch.dtype == dtype
    for row, index in enumerate([4, 0, 9, 2, 70_000]):
        assert torch.equal(noise(y[row : row + 1], seed=3, indices=[index])[0], batch[row])
    order = [3, 1, 0]
    shuffled = noise(y[order], seed=3, indices=torch.tensor([2, 0, 4]))
    assert torch.equal(shuffled, batch[order])


@pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES)
def test_seeds_and_indices_differ_and_the_global_generator_is_left_alone(noise):
    y = signals(1).expand(2, *SHAPE)
    state = torch.get_rng_state()
    first = noise(y, seed=0, indices=[0, 1])
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(noise(y, seed=1, indices=[0, 1])[1], first[1])
    # (seed, index) is not symmetric.
    assert not torch.equal(noise(y, seed=1, indices=[0, 1])[0], first[1])


def test_standard_normal_moments():
    z = standard_normal(torch.zeros(20, 10_000), 0, range(20))
    assert abs(z.mean()) < 5 / 200_000**0.5
    assert z.std() == pytest.approx(1, abs=5 / 400_000**0.5)
    correlation = torch.corrcoef(z) - torch.eye(20)
    assert correlation.abs().max() < 0.06


def test_same_numbers_in_every_precision():
    single = standard_normal(torch.zeros(2, 50), 0, [1, 2])
    double = standard_normal(torch.zeros(2, 50, dtype=torch.float64), 0, [1, 2])
    assert torch.equal(single, double.float())


def test_gaussian_noise_scales():
    y = torch.zeros(4, *SHAPE)
    data = gaussian_noise(y, 0.2, seed=0, indices=range(4))
    assert data.std() == pytest.approx(0.2, rel=0.02)
    pixels = gaussian_noise(y, 25.5, seed=0, indices=range(4), scale="255", data_range=(-1.0, 1.0))
    assert torch.allclose(pixels, data)
    assert sigma_in_data_units(50, "255") == 50 / 255
    assert torch.equal(gaussian_noise(data, 0, seed=0, indices=range(4)), data)


def test_relative_noise():
    y = signals(2)
    ratio = relative_noise(y, 0.005, seed=0, indices=[0, 1]) / y - 1
    assert ratio.std() == pytest.approx(0.005, rel=0.03)
    assert torch.equal(relative_noise(0 * y, 0.5, seed=0, indices=[0, 1]), 0 * y)


@pytest.mark.parametrize("snr_db", [-5.0, 0.0, 30.0])
@pytest.mark.parametrize("masked", [False, True])
def test_snr_in_expectation(snr_db, masked):
    factors = torch.tensor([0.01, 1.0, 200.0]).view(3, 1, 1, 1)
    y = signals(3, torch.float64) * factors
    seen = half_mask() if masked else torch.ones(1)
    noise = noise_for_snr(y, snr_db, seed=0, indices=range(3), observed=seen) - y
    found = 10 * torch.log10((y * seen).square().sum((1, 2, 3)) / noise.square().sum((1, 2, 3)))
    # 4800 or 2400 samples: the standard deviation of the realised SNR is at most 0.13 dB.
    assert (found - snr_db).abs().max() < 0.65


def test_snr_in_expectation_over_many_images():
    y = signals(1, torch.float64).expand(100, *SHAPE)
    noise = noise_for_snr(y, 10, seed=0, indices=range(100)) - y
    expected = y.square().sum() / 10
    assert noise.square().sum() == pytest.approx(expected.item(), rel=0.01)


def test_masked_samples_are_untouched():
    y = signals(2)
    mask = half_mask(2)
    mask[1] = 1 - mask[1]
    y = torch.where(mask != 0, y, torch.nan)
    y[0, 0, 0, 1] = -0.0
    noisy = noise_for_snr(y, 20, seed=0, indices=[0, 1], observed=mask)
    hidden = (mask == 0).expand_as(y)
    assert torch.equal(noisy[hidden].view(torch.int32), y[hidden].view(torch.int32))
    assert noisy[~hidden].isfinite().all()
    assert (noisy != y)[~hidden].float().mean() > 0.99


def test_gradient_flows():
    y = signals(2).requires_grad_()
    noise_for_snr(y, 20, seed=0, indices=[0, 1]).sum().backward()
    assert torch.equal(y.grad, torch.ones_like(y))


def test_empty_batch():
    y = torch.zeros(0, 5)
    assert gaussian_noise(y, 1.0, seed=0, indices=[]).shape == (0, 5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda y: gaussian_noise(y, -1, seed=0, indices=[0, 1]), "sigma must be"),
        (lambda y: gaussian_noise(y, float("nan"), seed=0, indices=[0, 1]), "sigma must be"),
        (lambda y: relative_noise(y, -1, seed=0, indices=[0, 1]), "sigma must be"),
        (lambda y: gaussian_noise(y, 1, seed=0, indices=[0]), "2 images need"),
        (lambda y: gaussian_noise(y, 1, seed=0, indices=[0, -1]), "seed and index"),
        (lambda y: gaussian_noise(y, 1, seed=0.5, indices=[0, 1]), "seed and index"),
        (lambda y: gaussian_noise(y, 1, seed=0, indices=[0, 1], scale="8"), "scale must be"),
        (
            lambda y: gaussian_noise(
                y, 1, seed=0, indices=[0, 1], scale="255", data_range=(1.0, 0.0)
            ),
            "data_range must be",
        ),
        (lambda y: gaussian_noise(y.int(), 1, seed=0, indices=[0, 1]), "floating point"),
        (lambda y: gaussian_noise(y[0, 0, 0], 1, seed=0, indices=[0, 1]), "floating point"),
        (lambda y: noise_for_snr(y, float("inf"), seed=0, indices=[0, 1]), "snr_db must be"),
        (lambda y: noise_for_snr(0 * y, 10, seed=0, indices=[7, 1]), "image 7 is undefined"),
        (
            lambda y: noise_for_snr(y, 10, seed=0, indices=[7, 1], observed=torch.zeros(1)),
            "image 7 is undefined",
        ),
        (
            lambda y: noise_for_snr(y, 10, seed=0, indices=[0, 1], observed=torch.ones(3, 5)),
            "must broadcast",
        ),
    ],
)
def test_mistakes(call, message):
    with pytest.raises(ValueError, match=message):
        call(signals(2))
