"""Noise: its size, its likelihood, and that it belongs to an image and not to a batch."""

import math
import subprocess
import sys

import numpy as np
import pytest
import scipy.stats
import torch

from flowprior.physics import (
    SNR,
    BandLimited,
    Contaminated,
    Gaussian,
    Laplace,
    Noise,
    Poisson,
    Relative,
)
from flowprior.physics.noise import standard_normal

SHAPE = (3, 40, 40)
NOISES = [
    Gaussian(0.1),
    Gaussian(50, "255"),
    Relative(0.05),
    SNR(20),
    Laplace(0.1),
    Contaminated(0.1, share=0.3, factor=4.0),
    Poisson(100),
]
every_noise = pytest.mark.parametrize("noise", NOISES, ids=repr)


def signals(count=4, dtype=torch.float32, shape=SHAPE):
    generator = torch.Generator().manual_seed(5)
    return torch.rand(count, *shape, generator=generator, dtype=dtype) + 0.5


def half_mask(count=1):
    mask = torch.zeros(count, 1, *SHAPE[1:])
    mask[..., ::2] = 1
    return mask


def row(*values, dtype=torch.float64):
    return torch.tensor([values], dtype=dtype)


# What is drawn.


@every_noise
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("observed", [None, half_mask()], ids=["all", "half"])
def test_noise_of_a_batch_equals_that_of_its_rows_bitwise(noise, dtype, observed):
    y = signals(5, dtype)
    indices = [4, 0, 9, 2, 70_000]
    batch = noise.add(y, seed=3, indices=indices, observed=observed)
    assert batch.dtype == dtype
    for one, index, expected in zip(y.split(1), indices, batch, strict=True):
        found = noise.add(one, seed=3, indices=[index], observed=observed)
        assert torch.equal(found[0], expected)
    order = [3, 1, 0]
    shuffled = noise.add(y[order], seed=3, indices=torch.tensor([2, 0, 4]), observed=observed)
    assert torch.equal(shuffled, batch[order])


@every_noise
def test_seeds_and_indices_differ_and_the_global_generator_is_left_alone(noise):
    y = signals(1).expand(2, *SHAPE)
    state = torch.get_rng_state()
    first = noise.add(y, seed=0, indices=[0, 1])
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first[0], first[1])
    second = noise.add(y, seed=1, indices=[0, 1])
    assert not torch.equal(second[1], first[1])
    # (seed, index) is not symmetric.
    assert not torch.equal(second[0], first[1])


@every_noise
def test_entries_that_are_not_observed_are_unchanged(noise):
    mask = half_mask(2)
    mask[1] = 1 - mask[1]
    y = torch.where(mask != 0, signals(2), torch.nan)
    y[0, 0, 0, 1] = -0.0
    noisy = noise.add(y, seed=0, indices=[0, 1], observed=mask)
    hidden = (mask == 0).expand_as(y)
    assert torch.equal(noisy[hidden].view(torch.int32), y[hidden].view(torch.int32))
    assert noisy[~hidden].isfinite().all()
    assert (noisy != y)[~hidden].float().mean() > 0.9


def test_standard_normal_moments():
    z = standard_normal(torch.zeros(20, 10_000), 0, range(20))
    assert abs(z.mean()) < 5 / 200_000**0.5
    assert z.std() == pytest.approx(1, abs=5 / 400_000**0.5)
    correlation = torch.corrcoef(z) - torch.eye(20)
    assert correlation.abs().max() < 0.06


@pytest.mark.parametrize("noise", NOISES[:-1], ids=repr)
def test_same_numbers_in_every_precision(noise):
    y = signals(2)
    single = noise.add(y, seed=0, indices=[1, 2])
    double = noise.add(y.double(), seed=0, indices=[1, 2])
    torch.testing.assert_close(single, double.float(), rtol=1e-6, atol=1e-6)


