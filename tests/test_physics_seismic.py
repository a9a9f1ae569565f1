"""Waves: adjoints, derivatives, arrival times, memory, noise in a band, mistakes."""

import math
import sys
from itertools import pairwise

import numpy as np
import pytest
import scipy.special
import torch

from flowprior.extras import MissingExtra
from flowprior.inversion import TotalVariation, invert
from flowprior.inversion.forward import Forward
from flowprior.physics import (
    BandLimited,
    FullWaveform,
    LinearizedBorn,
    full_waveform,
    linearized_born,
    make_operator,
    survey,
)
from flowprior.physics.calls import Calls
from flowprior.physics.survey import Survey

SHAPE = (1, 8, 10)
BORN = {"sources": 2, "receivers": 3, "duration": 0.2, "water_depth": 20.0}
WAVES = {"sources": 2, "receivers": 3, "duration": 0.2}


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def uniform(*shape, seed=0, dtype=torch.float64):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


VARIANTS = [
    {},
    {"simultaneous": 2},
    {"refine": 2},
    {"repeat": 2},
    {"spacing": [6.0, 9.0], "water_depth": 0.0},
]


@pytest.mark.parametrize("options", VARIANTS)
def test_adjoint_and_gradient(options):
    physics = linearized_born(SHAPE, **{**BORN, **options})
    x = normal(2, *SHAPE).requires_grad_()
    ax = physics(x)
    y = normal(*ax.shape, seed=1).requires_grad_()
    aty = physics.A_adjoint(y)
    assert ax.shape[1:] == physics.survey.data_shape
    assert abs((ax * y).sum() - (x * aty).sum()) <= 1e-12 * ax.norm() * y.norm()
    assert ax.norm() > 0
    (gradient,) = torch.autograd.grad((ax * y.detach()).sum(), x)
    torch.testing.assert_close(gradient, aty.detach(), rtol=1e-12, atol=1e-15)
    (back,) = torch.autograd.grad((aty * x.detach()).sum(), y)
    torch.testing.assert_close(back, ax.detach(), rtol=1e-12, atol=1e-15)


def test_grey_scatters_nothing():
    physics, born = linearized_born(SHAPE, grey=0.5, **BORN), linearized_born(SHAPE, **BORN)
    x = normal(2, *SHAPE)
    assert (physics.A(torch.full_like(x, 0.5)) == 0).all()
    assert torch.equal(physics.A(x), born.A(x - 0.5))
    y = born.A(x)
    assert torch.equal(physics.A_adjoint(y), born.A_adjoint(y))
    assert torch.equal(physics.A_vjp(x, y), born.A_adjoint(y))
    assert torch.equal(physics.A_dagger(y), born.A_dagger(y) + 0.5)
    assert physics.A(torch.full_like(x, torch.nan)).isnan().all()


def test_nothing_scatters_in_water():
    physics = linearized_born(SHAPE, **BORN)
    found = physics.A_adjoint(normal(1, *physics.survey.data_shape))
    assert physics.fixed_rows == 2
    assert (found[:, :, :2] == 0).all()
    assert (found[:, :, 2:] != 0).all()


def test_simultaneous_sources_are_weighted_sums_of_single_ones():
    single = linearized_born(SHAPE, **BORN)
    both = linearized_born(SHAPE, simultaneous=4, seed=3, **BORN)
    x = normal(1, *SHAPE)
    assert both.survey.data_shape[0] == 4
    expected = torch.einsum("ns,bsrt->bnrt", both.survey.weights, single.A(x))
    torch.testing.assert_close(both.A(x), expected, rtol=1e-10, atol=1e-14)
    many = linearized_born(SHAPE, simultaneous=2000, **BORN).survey.weights
    torch.testing.assert_close(many.mT @ many, torch.eye(2).double(), rtol=0, atol=0.1)
    assert not torch.equal(
        many[:4], linearized_born(SHAPE, simultaneous=2000, seed=1, **BORN).survey.weights[:4]
    )


