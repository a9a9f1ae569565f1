"""iFlow, and MAP with TRUMPET: minima, gradients, starts, batches, resumption, mistakes."""

from itertools import product

import pytest
import torch
from torch import nn

from flowprior.inversion import MAP, Checkpoint, IFlow, invert, make_problem
from flowprior.inversion.iflow import ProjectedRun
from flowprior.inversion.proximal import linear_start
from flowprior.latent import Latent, standard_normal_log_prob
from flowprior.physics import Gaussian, Laplace, make_operator
from flowprior.priors import Prior
from tests.inversion_problems import (
    Interrupted,
    blur,
    images_of,
    interrupt_at,
    small_decoder,
    small_glow,
)
from tests.test_trumpet import trumpet

SHAPE = (1, 6, 6)
SIGMA = 0.05
FAST = {"learning_rate": 0.02}
BOTH = pytest.mark.parametrize("through", [True, False])


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


class LinearRange(Prior):
    """x = W z + b with W (36, 5); `project` is orthogonal, or along the kernel of Vᵀ."""

    def __init__(self, oblique=False):
        super().__init__(SHAPE, Latent({"z": (5,)}), (-1.0, 1.0))
        self.register_buffer("weight", 0.3 * normal(36, 5))
        seen = self.weight + (0.2 * normal(36, 5, seed=1) if oblique else 0)
        self.register_buffer("back", torch.linalg.solve(seen.T @ self.weight, seen.T))
        self.register_buffer("bias", 0.1 * normal(36, seed=2))
        self.eval()

    def generate(self, z, condition=None):
        return (z @ self.weight.T + self.bias).unflatten(1, SHAPE)

    def codes(self, x):
        return (x.flatten(1) - self.bias) @ self.back.T

    def project(self, x):
        return self.generate(self.codes(x))

    def project_with_log_prob(self, x):
        return self.project(x), standard_normal_log_prob(self.codes(x))


def linear_problem(prior, count=3):
    """Operator, noisy data and the operator's matrix."""
    physics = make_operator("random_gaussian", SHAPE, measurements=12).double()
    clean = physics.A(images_of(prior, count))
    return physics, Gaussian(SIGMA).add(clean, seed=0, indices=range(count)), physics.matrix


def closest(prior, y, matrix, beta):
    """Images W z + b, in [0, 1], that minimise ½‖A x − y‖²/σ² + ½β‖z‖², by normal equations."""
    wide, bias = prior.weight / 2, (prior.bias + 1) / 2
    seen = matrix @ wide
    gram = seen.T @ seen / SIGMA**2 + beta * torch.eye(5, dtype=torch.float64)
    z = torch.linalg.solve(gram, seen.T @ (y - matrix @ bias).T / SIGMA**2)
    return (wide @ z).T.add(bias).unflatten(1, SHAPE)


@pytest.mark.parametrize("beta", [0.0, 1.0])
@BOTH
def test_least_squares_on_a_linear_range(through, beta):
    prior = LinearRange()
    physics, y, matrix = linear_problem(prior)
    solver = IFlow(beta=beta, through=through, **(FAST if through else {}))
    found = invert(prior, physics, y, sigma=SIGMA, solver=solver, iterations=500)
    expected = closest(prior, y, matrix, beta)
    assert (found.x - expected).abs().max() < 1e-3
    assert (expected - images_of(prior, 3)).abs().max() > 1e-2
    losses = found.history["loss"]
    assert (losses[-1] < losses[0]).all()
    if not through:
        assert (losses.diff(dim=0) <= 0).all()


def test_gradients_through_an_oblique_projection_reach_it_too():
    """Without them it ends elsewhere: the step is projected along another direction."""
    prior = LinearRange(oblique=True)
    physics, y, matrix = linear_problem(prior)
    expected = closest(prior, y, matrix, 0.0)
    error = {}
    for through in (True, False):
        solver = IFlow(through=through, **(FAST if through else {}))
        found = invert(prior, physics, y, sigma=SIGMA, solver=solver, iterations=500)
        error[through] = (found.x - expected).abs().max()
    assert error[True] < 1e-3 < error[False]


def test_start_is_the_linear_estimate():
    prior = LinearRange()
    physics, y, matrix = linear_problem(prior)
    problem = make_problem(prior, physics, y, sigma=SIGMA)
    hessian = matrix.T @ matrix / SIGMA**2 + 4 * torch.eye(matrix.shape[1], dtype=matrix.dtype)
    centred = 2 * y - matrix.sum(1)  # data of images in [−1, 1]
    x = torch.linalg.solve(hessian, matrix.T @ centred.T / SIGMA**2).T
    found = linear_start(problem)
    torch.testing.assert_close(2 * found.flatten(1) - 1, x, atol=1e-6, rtol=0)
    run = IFlow(through=False).begin(problem)
    torch.testing.assert_close(run.x, prior.to_unit_range(prior.project(2 * found - 1)))
    given = make_problem(prior, physics, y, sigma=SIGMA, start=torch.full_like(found, 0.2))
    started = prior.to_unit_range(prior.project(torch.full_like(found, -0.6)))
    torch.testing.assert_close(IFlow().begin(given).x, started)


