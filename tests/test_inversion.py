"""Inversion with a flow, in plain PyTorch."""

import copy
import math

import deepinv
import pytest
import torch
import torch.nn.functional as F

import flowprior
from flowprior.flows import standard_normal_log_prob
from flowprior.gaussianization import Gaussianization
from flowprior.inversion import InverseProblem, Objective, invert
from flowprior.physics import denoising, random_gaussian
from tests.conftest import make_perturbed_glow

SIZE = 16
NO_PRIOR = Objective(prior="none")


def blur(x):
    return F.avg_pool2d(x, 3, stride=1, padding=1)


def mask(x):
    return x * (torch.arange(SIZE) % 2)


@pytest.fixture(scope="module")
def prior():
    flow = make_perturbed_glow(1, SIZE, levels=2, steps=2, coupling="affine", scale=0.05)
    return flow.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def truth(prior):
    z = torch.randn(4, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(1)).double()
    return prior.to_unit_range(prior.decode(0.7 * z)[0])


def test_noiseless_image_in_the_range_is_recovered(prior, truth):
    found = invert(prior, lambda x: x, truth, objective=NO_PRIOR, iterations=100)
    assert (found.x - truth).abs().max() < 1e-3
    assert found.history["misfit"][-1].max() < 1e-6 * found.history["misfit"][0].min()
    torch.testing.assert_close(found.x, prior.to_unit_range(prior.decode(found.z)[0]))


@pytest.mark.parametrize("method", ["lbfgs", "adam"])
@pytest.mark.parametrize("gaussianized", [False, True])
def test_loss_falls_and_history_tells(prior, truth, method, gaussianized):
    h = Gaussianization(patch_size=4, rotation="none") if gaussianized else None
    objective = Objective(beta=1e-3)
    y = blur(truth)
    options = {"reparameterization": h, "objective": objective, "method": method}
    found = invert(prior, blur, y, iterations=15, **options)
    loss, misfit, log_prior = (found.history[name] for name in ("loss", "misfit", "log_prior"))
    assert loss.shape == (16, 4)
    assert (loss[-1] < loss[0]).all()
    if method == "lbfgs":
        assert (loss.diff(dim=0) <= 1e-12).all()
    torch.testing.assert_close(loss, misfit - 1e-3 * log_prior)
    problem = InverseProblem(prior, blur, y, h, objective)
    terms = problem.terms(found.v)
    torch.testing.assert_close(terms.loss, loss[-1])
    expected = prior.log_prob(prior.decode(found.z)[0])
    torch.testing.assert_close(log_prior[-1], expected, rtol=1e-8, atol=1e-8)
    if gaussianized:
        assert (found.z.std((1, 2, 3), correction=0) - 1).abs().max() < 1e-9


@pytest.mark.parametrize("method", ["lbfgs", "adam"])
def test_result_does_not_depend_on_the_batch(prior, truth, method):
    y = mask(truth)
    options = {"objective": Objective(beta=1e-3), "iterations": 12, "method": method}
    together = invert(prior, mask, y, **options)
    for i in range(len(y)):
        alone = invert(prior, mask, y[i : i + 1], **options)
        torch.testing.assert_close(alone.x[0], together.x[i], rtol=0, atol=1e-7)


@pytest.mark.parametrize("layers", [None, Gaussianization(4, passes=2), Gaussianization.paper()])
def test_the_batch_does_not_change_a_bit(prior, truth, layers):
    flow = copy.deepcopy(prior).float()
    gaussian = random_gaussian((1, SIZE, SIZE), 30)
    for physics, y in ((mask, mask(truth.float())), (gaussian, gaussian.A(truth.float()))):
        options = {"objective": Objective(beta=1e-3), "iterations": 12}
        together = invert(flow, physics, y, reparameterization=layers, **options)
        for rows in ([0], [1, 2, 3]):
            apart = invert(flow, physics, y[rows], reparameterization=layers, **options)
            assert torch.equal(apart.x, together.x[rows])


@pytest.mark.parametrize("method", ["lbfgs", "adam"])
def test_operator_with_parameters_for_each_image(prior, truth, method):
    generator = torch.Generator().manual_seed(0)
    masks = (torch.rand(4, 1, SIZE, SIZE, generator=generator) > 0.5).double()
    filters = torch.rand(4, 1, 3, 3, generator=generator).double()
    image = (1, SIZE, SIZE)
    for make, values in (
        (lambda its: deepinv.physics.Inpainting(image, mask=its), masks),
        (lambda its: deepinv.physics.BlurFFT(image, filter=its), filters),
    ):
        y = make(values).A(truth)
        together = invert(prior, make(values), y, method=method, iterations=10)
        for row in range(4):
            rows = slice(row, row + 1)
            alone = invert(prior, make(values[rows]), y[rows], method=method, iterations=10)
            torch.testing.assert_close(together.x[rows], alone.x, rtol=0, atol=1e-6)


def test_operator_that_cannot_be_used_is_refused(prior, truth):
    masks = torch.ones(4, 1, SIZE, SIZE).double()
    with pytest.raises(ValueError, match="it makes 4 rows of data of 1 images"):
        invert(prior, lambda x: x * masks, truth[:3])
    with pytest.raises(ValueError, match=r"y must be one tensor of data, .* got \(4,\)"):
        invert(prior, lambda x: x.mean((1, 2, 3)), truth.mean((1, 2, 3)))
    physics = deepinv.physics.stack(*2 * [denoising((1, SIZE, SIZE))])
    with pytest.raises(ValueError, match="got TensorList"):
        invert(prior, physics, physics.A(truth))
    with pytest.raises(ValueError, match="it gives tuple, expected one tensor"):
        invert(prior, lambda x: (x, x), truth)


