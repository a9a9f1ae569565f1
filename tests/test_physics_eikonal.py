from itertools import pairwise

import numpy as np
import pytest
import skfmm
import torch

from flowprior.physics import EikonalTomography, crosshole, sweeps


def grid_points(size, step=1):
    return [(i, j) for i in range(0, size, step) for j in range(0, size, step)]


def layered(batch, size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    layers = torch.rand(batch, 1, size // 4, 1, generator=generator, dtype=torch.float64)
    return layers.repeat_interleave(4, 2).expand(-1, -1, -1, size).contiguous()


def smooth(batch, height, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    phase = 6 * torch.rand(batch, 1, 2, generator=generator, dtype=torch.float64)
    y = torch.linspace(0, 4, height, dtype=torch.float64).view(1, 1, -1, 1)
    x = torch.linspace(0, 3, width, dtype=torch.float64).view(1, 1, 1, -1)
    return torch.sin(y + phase[..., :1, None]) * torch.cos(x + phase[..., 1:, None]) + 0.3 * y


def gradient_medium_error(size, source, c0=1500.0, g=1.0, extent=1000.0):
    """Largest relative error beyond 3 cells from the source for c = c0 + g z.

    The grid goes on below the points that are looked at, as do the rays, which bend downwards.
    """
    spacing = extent / (size - 1)
    z = spacing * torch.arange(size + size // 4, dtype=torch.float64)
    c = (c0 + g * z).view(1, 1, -1, 1).expand(-1, -1, -1, size)
    physics = EikonalTomography([source], grid_points(size), spacing, lambda m: m)
    found = physics.A(c).view(size, size)
    ticks = torch.arange(size, dtype=torch.float64)
    cells = torch.hypot(ticks[:, None] - source[0], ticks - source[1])
    c = c[0, 0, :size]
    exact = torch.acosh(1 + (g * cells * spacing) ** 2 / (2 * c * c[source])) / g
    far = cells > 3
    return ((found - exact).abs() / exact)[far].max().item()


@pytest.mark.parametrize("place", [(0.0, 0.0), (0.5, 0.3), (0.99, 0.0), (0.99, 0.99)])
def test_gradient_medium_converges_to_closed_form(place):
    errors = [gradient_medium_error(n, (int(n * place[0]), int(n * place[1]))) for n in (32, 64)]
    assert errors[1] <= 5e-3
    assert errors[1] < 0.65 * errors[0]


def test_homogeneous_medium_is_exact():
    physics = EikonalTomography([(3, 4), (0, 11)], grid_points(12), 10.0, lambda m: m)
    found = physics.A(torch.full((1, 1, 12, 12), 2000.0, dtype=torch.float64))[0]
    sources, points = physics.sources.double(), physics.receivers.double()
    torch.testing.assert_close(found, torch.cdist(sources, points) * 10 / 2000)


def test_reciprocity():
    points = [(2, 0), (17, 0), (30, 31), (9, 31), (16, 15)]
    times = EikonalTomography(points, points, 10.0, lambda m: 2000 + 200 * m).A(smooth(2, 32, 32))
    assert ((times - times.mT).abs().amax() / times.amax()) < 4e-3


@pytest.mark.parametrize("source", [(5, 0), (40, 0)])
def test_agrees_with_fast_marching(source):
    size, spacing = 64, 10.0
    m = layered(2, size)
    velocity = 1500 + 1000 * m[:, 0]
    physics = EikonalTomography([source], grid_points(size), spacing, lambda m: 1500 + 1000 * m)
    times = physics.A(m).view(2, size, size)
    ticks = np.arange(size)
    distance = np.hypot(ticks[:, None] - source[0], ticks - source[1])
    far = distance > 12
    for c, found in zip(velocity.numpy(), times.numpy(), strict=True):
        # An exact disc around the source, in whose layers the velocity is the source's.
        expected = skfmm.travel_time(distance - 0.5, c, dx=spacing, order=2)
        expected = expected + 0.5 * spacing / c[source]
        assert (np.abs(found - expected) / expected)[far].max() < 3e-2
        assert (np.abs(found - expected) / expected)[far].mean() < 8e-3


def test_taylor_remainder_is_second_order():
    physics = EikonalTomography([(2, 0), (12, 0)], [(i, 19) for i in range(0, 16, 3)], 10.0)
    x, direction = smooth(1, 16, 20).requires_grad_(), smooth(1, 16, 20, seed=1)
    weights = torch.rand(2, 6, generator=torch.Generator().manual_seed(3)).double()

    def value(x):
        return (physics.A(x) * weights).sum()

    start = value(x)
    (slope,) = torch.autograd.grad(start, x)
    rest = [
        abs(value(x + e * direction) - start - e * (slope * direction).sum()).item()
        for e in (1e-1, 1e-2, 1e-3, 1e-4)
    ]
    for coarse, fine in pairwise(rest):
        assert 80 < coarse / fine < 120


def test_gradcheck_and_vjp():
    physics = EikonalTomography([(1, 0), (5, 6)], [(0, 6), (4, 6), (4, 3), (4, 3)], 10.0)
    generator = torch.Generator().manual_seed(0)
    x = 5 * torch.rand(2, 1, 6, 7, generator=generator, dtype=torch.float64)
    x.requires_grad_()
    torch.autograd.gradcheck(lambda x: 1e3 * physics.A(x), x, eps=1e-5, atol=1e-7, rtol=1e-5)
    v = torch.rand(2, 2, 4, generator=generator, dtype=torch.float64)
    (expected,) = torch.autograd.grad(physics.A(x), x, v)
    torch.testing.assert_close(physics.A_vjp(x.detach(), v), expected)


def test_batch_equals_singles():
    physics = EikonalTomography([(0, 0), (9, 3)], [(15, 15), (3, 12)], 10.0)
    x = torch.cat([smooth(2, 16, 16), layered(2, 16), 30 * layered(1, 16, 1)])
    times = physics.A(x)
    for row, single in zip(times, x, strict=True):
        torch.testing.assert_close(row, physics.A(single[None])[0], rtol=1e-10, atol=0)


def test_no_model_gives_no_times():
    x = torch.empty(0, 1, 8, 8, requires_grad=True)
    times = EikonalTomography([(0, 0)], [(7, 7), (3, 3)], 10.0).A(x)
    assert times.shape == (0, 1, 2)
    times.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_contrast_is_finite_and_positive(dtype):
    generator = torch.Generator().manual_seed(0)
    exponent = 8 * torch.rand(3, 1, 12, 14, generator=generator, dtype=dtype) - 2
    exponent.requires_grad_()
    receivers = [(i, j) for i in range(12) for j in range(14) if (i, j) != (4, 5)]
    times = EikonalTomography([(4, 5)], receivers, 10.0, lambda m: 10**m).A(exponent)
    assert times.isfinite().all()
    assert (times > 0).all()
    (gradient,) = torch.autograd.grad(times.log().sum(), exponent)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -16.0])
def test_bad_velocity_gives_nan_in_its_row_only(bad):
    physics = EikonalTomography([(0, 0)], [(7, 7)], 10.0)
    x = layered(3, 8)
    expected = physics.A(x)
    x[1, 0, 2, 2] = bad
    x.requires_grad_()
    found = physics.A(x)
    assert found[1].isnan().all()
    torch.testing.assert_close(found[[0, 2]], expected[[0, 2]], rtol=0, atol=0)
    (gradient,) = torch.autograd.grad(found[[0, 2]].sum(), x)
    assert gradient[[0, 2]].isfinite().all()


POINTS = {"sources": [(0, 1)], "receivers": [(3, 0)], "spacing": 1.0}


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("sources", [0, 1]),
        ("sources", [(0, -1)]),
        ("sources", []),
        ("receivers", [(0.5, 0)]),
        *(("spacing", value) for value in (0, -1.0, float("nan"), float("inf"), "1", True)),
        *(("refine", value) for value in (0, -1, 1.5, "2", True)),
    ],
)
def test_wrong_options_are_named(option, value):
    with pytest.raises(ValueError, match=rf"^{option} [^\n]*$"):
        EikonalTomography(**{**POINTS, option: value})


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("sources", 0),
        ("sources", 9),
        ("sources", 2.5),
        ("receivers", 9),
        ("extent", 0),
        ("extent", "10"),
        ("refine", 0),
    ],
)
def test_wrong_options_of_crosshole_are_named(option, value):
    with pytest.raises(ValueError, match=rf"^{option} [^\n]*$"):
        crosshole((1, 8, 6), **{option: value})