@pytest.mark.parametrize(
    ("operator", "options"),
    [
        ("super_resolution", {"smoothing": "bilinear"}),
        ("random_inpainting", {}),
        ("box_inpainting", {}),
        ("random_gaussian", {"measurements": 40}),
        ("gaussian_blur", {"tau": 2.0}),
        ("limited_angle_ct", {}),
    ],
)
def test_start_in_single_precision(operator, options):
    """It fits clean data and stays in the range of images; further iterations do no harm."""
    shape = (1, 16, 16)
    physics = make_operator(operator, shape, **options)
    truth = torch.linspace(0.1, 0.9, 16).expand(9, *shape) ** torch.arange(1, 10).view(-1, 1, 1, 1)
    y = physics.A(truth)
    found = linear_start(make_problem(None, physics, y, sigma=1e-4, image_shape=shape))
    error = (physics.A(found) - y).square().mean().sqrt()
    assert error < 1e-2 * y.std()
    assert (found - 0.5).flatten(1).norm(dim=1).max() < (truth - 0.5).flatten(1).norm(dim=1).max()


def test_start_is_grey_where_the_operator_is_not_linear():
    y = images_of(LinearRange(), 2).square()
    found = linear_start(make_problem(LinearRange(), torch.square, y, sigma=SIGMA))
    assert (found == 0.5).all()


@pytest.fixture(scope="module")
def flow():
    small = trumpet(layout=["squeeze", 1, "halve"], low_steps=1)
    return small.float().requires_grad_(False)


@pytest.mark.parametrize(("through", "beta"), list(product([True, False], [0.0, 0.5])))
def test_rows_are_the_same_in_every_batch(flow, through, beta):
    solver = IFlow(beta=beta, through=through)
    physics = make_operator("random_gaussian", flow.image_shape, measurements=12)
    y = physics.A(normal(33, *flow.image_shape).sigmoid().float())
    starts = normal(33, *flow.image_shape, seed=3).sigmoid().float()

    def recovered(rows):
        start = None if beta == 0 else starts[rows]  # A†y in half of the cases
        options = {"sigma": 0.05, "solver": solver, "iterations": 3, "start": start}
        return invert(flow, physics, y[rows], **options).x

    alone = torch.cat([recovered(torch.tensor([row])) for row in range(33)])
    assert len({tuple(image.flatten().tolist()) for image in alone}) == 33
    for count in (1, 5, 17, 33):
        order = torch.randperm(33, generator=torch.Generator().manual_seed(count))[:count]
        assert torch.equal(recovered(order), alone[order])


@pytest.mark.parametrize(("through", "beta"), list(product([True, False], [0.0, 0.5])))
def test_killed_run_goes_on_to_the_last_bit(flow, tmp_path, through, beta):
    y = normal(3, *flow.image_shape).sigmoid().float()
    options = {"sigma": 0.1, "solver": IFlow(beta=beta, through=through), "iterations": 9}
    expected = invert(flow, blur, y, **options)
    checkpoint = Checkpoint(tmp_path / "state.pt", seconds=0)
    with pytest.raises(Interrupted):
        invert(flow, blur, y, observers=[interrupt_at(6)], checkpoint=checkpoint, **options)
    found = invert(flow, blur, y, checkpoint=Checkpoint(checkpoint.path, seconds=0), **options)
    assert torch.equal(found.x, expected.x)
    for name, values in expected.history.items():
        assert torch.equal(found.history[name], values), name


@BOTH
def test_images_are_projections_and_fit_better_than_the_first(flow, through):
    truth = flow.to_unit_range(flow.sample(4, generator=torch.Generator().manual_seed(0)))
    y = blur(truth)
    solver = IFlow(through=through, misfit=Laplace(0.1))
    found = invert(flow, blur, y, solver=solver, iterations=30)
    again = flow.to_unit_range(flow.project(flow.from_unit_range(found.x)))
    torch.testing.assert_close(again, found.x, atol=1e-4, rtol=0)
    assert (found.history["misfit"][-1] < 0.7 * found.history["misfit"][0]).all()
    assert found.z is None