@pytest.mark.parametrize("refine", [1, 2])
def test_born_is_the_derivative_of_the_waves(refine):
    """δm = x m₀ turns c₀ into c₀ (1 + x)^(−½); central differences are of second order."""
    options = {"fastest": 6000.0, "refine": refine, "duration": 0.25}
    waves = Survey(
        (8, 10), [(0, 2), (0, 7)], [(0, 4), (7, 1)], (10.0, 10.0), 25.0, slowest=2000.0, **options
    )
    speeds = torch.linspace(2500, 4500, 8, dtype=torch.float64)[:, None].expand(-1, 10)
    physics = LinearizedBorn(waves, speeds)
    c, x, errors = physics.background, normal(1, *SHAPE), []
    fine = -2 * physics._perturbation(x) / c
    exact = physics.A(x)
    for step in (0.02, 0.01):
        plus, minus = (physics.survey.recorded(c * (1 + e * fine) ** -0.5) for e in (step, -step))
        errors.append(((plus - minus) / (2 * step) - exact).norm() / exact.norm())
    assert errors[1] < 1e-3
    assert 3.8 < errors[0] / errors[1] < 4.2


def test_taylor_remainder_is_second_order():
    physics = full_waveform(SHAPE, **WAVES)
    x, direction = uniform(1, *SHAPE).requires_grad_(), normal(1, *SHAPE, seed=1)
    weights = normal(1, *physics.survey.data_shape, seed=2)

    def value(x):
        return (physics.A(x) * weights).sum()

    start = value(x)
    (slope,) = torch.autograd.grad(start, x)
    rest = [
        abs(value(x + e * direction) - start - e * (slope * direction).sum()).item()
        for e in (1e-2, 1e-3, 1e-4)
    ]
    for coarse, fine in pairwise(rest):
        assert 80 < coarse / fine < 120


@pytest.mark.parametrize("options", [{}, {"refine": 2, "geometry": "surface", "lowpass": 20.0}])
def test_gradcheck(options):
    few = {"sources": 1, "receivers": 2, "duration": 0.12, "interval": 0.01, "frequency": 10.0}
    physics = full_waveform((1, 2, 3), **few, **options)
    x = 0.1 + 0.8 * uniform(2, 1, 2, 3)
    x[0, 0, 1, :2] = torch.tensor([1.2, -0.3])  # where velocities level off
    torch.autograd.gradcheck(physics.A, x.requires_grad_(), eps=1e-5, atol=1e-8, rtol=1e-5)
    v = normal(2, *physics.A(x).shape[1:])
    (expected,) = torch.autograd.grad(physics.A(x), x, v)
    torch.testing.assert_close(physics.A_vjp(x.detach(), v), expected)


def point_source(time, distance, c, frequency):
    """Waves of a Ricker wavelet in a homogeneous plane: its spectrum times i/4 H₀⁽²⁾(kr)*."""
    count, step = 2**15, 2e-4
    t = step * np.arange(count) - 1.5 / frequency
    square = (math.pi * frequency * t) ** 2
    spectrum = np.fft.rfft((1 - 2 * square) * np.exp(-square))
    omega = 2 * math.pi * np.fft.rfftfreq(count, step)
    green = np.zeros_like(spectrum)
    green[1:] = -0.25j * scipy.special.hankel2(0, omega[1:] * distance / c)
    return np.interp(time, step * np.arange(count), np.fft.irfft(spectrum * green, count))


def test_waves_of_a_homogeneous_medium():
    """Amplitude, sign and arrival at three distances, and better on a finer grid."""
    receivers, c, errors = [(6, 11), (6, 16), (20, 20)], 2000.0, []
    for refine in (1, 2, 4):
        options = {"spacing": (10.0, 10.0), "slowest": c, "fastest": c, "refine": refine}
        medium = Survey((24, 26), [(6, 4)], receivers, frequency=20, duration=0.25, **options)
        found = medium.recorded(torch.full((1, *medium.fine_shape), c, dtype=torch.float64))[0, 0]
        time = medium.interval * np.arange(found.shape[1])
        distances = [10 * math.hypot(row - 6, column - 4) for row, column in receivers]
        expected = torch.tensor(np.stack([point_source(time, d, c, 20) for d in distances]))
        errors.append(((found - expected).norm() / expected.norm()).item())
    assert errors[0] < 0.05
    assert errors[1] < 0.015
    assert errors[2] < errors[1]