# Standard deviation of each noise where A(x) is 4.
DEVIATIONS = [
    (Gaussian(0.2), 0.2),
    (Gaussian(51, "255"), 0.2),
    (Relative(0.05), 0.2),
    (SNR(20), 0.4),
    (Laplace(0.2), 0.2 * 2**0.5),
    (Contaminated(0.2, 0.1, 5.0), 0.2 * 3.4**0.5),
    (Poisson(100), 0.2),
]


@pytest.mark.parametrize(("noise", "deviation"), DEVIATIONS, ids=map(repr, DEVIATIONS))
def test_moments(noise, deviation):
    clean = torch.full((4, 10_000), 4.0, dtype=torch.float64)
    error = noise.add(clean, seed=0, indices=range(4)) - clean
    assert abs(error.mean()) < 5 * deviation / 200
    assert error.std() == pytest.approx(deviation, rel=0.03)


@pytest.mark.parametrize(
    ("noise", "distribution"),
    [(Gaussian(0.2), "norm"), (Relative(0.05), "norm"), (Laplace(0.2), "laplace")],
)
def test_distribution(noise, distribution):
    clean = torch.full((1, 4000), 4.0, dtype=torch.float64)
    error = noise.add(clean, seed=0, indices=[0]) - clean
    assert scipy.stats.kstest(error[0].numpy() / 0.2, distribution).pvalue > 0.01


def test_distribution_of_counts():
    clean = torch.full((1, 4000), 0.7, dtype=torch.float64)
    counts = 3 * Poisson(3).add(clean, seed=0, indices=[0])
    found = torch.bincount(counts[0].round().long(), minlength=7)[:7]
    assert torch.allclose(counts, counts.round())
    expected = 4000 * scipy.stats.poisson(2.1).pmf(range(7))
    assert (abs(found.numpy() - expected) < 4 * expected**0.5).all()


def test_known_values():
    y = row(1.0, 2.0, dtype=torch.float32)
    normal = standard_normal(y, 7, [3])
    keys = {"seed": 7, "indices": [3]}
    assert torch.equal(Gaussian(51, "255").add(y, **keys), y + 0.2 * normal)
    assert torch.equal(Relative(0.5).add(y, **keys), y * (1 + 0.5 * normal))
    expected = y + (2.5 * 0.1) ** 0.5 * normal
    torch.testing.assert_close(SNR(10).add(y, **keys), expected)


@pytest.mark.parametrize("noise", [Gaussian(0), Relative(0.0), Laplace(0), Contaminated(0)])
def test_level_zero_adds_nothing_and_has_no_misfit(noise):
    y = signals(2)
    assert torch.equal(noise.add(y, seed=0, indices=[0, 1]), y)
    for function in (noise.misfit, noise.residual):
        with pytest.raises(ValueError, match=r"(sigma|scale) is 0.* misfit"):
            function(y, y)


def test_zero_data():
    zero = torch.zeros(2, 5)
    for noise in (Relative(0.5), Poisson(10)):
        assert torch.equal(noise.add(zero, seed=0, indices=[0, 1]), zero)


@pytest.mark.parametrize("snr_db", [-5.0, 0.0, 30.0])
@pytest.mark.parametrize("masked", [False, True])
def test_snr_in_expectation(snr_db, masked):
    factors = torch.tensor([0.01, 1.0, 200.0]).view(3, 1, 1, 1)
    y = signals(3, torch.float64) * factors
    seen = half_mask() if masked else torch.ones(1)
    noise = SNR(snr_db).add(y, seed=0, indices=range(3), observed=seen) - y
    found = 10 * torch.log10((y * seen).square().sum((1, 2, 3)) / noise.square().sum((1, 2, 3)))
    # 4800 or 2400 samples: the standard deviation of the realised SNR is at most 0.13 dB.
    assert (found - snr_db).abs().max() < 0.65


def test_snr_in_expectation_over_many_images():
    y = signals(1, torch.float64).expand(100, *SHAPE)
    noise = SNR(10).add(y, seed=0, indices=range(100)) - y
    expected = y.square().sum() / 10
    assert noise.square().sum() == pytest.approx(expected.item(), rel=0.01)