def test_map_has_the_gradient_of_the_exact_density():
    """Of the loss with log det JᵀJ, by central differences."""
    flow = trumpet(layout=["squeeze", 1, "halve"], low_steps=1).requires_grad_(False)
    y = blur(images_of(flow, 1))
    run = MAP(penalty="log_density").begin(make_problem(flow, blur, y, sigma=0.1))
    rows, v = run.rows, run.v.detach().clone()
    run.evaluate(rows)
    gradient, direction = run.v.grad.clone(), normal(*v.shape, seed=5)
    losses = []
    for step in (1e-5, -1e-5):
        with torch.no_grad():
            run.v.copy_(v + step * direction)
        losses.append(run.evaluate(rows)[1]["loss"].item())
    slope = (losses[0] - losses[1]) / 2e-5
    assert (gradient * direction).sum().item() == pytest.approx(slope, rel=1e-6)


def test_rows_end_where_they_stand_still_and_others_go_on():
    """The first row starts at its minimum."""
    prior = LinearRange()
    physics, y, matrix = linear_problem(prior, 2)
    start = closest(prior, y, matrix, 0.0)
    start[1] += 0.1 * normal(*SHAPE)
    problem = make_problem(prior, physics, y, sigma=SIGMA, start=start)
    run = IFlow(through=False).begin(problem)
    assert isinstance(run, ProjectedRun)
    seen = []
    for _ in range(60):
        seen.append(run.active.tolist())
        run.step()
    assert seen[0][1]
    assert not seen[-1][0]
    torch.testing.assert_close(run.x[0], start[0], atol=1e-6, rtol=0)


@BOTH
def test_row_without_a_finite_loss_stops_alone(through):
    prior = LinearRange()
    start = images_of(prior, 2)
    start[0] = prior.to_unit_range(prior.generate(torch.full((1, 5), 5.0).double()))[0]
    largest = start.abs().flatten(1).amax(1)
    limit = largest.mean()
    assert largest[0] > limit > largest[1]

    def physics(x):
        return blur(x) / (x.abs().amax((1, 2, 3), keepdim=True) < limit)

    y = blur(images_of(prior, 2, seed=4))
    options = {"sigma": 0.1, "solver": IFlow(through=through), "iterations": 5}
    found = invert(prior, physics, y, start=start, **options)
    assert found.finite.tolist() == [False, True]
    alone = invert(prior, physics, y[1:], start=start[1:], **options)
    assert torch.equal(found.x[1:], alone.x)
    assert alone.history["loss"][-1] < alone.history["loss"][0]


@pytest.mark.parametrize(
    ("prior", "solver", "line"),
    [
        (small_glow, IFlow(), r"IFlow: beta=0.0 needs a projection .* Glow does not have it"),
        (small_decoder, IFlow(beta=1.0), "IFlow: beta=1.0 needs a projection .* Module"),
        (lambda: None, IFlow(), "IFlow: beta=0.0 needs a projection .* there is no prior"),
    ],
)
def test_priors_without_a_projection_are_refused_in_one_line(prior, solver, line):
    prior = prior()
    shape = SHAPE if prior is None else prior.image_shape
    y = torch.zeros(1, *shape, dtype=torch.float64)
    with pytest.raises(ValueError, match=line) as error:
        invert(prior, blur, y, sigma=0.1, solver=solver, image_shape=shape)
    assert "\n" not in str(error.value)


def test_projection_without_a_density_takes_no_beta():
    class Bare(LinearRange):
        project_with_log_prob = None

    physics, y, _ = linear_problem(Bare())
    with pytest.raises(ValueError, match=r"use beta=0$"):
        invert(Bare(), physics, y, sigma=SIGMA, solver=IFlow(beta=1.0))


def test_projections_of_another_shape_are_named():
    class Wide(LinearRange):
        def project(self, x):
            return nn.functional.pad(x, (1, 1))

    physics, y, _ = linear_problem(Wide())
    with pytest.raises(ValueError, match=r"Wide.project gives images \(1, 1, 6, 8\)"):
        invert(Wide(), physics, y, sigma=SIGMA, solver=IFlow())


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"beta": -1.0}, "beta"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"tolerance": 2.0}, "tolerance"),
        ({"misfit": 0.1}, "misfit"),
    ],
)
def test_wrong_options_are_named(options, name):
    with pytest.raises(ValueError, match=f"^{name}"):
        IFlow(**options)


@BOTH
def test_latents_to_start_from_are_not_ignored(through):
    prior = LinearRange()
    physics, y, _ = linear_problem(prior)
    options = {"sigma": SIGMA, "solver": IFlow(through=through), "latents": normal(3, 5)}
    with pytest.raises(ValueError, match=r"^IFlow starts from images: give them as start"):
        invert(prior, physics, y, **options)


def test_noise_must_be_known(flow):
    with pytest.raises(ValueError, match=r"^IFlow needs the noise level"):
        invert(flow, blur, torch.zeros(1, *flow.image_shape), solver=IFlow())