def test_reciprocity():
    """One point hears of another what that one hears of it, divided by c² of the source."""
    points = [(1, 1), (5, 8), (7, 3)]
    options = {"frequency": 20, "duration": 0.2, "slowest": 2000.0, "fastest": 3000.0}
    waves = Survey((8, 10), points, points, (10.0, 10.0), **options)
    records = waves.recorded(2000 + 1000 * uniform(1, 8, 10))[0]
    assert (records - records.transpose(0, 1)).norm() < 1e-3 * records.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_several_models_are_as_one_by_one(dtype, monkeypatch):
    born, waves = linearized_born(SHAPE, **BORN), full_waveform(SHAPE, **WAVES)
    x = uniform(5, *SHAPE, dtype=dtype)

    def results(x):
        x = x.clone().requires_grad_()
        found = []
        for physics in (born, waves):
            y = physics.A(x)
            assert y.dtype == dtype
            (gradient,) = torch.autograd.grad(y.square().sum(), x)
            found += [y.detach(), gradient]
        return [*found, born.A_adjoint(found[0])]

    together = results(x)
    for rows in ([0], [3], [1, 4]):
        for found, expected in zip(results(x[rows]), together, strict=True):
            assert torch.equal(found, expected[rows])
    # Where wave fields are too many for one call, there are several.
    for memory in (1, 10**6):
        monkeypatch.setattr(survey, "WORKING_MEMORY", memory)
        for found, expected in zip(results(x), together, strict=True):
            torch.testing.assert_close(found, expected)


def test_no_wave_field_outlives_its_call(monkeypatch):
    waves = full_waveform(SHAPE, **WAVES).survey
    c = torch.full((4, *waves.fine_shape), 2500.0, requires_grad=True)
    calls = []
    record = Survey._record

    def counted(self, c, shot):
        calls.append((len(shot), c.requires_grad))
        return record(self, c, shot)

    monkeypatch.setattr(Survey, "_record", counted)
    torch.autograd.grad(waves.recorded(c).sum(), c)
    assert calls == 4 * [(2, True)]
    calls.clear()
    monkeypatch.setattr(survey, "WORKING_MEMORY", 7 * waves.steps * 28 * 30 * 4)
    torch.autograd.grad(waves.recorded(c).sum(), c)
    assert calls == [(8, False), *4 * [(2, True)]]
    calls.clear()
    monkeypatch.setattr(survey, "WORKING_MEMORY", waves.steps * 28 * 30 * 4)
    torch.autograd.grad(waves.recorded(c).sum(), c)
    assert [n for n, kept in calls if kept] == 8 * [1]


def test_gradients_of_every_second_step():
    x, found = uniform(2, *SHAPE).requires_grad_(), []
    for stride in (1, 2):
        physics = full_waveform(SHAPE, stride=stride, **WAVES)
        y = physics.A(x)
        found.append((y.detach(), *torch.autograd.grad(y.square().sum(), x)))
    assert torch.equal(found[0][0], found[1][0])
    gap = (found[0][1] - found[1][1]).norm() / found[0][1].norm()
    assert 0 < gap < 1e-2


def test_strides_are_short_parts_of_a_period():
    step = full_waveform(SHAPE, **WAVES).survey
    most = int(step.every / (16 * step.frequency * step.interval))
    assert most == 2
    message = rf"^stride={most + 1} [^\n]* expected at most {most}, a sixteenth of a period$"
    with pytest.raises(ValueError, match=message):
        full_waveform(SHAPE, stride=most + 1, **WAVES)
    # As long a time step as the grid allows is more than a sixteenth, and exact.
    coarse = Survey(**{**SURVEY, "interval": 1 / 220, "fastest": 2000.0, "spacing": (20.0, 20.0)})
    assert coarse.frequency * coarse.interval / coarse.every > 1 / 16


def test_no_model_has_no_data():
    for physics in (linearized_born(SHAPE, **BORN), full_waveform(SHAPE, **WAVES)):
        x = torch.empty(0, *SHAPE, requires_grad=True)
        y = physics.A(x)
        assert y.shape == (0, *physics.survey.data_shape)
        y.sum().backward()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize(("make", "options"), [(full_waveform, WAVES), (linearized_born, BORN)])
def test_a_bad_pixel_is_bad_for_its_own_row_only(make, options, bad):
    physics = make(SHAPE, **options)
    x = uniform(3, *SHAPE)
    expected = physics.A(x)
    x[1, 0, 2, 2] = bad
    x.requires_grad_()
    found = physics.A(x)
    assert found[1].isnan().all()
    assert torch.equal(found[[0, 2]], expected[[0, 2]])
    (gradient,) = torch.autograd.grad(found[[0, 2]].sum(), x)
    assert gradient.isfinite().all()
    assert (gradient[1] == 0).all()