@pytest.mark.parametrize("noise", NOISES[:-1], ids=repr)
def test_gradient_of_the_noisy_data(noise):
    y = signals(2).requires_grad_()
    noisy = noise.add(y, seed=0, indices=[0, 1])
    noisy.sum().backward()
    expected = noisy / y if isinstance(noise, Relative) else torch.ones_like(y)
    torch.testing.assert_close(y.grad, expected)


@every_noise
def test_empty_batch(noise):
    y = torch.zeros(0, 5)
    assert noise.add(y, seed=0, indices=[]).shape == (0, 5)
    assert noise.misfit(y, y).shape == noise.residual(y, y).shape == (0,)


def test_poisson_takes_rounding_errors_for_zero():
    clean = row(1.0, -1e-7, 0.0)
    assert Poisson(10).add(clean, seed=0, indices=[0])[0, 1] == 0


# The misfit.


def test_known_misfits():
    predicted, y = row(1.0, 2.0), row(2.0, 5.0)
    assert Gaussian(0.5).misfit(predicted, y).tolist() == [0.5 * (4 + 36)]
    assert Laplace(0.5).misfit(predicted, y).tolist() == [8]
    relative = 0.5 * ((1 / 0.5) ** 2 + (3 / (0.5 * 2)) ** 2) + math.log(2)
    assert Relative(0.5).misfit(predicted, y).item() == pytest.approx(relative)
    # ‖y‖²/m = 14.5 and r/(1 + r) = 1/11.
    assert SNR(10).misfit(predicted, y).item() == pytest.approx(0.5 * 10 * 11 / 14.5)
    counts = 10 * (1 - 2 + 2 * math.log(2) + 2 - 5 + 5 * math.log(2.5))
    assert Poisson(10).misfit(predicted, y).item() == pytest.approx(counts)


def test_known_residuals():
    predicted, y = row(1.0, 2.0), row(2.0, 5.0)
    assert Gaussian(0.5).residual(predicted, y).item() == pytest.approx(20**0.5)
    assert Laplace(0.5).residual(predicted, y).item() == pytest.approx(10**0.5)
    assert Relative(0.5).residual(predicted, y).item() == pytest.approx(6.5**0.5)
    assert SNR(10).residual(predicted, y).item() == pytest.approx((5 * 11 / 14.5) ** 0.5)
    assert Poisson(10).residual(predicted, y).item() == pytest.approx((10 * 5.5 / 2) ** 0.5)


def log_likelihood(noise, predicted, y):
    p, y = predicted.numpy(), y.numpy()
    if isinstance(noise, Laplace):
        return scipy.stats.laplace(p, noise.scale).logpdf(y).sum(1)
    if isinstance(noise, Contaminated):
        parts = [(1 - noise.share, noise.sigma), (noise.share, noise.factor * noise.sigma)]
        density = sum(share * scipy.stats.norm(p, width).pdf(y) for share, width in parts)
        return np.log(density).sum(1)
    if isinstance(noise, Poisson):
        return scipy.stats.poisson(noise.gain * p).logpmf((noise.gain * y).round()).sum(1)
    if isinstance(noise, SNR):
        ratio = 10 ** (-noise.db / 10)
        deviation = ((y**2).mean(1, keepdims=True) * ratio / (1 + ratio)) ** 0.5
    elif isinstance(noise, Relative):
        deviation = noise.sigma * p
    else:
        deviation = noise.sigma / (255 if noise.scale == "255" else 1)
    return scipy.stats.norm(p, deviation).logpdf(y).sum(1)


@every_noise
def test_misfit_is_the_negative_log_likelihood_up_to_a_constant(noise):
    first, second = signals(2, torch.float64, (60,)), signals(2, torch.float64, (60,)).flip(1)
    y = noise.add(first, seed=0, indices=[0, 1])
    found = noise.misfit(first, y) - noise.misfit(second, y)
    expected = log_likelihood(noise, second, y) - log_likelihood(noise, first, y)
    assert found.numpy() == pytest.approx(expected, rel=1e-10)