def test_crosshole_positions():
    physics = crosshole((1, 8, 6), sources=2, receivers=4, extent=10, refine=2)
    assert physics.sources.tolist() == [[2, 0], [6, 0]]
    assert physics.receivers.tolist() == [[1, 5], [3, 5], [5, 5], [7, 5]]
    assert (physics.spacing, physics.refine) == (2.0, 2)
    assert crosshole((1, 8, 6)).A(torch.rand(3, 1, 8, 6)).shape == (3, 8, 8)


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 8, 1)])
def test_models_that_crosshole_does_not_take(shape):
    with pytest.raises(ValueError, match="crosshole"):
        crosshole(shape)


def test_models_of_another_shape_are_refused():
    physics = EikonalTomography([(0, 1)], [(8, 0)], 1.0)
    with pytest.raises(ValueError, match="receivers"):
        physics.A(torch.zeros(1, 1, 8, 8))
    with pytest.raises(ValueError, match=r"\(B, 1, H, W\)"):
        physics.A(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="velocity"):
        EikonalTomography([(0, 1)], [(3, 0)], 1.0, torch.flatten).A(torch.zeros(1, 1, 8, 8))


def test_travel_times_and_gradients_do_not_depend_on_the_batch():
    physics = EikonalTomography([(2, 0), (9, 5)], [(4, 11)], spacing=10.0)
    models = torch.rand(5, 1, 12, 12, generator=torch.Generator().manual_seed(0)) * 20

    def both(x):
        x = x.clone().requires_grad_()
        times = physics.travel_time_maps(x)
        (gradient,) = torch.autograd.grad(times.square().sum(), x)
        return times.detach(), gradient

    together = both(models)
    for rows in ([0], [1, 2], [3, 4]):
        apart = both(models[rows])
        assert all(torch.equal(a, b[rows]) for a, b in zip(apart, together, strict=True))