def test_velocities_level_off_beyond_the_range():
    physics = full_waveform((1, 2, 3), sources=1, slowest=2000.0, fastest=3000.0)
    x = torch.tensor([[[[0.0, 0.3, 1.0], [-50.0, 1.1, 50.0]]]], dtype=torch.float64)
    c = physics.velocity(x)[0]
    assert c[0].tolist() == [2000, 2300, 3000]
    assert c[1, 0] == physics.limits[0] == 1750
    assert c[1, 2] == physics.limits[1] == physics.survey.fastest == 3250
    assert 3090 < c[1, 1] < 3100
    assert (
        full_waveform((1, 2, 3), sources=1, slowest=200.0, fastest=3000.0, spacing=1.0).limits[0]
        == 100
    )
    assert physics.A(x).isfinite().all()


def test_lowpassed_records():
    physics = full_waveform(SHAPE, **WAVES)
    low = physics.with_lowpass(15.0)
    assert physics.lowpass is None
    x, whole = uniform(1, *SHAPE), normal(200, 2, 3, physics.survey.data_shape[2])
    y = low.A(x)
    assert y.shape[-1] == 2 * int(15 * whole.shape[-1] * physics.survey.interval) + 1
    assert torch.equal(y, low.lowpassed(physics.A(x)))
    noise = low.lowpassed(whole).flatten(0, 2)  # white still, with the same σ
    covariance = noise.mT @ noise / len(noise)
    torch.testing.assert_close(covariance, torch.eye(len(covariance)).double(), rtol=0, atol=0.15)
    spectrum = torch.fft.rfft(whole, norm="ortho")
    highest = (y.shape[-1] - 1) // 2
    power = spectrum.abs().square()
    band = power[..., 0] + 2 * power[..., 1 : highest + 1].sum(-1)
    torch.testing.assert_close(low.lowpassed(whole).square().sum(-1), band)


def test_positions():
    born = linearized_born((1, 8, 10), sources=2, repeat=2, duration=0.1)
    assert born.survey.sources.tolist() == [[[0, 5]], [[0, 15]]]
    assert born.survey.receivers.tolist() == [[0, column] for column in range(1, 20, 2)]
    across = full_waveform((1, 8, 10), sources=2, receivers=1, duration=0.1)
    assert across.survey.sources.tolist() == [[[2, 0]], [[6, 0]]]
    assert across.survey.receivers.tolist() == [[4, 9]]
    assert born.image_shape == (1, 8, 10)


def test_the_numbers_of_the_paper():
    options = {"spacing": [12.5, 20.0], "sources": 102, "receivers": 204, "water_depth": 125.0}
    physics = linearized_born((1, 256, 256), frequency=30.0, duration=2.0, refine=2, **options)
    assert physics.survey.data_shape == (102, 204, 481)
    assert physics.survey.spacing == (6.25, 10.0)
    speeds = physics.background[:, 0]
    assert (speeds[0], speeds[20], speeds[-1]) == (1500, 2500, 4500)
    with pytest.raises(ValueError, match="refine=2"):
        linearized_born((1, 256, 256), frequency=30.0, duration=2.0, **options)


def test_refined_data_differ_by_the_error_of_the_coarse_grid():
    x = uniform(1, 1, 6, 6).repeat_interleave(2, 2).repeat_interleave(2, 3)
    options = {"sources": 2, "receivers": 4, "frequency": 15.0}
    one, two, four = (full_waveform((1, 12, 12), refine=r, **options).A(x) for r in (1, 2, 4))
    assert one.shape == two.shape == four.shape
    errors = [((found - four).norm() / four.norm()).item() for found in (one, two)]
    assert 1e-3 < errors[0] < 0.1
    assert errors[1] < 0.5 * errors[0]


def test_calls_are_counted():
    physics = full_waveform(SHAPE, **WAVES)
    forward = Forward(physics, calls=Calls.none(3))
    x = uniform(3, *SHAPE).requires_grad_()
    y = forward(x)
    torch.autograd.grad(y.square().sum(), x)
    forward(x.detach()[:1], torch.tensor([2]))
    assert forward.calls.forward.tolist() == [1, 1, 2]
    assert forward.calls.adjoint.tolist() == [1, 1, 1]