@every_noise
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_residual_is_about_one_at_the_truth(noise, dtype):
    clean = signals(3, dtype)
    y = noise.add(clean, seed=0, indices=range(3))
    residual = noise.residual(clean, y)
    assert residual.dtype == noise.misfit(clean, y).dtype == torch.float64
    assert ((residual - 1).abs() < 0.05).all()


@every_noise
def test_only_observed_entries_count(noise):
    seen = half_mask()
    clean = signals(3, torch.float64) * seen
    y = noise.add(clean, seed=0, indices=range(3), observed=seen)
    assert ((noise.residual(clean, y) - 1).abs() < 0.07).all()
    apart = clean[..., ::2], y[..., ::2]
    torch.testing.assert_close(noise.misfit(clean, y), noise.misfit(*apart))
    torch.testing.assert_close(noise.residual(clean, y), noise.residual(*apart))


# The last has predictions on both sides of Poisson's floor.
@pytest.mark.parametrize("noise", [*NOISES, Poisson(1e-3)], ids=repr)
def test_gradcheck(noise):
    predicted = signals(2, torch.float64, (7,)).requires_grad_()
    y = noise.add(signals(2, torch.float64, (7,)), seed=0, indices=[0, 1])
    # Away from the kink of Laplace's misfit.
    assert ((predicted - y).abs() > 1e-5).all()
    assert torch.autograd.gradcheck(lambda p: noise.misfit(p, y), predicted, rtol=1e-6)


@every_noise
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [1, 5, 17, 33])
def test_misfit_of_a_batch_equals_that_of_its_rows_bitwise(noise, dtype, count):
    predicted = signals(count, dtype, (3, 20, 20))
    y = noise.add(predicted.flip(-1), seed=0, indices=range(count))
    for function in (noise.misfit, noise.residual):
        batch = function(predicted, y)
        singles = [function(*pair) for pair in zip(predicted.split(1), y.split(1), strict=True)]
        assert torch.equal(batch, torch.cat(singles))


@pytest.mark.parametrize("sigma", [0.001, 1 / 255, 0.05, 1.0])
def test_gaussian_misfit_takes_the_square_last(sigma):
    predicted, y = signals(2), signals(2).flip(0)
    scaled = (predicted - y) * (1 / sigma)
    expected = 0.5 * scaled.abs().flatten(1).square().sum(1, dtype=torch.float64)
    assert torch.equal(Gaussian(sigma).misfit(predicted, y), expected)


def test_reciprocals_of_usual_levels_are_whole():
    assert 1 / 0.001 == 1000.0
    assert 1 / Gaussian(1, "255").deviation == 255.0


def test_contaminated_noise_without_outliers_is_normal_and_forgives_them_with():
    predicted, y = signals(2, torch.float64, (9,)), signals(2, torch.float64, (9,)).flip(0)
    expected = Gaussian(0.3).misfit(predicted, y)
    torch.testing.assert_close(Contaminated(0.3, 0.0).misfit(predicted, y), expected)
    same = Contaminated(0.3, 0.4, 1.0).misfit(predicted, y) - expected
    assert (same.max() - same.min()).abs() < 1e-10
    far = row(0.0).requires_grad_()
    Contaminated(0.1, 0.05, 10.0).misfit(far, row(20.0)).backward()
    assert far.grad.item() == pytest.approx(-20.0)  # of N(0, 1), not of N(0, 0.01): −2000
    assert Contaminated(1e-3).misfit(row(0.0), row(1e6)).isfinite()


def test_complex_data():
    predicted, y = torch.zeros(1, 2, dtype=torch.complex128), torch.tensor([[3 + 4j, 5j]])
    assert Gaussian(0.5).misfit(predicted, y.to(predicted)).item() == pytest.approx(100)
    # ‖y‖²/(2m) = 12.5 and r/(1 + r) = 1/11.
    assert SNR(10).misfit(predicted, y.to(predicted)).item() == pytest.approx(22)
    assert SNR(10).residual(predicted, y.to(predicted)).item() == pytest.approx(11**0.5)