def test_gradient_with_nan_leaves_the_other_models_alone():
    slowness, sources = 1 + torch.rand(2, 9, 9, dtype=torch.float64), torch.tensor([(0, 0)])
    u = sweeps.solve(slowness, sources)
    gradient = torch.ones_like(u)
    expected = sweeps.solve_adjoint(slowness, sources, u, gradient)
    gradient[0, 0, 4, 4] = torch.nan
    found = sweeps.solve_adjoint(slowness, sources, u, gradient)
    assert found[0].isnan().any()
    assert found[1].equal(expected[1])


def test_travel_times_do_not_depend_on_the_number_of_threads():
    physics = EikonalTomography([(2, 0), (9, 5)], [(4, 11)], spacing=10.0)
    x = smooth(3, 12, 12)
    threads = torch.get_num_threads()
    found = []
    for number in (1, 2, 7, 8):
        torch.set_num_threads(number)
        found.append(physics.travel_time_maps(x))
    torch.set_num_threads(threads)
    assert all(times.equal(found[0]) for times in found)


def test_compiles_where_nothing_can_be_kept(monkeypatch):
    monkeypatch.setattr("numba.core.caching.CacheImpl._locator_classes", [])

    def double(x):
        return 2 * x

    assert sweeps._compiled(double)(3) == 6