@pytest.mark.parametrize("name", ["linearized_born", "full_waveform"])
def test_total_variation_goes_towards_the_truth(name):
    few = {"sources": 1, "receivers": 4, "spacing": 12.0, "frequency": 20.0, "duration": 0.2}
    physics = make_operator(name, (1, 8, 8), **few).double()
    truth = torch.full((1, 1, 8, 8), 0.5, dtype=torch.float64)
    truth[:, :, 3:6, 2:5] = 0.8
    y = physics.A(truth)
    sigma = 0.05 * y.square().mean().sqrt().item()
    y = y + sigma * normal(*y.shape)
    start = torch.full_like(truth, 0.5)
    options = {"solver": TotalVariation(1.0), "start": start, "iterations": 8}
    found = invert(None, physics, y, sigma=sigma, **options)
    assert found.finite.all()
    assert (found.x - truth).norm() < 0.9 * (start - truth).norm()
    assert found.calls.forward.min() >= 8


def band_noise(**options):
    return BandLimited(**{"sigma": 0.3, "frequency": 20.0, "interval": 1 / 160, **options})


def dense_covariance(noise, samples):
    """σ² F* S F, column by column, from the definition of a periodic covariance."""
    frequencies = np.abs(np.fft.fftfreq(samples, noise.interval)) / noise.frequency
    ricker = (frequencies**2 * np.exp(-(frequencies**2))) ** 2
    power = (1 - noise.white) * ricker / ricker.mean() + noise.white
    row = np.fft.ifft(power).real
    index = np.arange(samples)
    return torch.tensor(noise.sigma**2 * row[(index[:, None] - index) % samples])


@pytest.mark.parametrize("samples", [30, 31])
def test_misfit_of_noise_in_a_band_is_its_likelihood(samples):
    noise = band_noise()
    covariance = dense_covariance(noise, samples)
    predicted, y = normal(2, 2, 3, samples), normal(2, 2, 3, samples, seed=1)
    residual = (predicted - y).flatten(1, 2)
    weighted = torch.linalg.solve(covariance, residual.mT)
    expected = 0.5 * (residual.mT * weighted).sum((1, 2))
    torch.testing.assert_close(noise.misfit(predicted, y), expected)
    torch.testing.assert_close(
        noise.standardised(predicted, y).square().flatten(1).sum(1), 2 * expected
    )
    clean = torch.zeros(200, 20, samples, dtype=torch.float64)
    drawn = noise.add(clean, seed=0, indices=range(200)).flatten(0, 1)
    torch.testing.assert_close(drawn.mT @ drawn / len(drawn), covariance, rtol=0, atol=8e-3)
    assert noise.residual(drawn[:1], torch.zeros_like(drawn[:1])).item() == pytest.approx(1, abs=1)


def test_noise_of_a_row_does_not_depend_on_the_batch():
    clean = normal(3, 2, 20)
    both = band_noise().add(clean, seed=1, indices=[4, 5, 6])
    torch.testing.assert_close(band_noise().add(clean[1:2], seed=1, indices=[5])[0], both[1])
    assert torch.equal(band_noise(sigma=0.0).add(clean, seed=1, indices=range(3)), clean)


def test_white_noise_is_the_special_case():
    from flowprior.physics import Gaussian

    predicted, y = normal(2, 3, 20), normal(2, 3, 20, seed=1)
    found = band_noise(white=1.0).misfit(predicted, y)
    torch.testing.assert_close(found, Gaussian(0.3).misfit(predicted, y))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("sigma", value) for value in (-1.0, float("nan"), "1")),
        *((name, value) for name in ("frequency", "interval") for value in (0, -1.0, "1")),
        *(("white", value) for value in (0.0, 1.1)),
    ],
)
def test_wrong_options_of_noise_are_named(option, value):
    with pytest.raises(ValueError, match=rf"^{option} [^\n]*$"):
        band_noise(**{option: value})


def test_noise_in_a_band_without_a_likelihood():
    y = normal(1, 2, 20)
    with pytest.raises(ValueError, match="sigma"):
        band_noise(sigma=0.0).misfit(y, y)
    with pytest.raises(ValueError, match="complex"):
        band_noise().misfit(y.to(torch.complex128), y.to(torch.complex128))
    with pytest.raises(ValueError, match="frequency"):
        band_noise(frequency=1e6).misfit(y, y)