@pytest.mark.parametrize("noise", [Gaussian(0.3), SNR(10)])
def test_noise_of_complex_data(noise):
    generator = torch.Generator().manual_seed(0)
    clean = torch.randn(3, 2, 60, 50, dtype=torch.complex64, generator=generator)
    noisy = noise.add(clean, seed=1, indices=[4, 0, 7])
    assert torch.equal(noise.add(clean[1:2], seed=1, indices=[0]), noisy[1:2])
    added = noisy - clean
    power = 2 * 0.3**2 if isinstance(noise, Gaussian) else 0.1 * clean.abs().square().mean()
    assert added.abs().square().mean().item() == pytest.approx(float(power), rel=0.03)
    assert added.real.std().item() == pytest.approx(added.imag.std().item(), rel=0.03)
    correlation = torch.corrcoef(torch.stack([added.real.flatten(), added.imag.flatten()]))
    assert abs(correlation[0, 1]) < 0.02
    assert noise.residual(clean, noisy).tolist() == pytest.approx([1] * 3, rel=0.02)
    seen = torch.zeros(60, 50)
    seen[::2] = 1
    some = noise.add(clean, seed=1, indices=[4, 0, 7], observed=seen)
    assert torch.equal(some[:, :, 1::2], clean[:, :, 1::2])
    assert (some[:, :, ::2] != clean[:, :, ::2]).all()


def test_noise_of_real_data_alone_says_so():
    clean = torch.ones(2, 3, dtype=torch.complex64)
    for noise in (Relative(1), Laplace(1), Contaminated(1), BandLimited(1.0, 5.0, 0.01)):
        with pytest.raises(ValueError, match="real"):
            noise.add(clean, seed=0, indices=[0, 1])


def test_relative_misfit_where_nothing_is_predicted():
    assert Relative(0.1).misfit(row(1.0, 0.0), row(1.0, 0.5)).tolist() == [math.inf]
    assert Relative(0.1).misfit(row(1.0, 0.3), row(1.0, 0.0)).tolist() == [0.0]


def test_poisson_misfit_is_least_at_the_data_and_finite_everywhere():
    y = torch.tensor([[0.0], [0.0002], [0.3], [2.0]], dtype=torch.float64)
    noise = Poisson(10)
    assert torch.equal(noise.misfit(y, y), torch.zeros(4).double())
    for predicted in (-1e3, -1.0, 0.0, 1e-12, 1e-4, 1e3):
        p = torch.full_like(y, predicted).requires_grad_()
        misfit = noise.misfit(p, y)
        (slope,) = torch.autograd.grad(misfit.sum(), p)
        assert slope.isfinite().all()
        assert (misfit >= -1e-12).all()
        assert (slope * (p - y) >= 0).all()


@pytest.mark.parametrize("count", [0.0, 0.5, 3.0])
def test_poisson_misfit_is_smooth_at_the_floor(count):
    floor = torch.tensor(1e-4, dtype=torch.float64)
    sides = (floor * torch.tensor([1 - 1e-7, 1, 1 + 1e-7])).view(3, 1).double().requires_grad_()
    misfit = Poisson(10).misfit(sides, torch.full_like(sides, count / 10))
    (slope,) = torch.autograd.grad(misfit.sum(), sides)
    assert torch.allclose(misfit, misfit[1], rtol=1e-5)
    assert torch.allclose(slope, slope[1], rtol=1e-5)


@every_noise
def test_nan_stays_in_its_row(noise):
    predicted = signals(3, torch.float64)
    y = noise.add(predicted, seed=0, indices=range(3))
    expected = noise.misfit(predicted, y)
    predicted[1, 0, 0, 0] = torch.nan
    found = noise.misfit(predicted, y)
    assert found.isnan().tolist() == [False, True, False]
    assert torch.equal(found[[0, 2]], expected[[0, 2]])


