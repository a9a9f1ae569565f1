"""Whitening, ICA and the whole chain, against NumPy and by their derivatives."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from flowprior.gaussianization import Gaussianization, Identity, ica, whiten
from flowprior.gaussianization.matrix_functions import inverse_sqrt, nearest_orthogonal
from flowprior.gaussianization.patches import from_patches, to_patches
from flowprior.metrics import typicality
from tests.reference import gaussianization as reference

CHAINS = {
    "paper": {},
    "robust": {"patch_size": 4, "rotation": "none", "passes": 2},
    "two passes": {"patch_size": 4, "passes": 2},
    "three passes": {"patch_size": 3, "passes": 3, "rotation": "none"},
    "1-D layers": {"whiten": False, "rotation": "none"},
    "rotation alone": {"yeo_johnson": False, "lambert_w": False, "temperature": 0.7},
}


def latents(*shape, seed=0, degrees=4):
    """Heavy-tailed, correlated, different from row to row."""
    rng = np.random.default_rng(seed)
    x = rng.standard_t(degrees, size=shape)
    x = x + 0.5 * np.roll(x, 1, -1) + 0.1 * x**2
    return torch.tensor(x * (1 + np.arange(shape[0]).reshape(-1, *[1] * (len(shape) - 1))))


def test_presets_are_what_the_tests_call_them():
    for name in ("paper", "robust"):
        expected = Gaussianization(**CHAINS[name]).extra_repr()
        assert getattr(Gaussianization, name)().extra_repr() == expected


@pytest.mark.parametrize(("shape", "size"), [((2, 3, 16, 24), 8), ((2, 1, 9, 6), 3), ((2, 40), 8)])
def test_patches_come_back(shape, size):
    x = latents(*shape)
    patches = to_patches(x, size)
    assert torch.equal(from_patches(patches, x.shape, size), x)
    if len(shape) == 4:
        expected = reference.patches(x[0].numpy(), size)
        assert np.array_equal(patches[0].numpy(), expected)
    else:
        assert torch.equal(patches[1, :, 2], x[1, 2 * size : 3 * size])


@pytest.mark.parametrize("shape", [(2, 5, 200), (3, 48, 64), (2, 12, 4)])
def test_whitening_and_ica_equal_reference(shape):
    v = latents(*shape)
    white = whiten(v)
    rotated = ica(white)
    for i in range(len(v)):
        expected, _ = reference.whiten(v[i].numpy())
        np.testing.assert_allclose(white[i], expected, rtol=0, atol=1e-8)
        expected, _ = reference.ica(expected)
        np.testing.assert_allclose(rotated[i], expected, rtol=0, atol=1e-8)


def test_whitened_patches_are_white():
    white = whiten(latents(2, 6, 5000), eta=1e-9)
    covariance = white @ white.mT / 4999
    assert (covariance - torch.eye(6)).abs().max() < 1e-7


def test_ica_does_not_depend_on_the_parity_of_its_iterations():
    v = whiten(torch.randn(1, 4, 40_000, generator=torch.Generator().manual_seed(0)).double())
    results = [ica(v, iterations) for iterations in (10, 11)]
    assert (results[0] * results[1]).mean(2).min() > 0.3
    assert ((ica(v) * v).mean(2) > 0).all()


def test_ica_finds_independent_heavy_tailed_components():
    generator = torch.Generator().manual_seed(0)
    sources = torch.randn(1, 2, 20_000, generator=generator).double() ** 3
    mixed = torch.tensor([[1.0, 0.4], [-0.3, 1.0]]).double() @ sources
    rotated = ica(whiten(mixed), iterations=50)
    correlation = torch.corrcoef(torch.cat([rotated[0], sources[0]]))[:2, 2:].abs()
    assert correlation.amax(1).min() > 0.99


@pytest.mark.parametrize("function", [inverse_sqrt, nearest_orthogonal])
def test_matrix_functions_have_derivatives_where_eigenvalues_coincide(function):
    unit = torch.eye(4, dtype=torch.float64)[None]
    noise = torch.randn(1, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    symmetric = function is inverse_sqrt
    for matrix in (2 * unit, 3 * unit + noise @ noise.mT):
        matrix = matrix.requires_grad_()
        assert gradcheck(lambda m: function((m + m.mT) / 2 if symmetric else m), matrix)
    result = function(matrix)
    power = result @ matrix @ result if symmetric else result @ result.mT
    torch.testing.assert_close(power, unit, rtol=0, atol=1e-12)


def test_gradients_of_whitening_and_ica():
    v = latents(2, 3, 12).requires_grad_()
    assert gradcheck(whiten, v)
    assert gradcheck(ica, whiten(v.detach()).requires_grad_())


@pytest.mark.parametrize("name", CHAINS)
def test_chain_equals_reference(name):
    options = CHAINS[name]
    v = latents(2, 3, 24, 24)
    z = Gaussianization(**options)(v)
    renamed = {"whiten": "use_whiten", "yeo_johnson": "use_yeo_johnson", "lambert_w": "use_lambert"}
    options = {renamed.get(key, key): value for key, value in options.items()}
    for found, row in zip(z, v, strict=True):
        if name == "three passes":  # the reference does not roll on, it rolls back
            continue
        np.testing.assert_allclose(found, reference.gaussianize(row.numpy(), **options), atol=1e-6)
    assert z.mean((1, 2, 3)).abs().max() < 1e-10
    assert (z.std((1, 2, 3), correction=0) - options.get("temperature", 1)).abs().max() < 1e-10


@pytest.mark.parametrize("name", CHAINS)
def test_gradients_of_the_chain(name):
    h = Gaussianization(**{**CHAINS[name], "patch_size": 3, "ica_iterations": 3})
    assert gradcheck(h, latents(2, 1, 6, 6).requires_grad_())


@pytest.mark.parametrize("name", ["paper", "robust"])
def test_taylor_remainder_falls_at_second_order(name):
    h = Gaussianization(**CHAINS[name])
    v = latents(1, 1, 64, 64).requires_grad_()
    generator = torch.Generator().manual_seed(0)
    direction, weight = torch.randn(2, *v.shape, generator=generator, dtype=torch.float64)

    def value(x):
        return (weight * h(x)).sum() / len(weight) + (h(x) ** 3).sum()

    start = value(v)
    slope = (torch.autograd.grad(start, v)[0] * direction).sum()
    steps = [10**-k for k in (2.5, 3.5, 4.5, 5.5)]
    with torch.no_grad():
        errors = [abs(value(v + s * direction) - start - s * slope).item() for s in steps]
    ratios = [high / low for high, low in pairwise(errors)]
    assert all(90 < ratio < 110 for ratio in ratios), ratios


@pytest.mark.parametrize("name", CHAINS)
def test_batch_equals_single_calls_and_permutes(name):
    h = Gaussianization(**CHAINS[name])
    v = latents(5, 2, 24, 24)
    together = h(v)
    torch.testing.assert_close(torch.cat([h(row[None]) for row in v]), together, atol=1e-10, rtol=0)
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(h(v[order]), together[order], atol=1e-10, rtol=0)


def test_vectors_are_gaussianized_in_patches_of_their_own():
    v = latents(3, 512).requires_grad_()
    z = Gaussianization.robust()(v)
    assert z.shape == v.shape
    assert (typicality(z.detach().view(3, 1, 16, 32))["kurtosis"] - 3).abs().max() < 0.2
    h = Gaussianization(patch_size=4, ica_iterations=2, passes=2)
    assert gradcheck(h, latents(2, 32).requires_grad_())


@pytest.mark.parametrize("name", ["paper", "robust"])
def test_single_precision_gaussianizes_as_well(name):
    h = Gaussianization(**CHAINS[name])
    v = latents(2, 3, 64, 64)
    z, exact = h(v.float()), h(v)
    assert z.dtype == torch.float32
    assert (z - exact).norm() < 2e-3 * exact.norm()


def test_autocast_does_not_lower_the_precision():
    h = Gaussianization.paper()
    v = latents(2, 3, 64, 64).float()
    with torch.autocast("cpu", torch.bfloat16):
        inside = h(v)
    torch.testing.assert_close(inside, h(v), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", CHAINS)
def test_rows_without_a_result_leave_the_others_alone(name):
    h = Gaussianization(**CHAINS[name])
    v = latents(5, 1, 24, 24)
    expected = h(v[4:])
    v[0, 0, 0, 0], v[1, 0, 3, 3], v[2], v[3] = torch.nan, torch.inf, 0.1, 0.0
    v.requires_grad_()
    z = h(v)
    assert z[:2].isnan().all()
    assert (z[2:4] == 0).all()
    torch.testing.assert_close(z[4:], expected, atol=1e-10, rtol=0)
    (z[2:].square().sum() + z[2:].sum()).backward()
    assert v.grad.isfinite().all()
    assert (v.grad[:2] == 0).all()


def test_other_shapes_count_as_vectors():
    v = latents(3, 1, 16, 8).view(3, 4, 32)
    h = Gaussianization(patch_size=8, rotation="none")
    assert torch.equal(h(v), h(v.flatten(1)).view_as(v))


def test_few_patches_give_a_finite_result_and_gradient():
    v = latents(2, 3, 16, 16).requires_grad_()  # 4 patches of 192 entries
    z = Gaussianization()(v)
    gradient = torch.autograd.grad((z**3).sum(), v)[0]
    assert z.isfinite().all()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("name", sorted(CHAINS.keys() - {"rotation alone"}))
def test_output_is_typical(name):
    z = Gaussianization(**CHAINS[name])(latents(2, 3, 48, 48))
    found = typicality(z)
    assert (found["radius"] - 1).abs().max() < 1e-6
    assert found["skewness"].abs().max() < 0.3
    assert (found["kurtosis"] - 3).abs().max() < 1e-3


def test_compiles_without_graph_breaks(monkeypatch):
    # All iterations are made in a compiled graph, and take a minute to trace.
    monkeypatch.setattr("flowprior.gaussianization.solving.MAX_ITERATIONS", 10)
    h = Gaussianization(patch_size=4, ica_iterations=2)
    v = latents(2, 1, 32, 32, degrees=10)
    compiled = torch.compile(h, backend="aot_eager", fullgraph=True)
    first, second = v.clone().requires_grad_(), v.clone().requires_grad_()
    torch.testing.assert_close(compiled(first), h(second), atol=1e-8, rtol=0)
    for function, x in ((compiled, first), (h, second)):
        (function(x) ** 3).sum().backward()
    torch.testing.assert_close(first.grad, second.grad, atol=1e-6, rtol=1e-6)


def test_identity():
    v = latents(2, 3, 4, 4)
    assert Identity()(v) is v


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"patch_size": 0}, "patch_size"),
        ({"passes": 0}, "passes"),
        ({"rotation": "pca"}, "rotation"),
        ({"whiten": False}, "whiten=True"),
        ({"temperature": 0.0}, "temperature"),
        ({"ica_iterations": -1}, "ica_iterations"),
    ],
)
def test_wrong_options_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        Gaussianization(**options)


@pytest.mark.parametrize(
    ("v", "words"),
    [
        (torch.zeros(2, 3, 12, 16), "patch_size"),
        (torch.zeros(2, 12), "patch_size"),
        (torch.zeros(16), r"\(16,\)"),
        (torch.zeros(2, 3, 16, 16, dtype=torch.int64), "int64"),
        (torch.randn(2, 3, 8, 8), "N >= 2"),
    ],
)
def test_wrong_latents_are_named(v, words):
    with pytest.raises(ValueError, match=words):
        Gaussianization()(v)