COMMON = [
    ("sources", 0, "sources"),
    ("sources", 11, "sources"),
    ("receivers", 2.5, "receivers"),
    ("spacing", 0, "spacing"),
    ("spacing", [1.0, 2.0, 3.0], "spacing"),
    ("frequency", 0, "frequency"),
    ("frequency", 90.0, "refine=3|refine=2"),
    ("duration", -1.0, "duration"),
    ("interval", 0, "interval"),
    ("repeat", 0, "repeat"),
    ("refine", 1.5, "refine"),
    ("depth", 3, "depth"),
]
OWN = {
    "linearized_born": [
        ("top", 0, "top"),
        ("bottom", float("nan"), "bottom"),
        ("water_depth", -1, "water_depth"),
        ("water_depth", 500.0, "water_depth"),
        ("simultaneous", 0, "simultaneous"),
        ("seed", 1, "seed=1 has no effect without simultaneous"),
        ("seed", -1, "seed"),
        ("grey", math.nan, "grey"),
    ],
    "full_waveform": [
        ("geometry", "ring", "geometry"),
        ("slowest", 0, "slowest"),
        ("fastest", 1500.0, "fastest"),
        ("lowpass", 0, "lowpass"),
        ("lowpass", 1000.0, "lowpass"),
        ("lowpass", 0.1, "lowpass"),
        ("stride", 30, "stride"),
    ],
}


@pytest.mark.parametrize(
    ("name", "option", "value", "named"),
    [(name, *case) for name, own in OWN.items() for case in COMMON + own],
)
def test_mistakes(name, option, value, named):
    with pytest.raises(ValueError, match=rf"^operator {name}[^\n]*({named})[^\n]*$"):
        make_operator(name, (1, 8, 10), **{option: value})


@pytest.mark.parametrize("name", ["linearized_born", "full_waveform"])
@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 8, 1)])
def test_images_that_have_no_waves(name, shape):
    with pytest.raises(ValueError, match=rf"^operator {name}[^\n]*models \(1, H > 1, W > 1\)"):
        make_operator(name, shape)


SURVEY = {
    "shape": (8, 10),
    "sources": [(0, 1)],
    "receivers": [(7, 9)],
    "spacing": (10.0, 10.0),
    "frequency": 20.0,
    "duration": 0.2,
    "slowest": 2000.0,
    "fastest": 3000.0,
}


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("sources", [(8, 1)]),
        ("sources", [(0, -1)]),
        ("receivers", [(0, 10)]),
        ("receivers", [(0.5, 0)]),
        ("receivers", [(0, 1), (0, 1)]),
        ("frequency", 60.0),
        ("weights", torch.ones(2, 3)),
        ("weights", [[1.0]]),
        ("spacing", (0.0, 0.0)),
        ("spacing", 10.0),
        ("fastest", 1999.0),
    ],
)
def test_surveys_that_cannot_be_made(option, value):
    with pytest.raises(ValueError, match=rf"^{option} [^\n]*$"):
        Survey(**{**SURVEY, option: value})


def test_data_and_models_of_another_shape():
    waves = Survey(**SURVEY)
    background = torch.full((8, 10), 2500.0)
    born, full = LinearizedBorn(waves, background), full_waveform((1, 8, 10))
    for physics in (born, full):
        with pytest.raises(ValueError, match=r"\(B, 1, 8, 10\)"):
            physics.A(torch.zeros(1, 1, 8, 8))
    with pytest.raises(ValueError, match="A_adjoint takes"):
        born.A_adjoint(torch.zeros(1, 1, 1, 3))
    for wrong in (background[:7], 2 * background, 0.79 * background, -background):
        with pytest.raises(ValueError, match=r"^background"):
            LinearizedBorn(waves, wrong)
    one = background.clone()
    for wrong in (torch.nan, 1999.0, 3001.0):
        one[3, 4] = wrong
        with pytest.raises(ValueError, match=r"^background must be velocities from [^\n]*$"):
            LinearizedBorn(waves, one)
    for rounded in (2000 * (1 - 5e-7), 3000 * (1 + 5e-7)):
        LinearizedBorn(waves, torch.full((8, 10), rounded, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"^c must be velocities above 0 m/s, got -2500$"):
        waves.recorded(torch.stack([background, -background]))
    with pytest.raises(ValueError, match="fastest"):
        FullWaveform(waves)


def test_a_missing_package_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "deepwave", None)
    physics = linearized_born(SHAPE, **BORN)
    with pytest.raises(MissingExtra, match=r"^deepwave is not installed[^\n]*flowprior\[seismic\]"):
        physics.A(torch.zeros(1, *SHAPE))
