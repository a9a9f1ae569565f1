"""The one-dimensional transforms, against SciPy and by their derivatives."""

import numpy as np
import pytest
import scipy.special
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from flowprior.gaussianization import lambert_w, lambert_w_gaussianize, standardize, yeo_johnson
from flowprior.gaussianization.yeo_johnson import _Transform
from tests.reference import gaussianization as reference

N = 4096


def make_rows():
    rng = np.random.default_rng(0)
    heavy = rng.standard_t(3, size=N)
    return {
        "skewed": rng.exponential(size=N) - 1,
        "skewed to the left": -rng.lognormal(size=N),
        "heavy-tailed": heavy,
        "very heavy-tailed": rng.standard_t(1.5, size=N),
        "bimodal": np.concatenate([rng.normal(-2, 1, N // 2), rng.normal(3, 0.5, N // 2)]),
        "nearly constant": 3 + 1e-3 * rng.standard_t(4, size=N),
        "constant but for 1e-9": 3 + 1e-9 * heavy,
        "Gaussian": rng.normal(size=N),
        "uniform": rng.uniform(size=N),
        "very large": 1e6 * heavy,
        "very small": 1e-6 * (heavy + rng.exponential(size=N)),
        "log-normal": 50 * rng.lognormal(size=N),
    }


ROWS = make_rows()
BATCH = torch.tensor(np.stack(list(ROWS.values())))


def kurtosis(x):
    centred = x - x.mean(1, keepdim=True)
    return centred.pow(4).mean(1) / centred.square().mean(1).square()


def close(found, expected, tolerance):
    scale = np.abs(np.asarray(expected)).max()
    return np.abs(np.asarray(found) - expected).max() <= tolerance * scale


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 1e-6)])
def test_lambert_w_equals_scipy(dtype, tolerance):
    limits = (-300, 300) if dtype == torch.float64 else (-37, 38)
    x = torch.tensor(np.logspace(*limits, 100_001), dtype=dtype)
    expected = scipy.special.lambertw(x.double().numpy()).real
    error = np.abs(lambert_w(x).double().numpy() - expected) / expected
    assert error.max() < tolerance


def test_lambert_w_at_its_ends():
    found = lambert_w(torch.tensor([0.0, torch.inf, -1.0, torch.nan]))
    assert found[0] == 0
    assert found[1] == torch.inf
    assert found[2:].isnan().all()


@pytest.mark.parametrize("name", ROWS)
def test_yeo_johnson_equals_reference(name):
    expected, _ = reference.yeo_johnson(ROWS[name])
    y = yeo_johnson(torch.tensor(ROWS[name])[None])
    assert close(y[0], expected, 1e-6)


@pytest.mark.parametrize("name", ROWS)
def test_lambert_w_gaussianize_equals_reference(name):
    expected, _ = reference.lambert_w_gaussianize(ROWS[name])
    y = lambert_w_gaussianize(torch.tensor(ROWS[name])[None])
    assert close(y[0], expected, 1e-6)


def test_result_of_lambert_w_gaussianize_has_kurtosis_3_at_most():
    usable = torch.tensor([name != "constant but for 1e-9" for name in ROWS])  # rounding errors
    x = BATCH[usable]
    y = lambert_w_gaussianize(x)
    heavy = kurtosis(x) > 3
    assert 5 < heavy.sum() < len(heavy)
    assert torch.allclose(kurtosis(y[heavy]), torch.tensor(3.0).double(), atol=1e-9)
    assert torch.allclose(y[~heavy], x[~heavy], rtol=1e-14)


@pytest.mark.parametrize("transform", [yeo_johnson, lambert_w_gaussianize])
def test_single_precision_is_close_to_double(transform):
    usable = [i for i, name in enumerate(ROWS) if "constant" not in name]
    rows = BATCH[usable]
    y, exact = (transform(x).double() for x in (rows.float(), rows))
    assert ((y - exact).norm(dim=1) / exact.norm(dim=1)).max() < 1e-4


def test_row_without_a_solution_is_left_alone():
    rng = np.random.default_rng(0)
    clusters = np.where(np.arange(30) < 2, 5.0, 0.0) + 1e-3 * rng.normal(size=30)
    x = torch.tensor(np.stack([clusters, np.exp(2 * rng.normal(size=30))]), requires_grad=True)
    y = lambert_w_gaussianize(x)
    torch.testing.assert_close(y[0], x[0])
    assert (y[1] - x[1]).abs().max() > 1
    assert gradcheck(lambert_w_gaussianize, x)