# Options and mistakes.


def test_settings_are_comparable():
    assert Gaussian(0.1) == Gaussian(0.1)
    assert Gaussian(0.1) != Gaussian(0.1, "255")
    assert Gaussian(0.1) != Relative(0.1)
    with pytest.raises(AttributeError):
        Gaussian(0.1).sigma = 0.2


def test_buildable_from_a_config():
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--noise", type=Noise)
    for noise in NOISES:
        options = {name: getattr(noise, name) for name in noise.__dataclass_fields__}
        given = {"class_path": f"flowprior.physics.{type(noise).__name__}", "init_args": options}
        parsed = parser.parse_object({"noise": given})
        assert parser.instantiate_classes(parsed).noise == noise


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1, True, "0.1", None, [1]])
@pytest.mark.parametrize(
    ("kind", "option"),
    [(Gaussian, "sigma"), (Relative, "sigma"), (Laplace, "scale"), (Poisson, "gain"), (SNR, "db")],
)
def test_wrong_levels(kind, option, value):
    if kind is SNR and value == -1 and value is not True:
        value = 1e3
    with pytest.raises(ValueError, match=rf"^{option} must be [^\n]*$"):
        kind(value)


def test_other_wrong_options():
    with pytest.raises(ValueError, match="gain must be"):
        Poisson(0)
    with pytest.raises(ValueError, match="scale must be"):
        Gaussian(1.0, "8")
    for options, option in (
        ((1.0, 0.6), "share"),
        ((1.0, 0.1, 0), "factor"),
        ((1.0, 0.1, 1e300), "factor"),
    ):
        with pytest.raises(ValueError, match=f"{option} must be"):
            Contaminated(*options)


@pytest.mark.parametrize(
    ("call", "option"),
    [
        (lambda y: Gaussian(1).add(y, seed=0, indices=[0]), "indices"),
        (lambda y: Gaussian(1).add(y, seed=0, indices=[0, -1]), "index"),
        (lambda y: Laplace(1).add(y, seed=0.5, indices=[0, 1]), "seed"),
        (lambda y: Gaussian(1).add(y.int(), seed=0, indices=[0, 1]), "floating point"),
        (lambda y: Gaussian(1).add(y[0, 0, 0], seed=0, indices=range(40)), r"\(B, 1\)"),
        (lambda y: Gaussian(1).add(y[0, 0, 0] + 0j, seed=0, indices=range(40)), r"\(B, 1\)"),
        (lambda y: SNR(10).add(0 * y, seed=0, indices=[7, 1]), "image 7"),
        (lambda y: SNR(10).add(y, seed=0, indices=[7, 1], observed=torch.zeros(1)), "image 7"),
        (lambda y: SNR(10).misfit(y, 0 * y), "row 0"),
        (lambda y: Laplace(1).add(y, seed=0, indices=[0, 1], observed=y[:, :2]), "observed"),
        (lambda y: Poisson(1).add(-y, seed=0, indices=[0, 1]), "clean"),
        (lambda y: Poisson(1).add(y / 0, seed=0, indices=[0, 1]), "clean"),
        (lambda y: Poisson(1).misfit(y, -y), "y of Poisson"),
        (lambda y: Poisson(1).misfit(y + 0j, y), "Poisson"),
        (lambda y: Relative(1).misfit(y + 0j, y), "Relative"),
        (lambda y: Gaussian(1).misfit(y[:1], y), "predicted"),
        (lambda y: Poisson(1).residual(y, y[0]), "predicted"),
        (lambda y: SNR(1).residual(y[0, 0, 0], y[0, 0, 0]), "predicted"),
    ],
)
def test_mistakes(call, option):
    with pytest.raises(ValueError, match=rf"^[^\n]*{option}[^\n]*$"):
        call(signals(2))


def test_noise_does_not_import_deepinv():
    code = "import sys; from flowprior.physics import Gaussian; assert 'deepinv' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