def test_unit_of_the_loss_does_not_decide_on_the_end(prior, truth):
    y = mask(truth)
    found = [
        invert(
            prior, mask, y, objective=Objective(prior="none", data_scale=scale), iterations=40
        ).history["misfit"]
        for scale in (1e-6, 1.0, 1e3)
    ]
    for history in found:
        assert (history[-1] / history[0]).max() < 1e-2


def test_row_that_overflows_leaves_the_others_alone(prior, truth):
    y = mask(truth)
    start = torch.randn(4, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(3)).double()
    options = {"reparameterization": Gaussianization(4, passes=2), "iterations": 5}
    expected = invert(prior, mask, y, start=start, **options)
    start[1] *= 1e200
    found = invert(prior, mask, y, start=start, **options)
    assert found.finite.tolist() == [True, False, True, True]
    rows = [0, 2, 3]
    assert torch.equal(found.x[rows], expected.x[rows])


def test_adam_needs_no_gradient_mode(prior, truth):
    y = mask(truth)
    expected = invert(prior, mask, y, method="adam", iterations=3)
    with torch.no_grad():
        found = flowprior.invert(prior, mask, y, method="adam", iterations=3)
    assert torch.equal(found.x, expected.x)


def test_large_weight_of_the_latent_norm_keeps_the_latent_short(prior, truth):
    norms = [
        invert(
            prior, mask, mask(truth), objective=Objective(prior="latent_norm", beta=beta)
        ).z.norm()
        for beta in (0.0, 1e-2, 1e2)
    ]
    assert norms[0] > norms[1] > norms[2]
    assert norms[2] < 1e-2 * norms[0]


def test_terms_and_units(prior, truth):
    z = prior.encode(truth - 0.5)[0]
    y = torch.zeros_like(truth)
    size = truth[0].numel()
    plain = InverseProblem(prior, lambda x: x, y, None, Objective(beta=2.0)).terms(z)
    squared = 0.5 * truth.square().sum((1, 2, 3))
    torch.testing.assert_close(plain.misfit, squared)
    torch.testing.assert_close(plain.log_prior, prior.log_prob(truth - 0.5))
    torch.testing.assert_close(plain.loss, squared - 2 * plain.log_prior)
    bits = Objective("absolute", "latent_norm", 2.0, "bits_per_dim", data_scale=255.0)
    terms = InverseProblem(prior, lambda x: x, y, None, bits).terms(z)
    absolute = 255 * truth.abs().sum((1, 2, 3))
    torch.testing.assert_close(terms.misfit, absolute)
    expected = absolute - 2 * standard_normal_log_prob(z) / (size * math.log(2))
    torch.testing.assert_close(terms.loss, expected)


def test_row_that_overflows_is_reported_and_leaves_the_others_alone(prior, truth):
    y = blur(truth)
    start = torch.randn(1, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0)).double()
    start = start.repeat(4, 1, 1, 1)
    options = {"objective": NO_PRIOR, "iterations": 5}
    for method in ("lbfgs", "adam"):
        expected = invert(prior, blur, y[1:], start=start[1:], method=method, **options)
        bad = start.clone()
        bad[0] *= 1e200
        found = invert(prior, blur, y, start=bad, method=method, **options)
        assert found.finite.tolist() == [False, True, True, True]
        torch.testing.assert_close(found.x[1:], expected.x)


def test_images_in_one_draw_start_equal_and_a_seed_repeats_them(prior, truth):
    y = blur(truth)
    first, again, other = (invert(prior, blur, y, iterations=0, seed=seed).v for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert (first == first[:1]).all()
    assert not torch.equal(first, other)


def test_iterations_are_told(prior, truth):
    seen = []
    invert(prior, blur, blur(truth), iterations=3, on_iteration=lambda k, _: seen.append(k))
    assert seen == [0, 1, 2, 3]


WRONG = {
    "shape of y": ({"y": torch.zeros(2, 1, 8, 8)}, r"y must have shape \(B, 1, 16, 16\)"),
    "NaN in y": ({"y": torch.full((2, 1, SIZE, SIZE), torch.nan)}, r"rows \[0, 1\]"),
    "no gradient": ({"physics": lambda x: x.detach()}, "no gradient"),
    "no operator": ({"physics": 3}, "Physics or a function"),
    "operator of other images": ({"physics": lambda x: x.view(-1, 7)}, "does not take images"),
    "method": ({"method": "newton"}, "method"),
    "iterations": ({"iterations": -1}, "iterations"),
    "start": ({"start": torch.zeros(2, 1, 8, 8)}, "start must be finite, of shape"),
    "learning rate": ({"method": "adam", "learning_rate": 0.0}, "learning_rate"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_use_is_one_clear_line(prior, truth, name):
    changes, words = WRONG[name]
    options = {"physics": blur, "y": blur(truth)[:2], **changes}
    options["y"] = options["y"].double()
    with pytest.raises(ValueError, match=words) as caught:
        invert(prior, **options)
    assert "\n" not in str(caught.value)


def test_prior_must_be_frozen(truth):
    flow = make_perturbed_glow(1, SIZE, levels=2, steps=2)
    with pytest.raises(ValueError, match="frozen"):
        invert(flow, blur, truth)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"misfit": "huber"}, "misfit"),
        ({"prior": "l1"}, "prior"),
        ({"beta_unit": "bits"}, "beta_unit"),
        ({"beta": -1.0}, "beta"),
        ({"beta": math.nan}, "beta"),
        ({"data_scale": 0.0}, "data_scale"),
    ],
)
def test_wrong_objective_is_named(options, words):
    with pytest.raises(ValueError, match=words):
        Objective(**options)