@pytest.mark.parametrize("transform", [yeo_johnson, lambert_w_gaussianize])
def test_gradients(transform):
    chosen = ["skewed", "heavy-tailed", "bimodal", "Gaussian", "log-normal", "uniform"]
    x = torch.tensor(np.stack([ROWS[name][::80] for name in chosen]), requires_grad=True)
    assert gradcheck(transform, x)


def test_row_without_a_maximum_is_left_alone():
    row = 3 + 1e-5 * np.random.default_rng(0).standard_t(4, size=50)
    x = torch.tensor(row[None], requires_grad=True)
    y = yeo_johnson(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(slope, torch.ones_like(x))


@pytest.mark.parametrize("power", [0.0, 1e-9, 1e-4, 1.0, 2.0 - 1e-9, 2.0])
def test_yeo_johnson_is_smooth_at_powers_0_and_2(power):
    x = torch.tensor([[-3.0, -1e-3, 0.0, 1e-6, 0.5, 40.0]], dtype=torch.float64)
    power = torch.tensor([power], dtype=torch.float64, requires_grad=True)
    assert gradcheck(_Transform.apply, (x.requires_grad_(), power))


def test_lambert_w_gaussianize_is_continuous_at_kurtosis_3():
    u = torch.linspace(-3, 3, 61, dtype=torch.float64)

    low, high = 0.0, 1.0  # light-tailed and heavy-tailed
    while high - low > 1e-14:
        middle = (low + high) / 2
        low, high = (middle, high) if kurtosis((u + middle * u**3)[None]) < 3 else (low, middle)
    for step in (1e-4, 1e-6):
        below, above = (
            (u + (high + sign * step) * u**3)[None].clone().requires_grad_() for sign in (-1, 1)
        )
        y_below, y_above = map(lambert_w_gaussianize, (below, above))
        torch.testing.assert_close(y_below, below)
        assert 0 < (y_above - above).abs().max() < 1000 * step
        assert gradcheck(lambert_w_gaussianize, above, eps=1e-9, atol=1e-4)
        assert gradcheck(lambert_w_gaussianize, below, eps=1e-9, atol=1e-4)


@pytest.mark.parametrize("transform", [yeo_johnson, lambert_w_gaussianize])
def test_batch_equals_single_calls_and_permutes(transform):
    together = transform(BATCH)
    order = torch.randperm(len(BATCH), generator=torch.Generator().manual_seed(0))
    singles = torch.cat([transform(row[None]) for row in BATCH])
    torch.testing.assert_close(singles, together, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(transform(BATCH[order]), together[order], rtol=1e-10, atol=1e-13)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**31),
    n=st.integers(2, 200),
    scale=st.sampled_from([1e-30, 1e-6, 1.0, 1e6]),
    shift=st.sampled_from([0.0, 1.0, -1e3]),
    power=st.sampled_from([1, 3, 5]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_finite_input_gives_finite_output_and_gradients(seed, n, scale, shift, power, dtype):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, n, generator=generator, dtype=dtype)
    x = (scale * (x**power + shift)).requires_grad_()
    for transform in (yeo_johnson, lambert_w_gaussianize):
        y = transform(x)
        assert y.isfinite().all()
        assert torch.autograd.grad(y.sum(), x)[0].isfinite().all()
    assert torch.autograd.grad(standardize(x).sum(), x)[0].isfinite().all()


@pytest.mark.parametrize("value", [0.0, 3.0, -1e-3, 1e10])
def test_constant_rows_are_left_alone(value):
    x = torch.full((1, 100), value, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(yeo_johnson(x), x)
    y = lambert_w_gaussianize(x)
    torch.testing.assert_close(y, x)
    z = standardize(x)
    assert (z.abs() <= 1e-15 * max(abs(value), 1)).all()
    for output in (y, z):
        gradient = torch.autograd.grad(output.sum(), x, retain_graph=True)[0]
        assert gradient.isfinite().all()


def test_standardize_gives_the_moments():
    rows = [row for name, row in ROWS.items() if "constant" not in name]
    z = standardize(torch.tensor(np.stack(rows)), 0.7)
    assert z.mean(1).abs().max() < 1e-12
    assert (z.std(1, correction=0) - 0.7).abs().max() < 1e-12


@pytest.mark.parametrize("transform", [yeo_johnson, lambert_w_gaussianize])
def test_wrong_shape_is_named(transform):
    with pytest.raises(ValueError, match=r"\(B, n\), got \(2, 3, 4\)"):
        transform(torch.zeros(2, 3, 4))