REFINED = {"sources": [(2, 0), (9, 5)], "receivers": [(0, 11), (4, 9), (11, 2)], "spacing": 10.0}


@pytest.mark.parametrize("refine", [2, 3, 4])
def test_a_constant_medium_is_exact_on_a_fine_grid(refine):
    physics = EikonalTomography(**REFINED, velocity=lambda m: m, refine=refine)
    found = physics.A(torch.full((1, 1, 12, 12), 2000.0, dtype=torch.float64))[0]
    expected = torch.cdist(physics.sources.double(), physics.receivers.double()) * 10 / 2000
    torch.testing.assert_close(found, expected)


def refined_times(refine, size=24, c0=1500.0, g=40.0):
    """Times in c = c0 + g z, z in cells, which interpolation keeps, and the exact ones."""
    source, points = (size // 2, 0), [(i, size - 1) for i in range(0, size, 3)]
    z = torch.arange(size, dtype=torch.float64)
    c = (c0 + g * z).view(1, 1, -1, 1).expand(-1, -1, -1, size)
    found = EikonalTomography([source], points, 1.0, lambda m: m, refine).A(c)[0, 0]
    rows, columns = torch.tensor(points).unbind(1)
    square = (rows - source[0]) ** 2 + columns**2
    exact = torch.acosh(1 + g**2 * square / (2 * (c0 + g * rows) * (c0 + g * source[0]))) / g
    return found, exact


def test_refined_times_converge_and_differ_by_the_error_of_the_coarse_grid():
    times, exact = {}, None
    for refine in (1, 2, 4):
        times[refine], exact = refined_times(refine)
    errors = {refine: (found - exact).norm() for refine, found in times.items()}
    assert errors[2] < 0.65 * errors[1]
    assert errors[4] < 0.65 * errors[2]
    assert 0.5 * errors[1] < (times[4] - times[1]).norm() < 1.2 * errors[1]


def test_refined_times_of_the_data_differ_from_those_of_the_inversion():
    x = layered(2, 16)
    coarse, fine = (crosshole((1, 16, 16), refine=refine).A(x) for refine in (1, 4))
    assert coarse.shape == fine.shape == (2, 8, 16)
    assert 1e-5 < ((fine - coarse).abs() / coarse).max() < 2e-2


def test_gradcheck_on_a_fine_grid():
    points = {"sources": [(1, 0), (5, 6)], "receivers": [(0, 6), (4, 6), (4, 3)]}
    physics = EikonalTomography(**points, spacing=10.0, refine=3)
    generator = torch.Generator().manual_seed(0)
    x = 5 * torch.rand(2, 1, 6, 7, generator=generator, dtype=torch.float64)
    x.requires_grad_()
    torch.autograd.gradcheck(lambda x: 1e3 * physics.A(x), x, eps=1e-5, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fine_grids_do_not_depend_on_the_batch(dtype):
    physics = EikonalTomography(**REFINED, refine=4)
    x = torch.cat([smooth(3, 12, 12), layered(2, 12)]).to(dtype)
    together = physics.travel_time_maps(x)
    assert together.shape == (5, 2, 12, 12)
    for row, single in zip(together, x.split(1), strict=True):
        assert torch.equal(physics.travel_time_maps(single)[0], row)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_numbers_of_the_cpu():
    physics = EikonalTomography(**REFINED, refine=2)
    found = []
    for device in ("cpu", "cuda"):
        x = smooth(2, 12, 12).to(device).requires_grad_()
        times = physics.to(device).A(x)
        assert times.device == x.device
        (gradient,) = torch.autograd.grad(times.square().sum(), x)
        found.append((times.detach().cpu(), gradient.cpu()))
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)
