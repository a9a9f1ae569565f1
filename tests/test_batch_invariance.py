"""The result for a row is the same, to the last bit, in every batch on a CPU."""

from contextlib import contextmanager
from typing import NamedTuple

import deepinv
import pytest
import torch
from torch import nn

from flowprior import priors
from flowprior.gaussianization import Gaussianization
from flowprior.inversion import (
    MAP,
    BatchedLBFGS,
    Discrepancy,
    Restarts,
    TotalVariation,
    batch_invariant,
    by_rows,
    invert,
    make_problem,
)
from flowprior.inversion.batch_invariant import rows_per_call
from flowprior.metrics import typicality
from flowprior.physics import OPERATORS, crosshole, make_operator
from tests.conftest import make_perturbed_glow
from tests.inversion_problems import small_decoder

SIZES = (1, 5, 16, 17, 33, 100)


class Terms(NamedTuple):
    """What a solver evaluates, here with its gradient."""

    outputs: torch.Tensor
    loss: torch.Tensor
    gradient: torch.Tensor
    extra: None = None


def random(*shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def evaluated(function):
    """Of rows: the function, a loss, and the gradient of its sum."""

    def terms(rows):
        rows = rows.detach().requires_grad_()
        outputs = function(rows)
        outputs = (torch.view_as_real(outputs) if outputs.is_complex() else outputs).flatten(1)
        weights = torch.linspace(-1, 1, outputs.shape[1]).to(outputs)
        loss = ((outputs - weights).square() * (2 + weights)).sum(1, dtype=torch.float64)
        loss.sum().backward()
        return Terms(outputs.detach(), loss.detach(), rows.grad)

    return terms


def assert_rows_equal(found, expected):
    for name, one, other in zip(Terms._fields, found, expected, strict=True):
        assert (one is None and other is None) or torch.equal(one, other), name


def check(function, shape, dtype=torch.float32, sizes=SIZES):
    """Rows in batches of all sizes, in another order each time, against single calls."""
    terms = evaluated(function)
    rows = random(max(sizes), *shape, dtype=dtype)
    with batch_invariant():
        alone = Terms(
            *map(torch.cat, zip(*[terms(r.clone())[:3] for r in rows.split(1)], strict=True))
        )
        for size in sizes:
            chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(size))[:size]
            found = by_rows(terms, rows[chosen])
            assert_rows_equal(found, Terms(*(values[chosen] for values in alone[:3])))


class Decoder(nn.Module):
    """Of whatever a user may have: linear, transposed and normalised, of odd sizes."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(9, 6 * 3 * 3),
            nn.SiLU(),
            nn.Unflatten(1, (6, 3, 3)),
            nn.ConvTranspose2d(6, 5, 3, stride=2, padding=1),
            nn.BatchNorm2d(5),
            nn.ELU(),
            nn.Upsample(scale_factor=2, mode="bilinear"),
            nn.GroupNorm(5, 5),
            nn.ReflectionPad2d(1),
            nn.Conv2d(5, 3, 3),
            nn.Sigmoid(),
        )

    def forward(self, z):
        return self.layers(z)


def perceptron():
    return nn.Sequential(nn.Linear(63, 257), nn.GELU(), nn.Linear(257, 7), nn.Softplus())


def made(make, dtype):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make().to(dtype).eval().requires_grad_(False)


def decoding(flow):
    flow.requires_grad_(False)

    def decode(z):
        x, log_det = flow.decode(z)
        return torch.cat([x.flatten(1), log_det[:, None]], 1)

    return decode


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("make", [Decoder, perceptron])
def test_decoders(make, dtype):
    check(made(make, dtype), (9,) if make is Decoder else (63,), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("image", "options"),
    [
        ((1, 8, 8), {"levels": 3, "coupling": "affine", "hidden_channels": 24}),
        ((1, 10, 6), {"levels": 1, "coupling": "additive", "hidden_channels": 5}),
    ],
)
def test_glow(image, options, dtype):
    flow = make_perturbed_glow(image[0], image[1:], steps=2, scale=0.05, dtype=dtype, **options)
    check(decoding(flow), image, dtype)


def test_glow_of_larger_images():
    flow = make_perturbed_glow(3, 64, levels=2, steps=1, scale=0.05, dtype=torch.float32)
    check(decoding(flow), (3, 64, 64), sizes=(1, 5, 17))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "layers", [Gaussianization.paper(), Gaussianization(4, passes=2, rotation="none")]
)
def test_gaussianization(layers, dtype):
    check(layers, (1, 16, 16), dtype, sizes=(1, 5, 33))


WAVES = ("linearized_born", "full_waveform")


@pytest.mark.parametrize("name", OPERATORS)
def test_operators(name):
    options = {
        "super_resolution": {"factor": 3},
        "gaussian_blur": {"kernel_size": 9},
        "random_gaussian": {"measurements": 31},
        "phase_retrieval": {"measurements": 31},
        **{key: {"sources": 2, "receivers": 3, "duration": 0.1} for key in WAVES},
    }.get(name, {})
    image = (1 if "tomography" in name or name in WAVES else 2, 15, 15)
    check(make_operator(name, image, **options).A, image, sizes=(1, 5, 17, 33))


def test_nonlinear_and_foreign_operators():
    eikonal = crosshole((1, 8, 8), sources=3, extent=70.0)
    check(lambda v: eikonal.A(v.sigmoid()), (1, 8, 8), sizes=(1, 5, 17))
    blur = deepinv.physics.BlurFFT((1, 15, 15), filter=random(1, 1, 3, 3))
    check(blur.A, (1, 15, 15), sizes=(1, 5, 17))


def test_diagnostics():
    check(lambda z: torch.stack(list(typicality(z, 5).values()), 1), (3, 15, 15))


@pytest.mark.parametrize("threads", [1, 2])
def test_long_sums_do_not_depend_on_threads(threads):
    rows = random(5, 49152)
    with batch_invariant():
        expected = rows.sum(1)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with batch_invariant():
            found = torch.cat([rows[:1].sum(1), rows[1:].sum(1)])
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found, expected)


def lbfgs_steps(function, v, y, count):
    """L-BFGS iterates of rows whose number shrinks as they converge."""
    v = nn.Parameter(v.clone())
    optimizer = BatchedLBFGS([v], tolerance_grad=1e-3)

    def loss_and_gradient(v, y):
        v = v.detach().requires_grad_()
        loss = (function(v) - y).square().sum(1, dtype=torch.float64)
        loss.sum().backward()
        return loss.detach(), v.grad

    def closure(rows):
        losses, gradient = by_rows(loss_and_gradient, v[rows], y[rows])
        v.grad = torch.zeros_like(v).index_copy(0, rows, gradient)
        return losses

    with batch_invariant():
        for _ in range(count):
            optimizer.step(closure)
    return v.detach(), optimizer.evaluations


def test_lbfgs_with_rows_that_end():
    function = made(perceptron, torch.float32)
    starts = random(33, 63) * torch.linspace(0, 2, 33)[:, None]
    y = function(random(33, 63, seed=1)) * 1.01
    expected, evaluations = lbfgs_steps(function, starts, y, 12)
    assert len(evaluations.unique()) > 3  # the batch did shrink
    for rows in ([0], [30], range(5), range(16, 33), [7, 3, 32]):
        rows = torch.tensor(list(rows))
        found, counts = lbfgs_steps(function, starts[rows], y[rows], 12)
        assert torch.equal(found, expected[rows])
        assert torch.equal(counts, evaluations[rows])


def adam_steps(function, v, count):
    v = nn.Parameter(v.clone())
    optimizer = torch.optim.Adam([v], 0.05)
    with batch_invariant():
        for _ in range(count):
            v.grad = by_rows(evaluated(function), v).gradient
            optimizer.step()
    return v.detach()


def test_adam():
    function = made(perceptron, torch.float32)
    starts = random(33, 63)
    expected = adam_steps(function, starts, 5)
    for rows in ([0], [32], range(5), range(16, 33)):
        assert torch.equal(adam_steps(function, starts[list(rows)], 5), expected[list(rows)])


def mlp_prior():
    net = nn.Sequential(nn.Linear(20, 50), nn.GELU(), nn.Linear(50, 256), nn.Sigmoid())
    return priors.Module(nn.Sequential(net, nn.Unflatten(1, (1, 16, 16))), (1, 16, 16), [20])


def convolutional_prior():
    net = nn.Sequential(
        nn.Linear(20, 32 * 16),
        nn.Unflatten(1, (32, 4, 4)),
        nn.ConvTranspose2d(32, 16, 4, 2, 1),
        nn.ReLU(),
        nn.ConvTranspose2d(16, 1, 4, 2, 1),
        nn.Sigmoid(),
    )
    return priors.Module(net, (1, 16, 16), [20])


def glow_prior():
    return make_perturbed_glow(1, 16, levels=2, steps=2, coupling="affine", dtype=torch.float32)


SOLVERS = {
    "map": (glow_prior, MAP(beta=0.1)),
    "layers": (glow_prior, MAP(beta=0.1, reparameterization=Gaussianization.robust())),
    "adam": (convolutional_prior, MAP(penalty="latent_norm", optimizer="adam")),
    "mlp": (mlp_prior, MAP(penalty="latent_norm")),
    "restarts": (mlp_prior, Restarts(MAP(penalty="latent_norm"), 3)),
    "discrepancy": (glow_prior, Discrepancy(MAP(), stage=3)),
    "total variation": (glow_prior, TotalVariation(weight=3.0)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("operator", ["gaussian_blur", "random_gaussian", "crosshole_tomography"])
@pytest.mark.parametrize("name", SOLVERS)
def test_invert(name, operator, dtype):
    """Rows of batches of all sizes, in any order and with any number of threads, are the same."""
    make, solver = SOLVERS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        prior = make().to(dtype).eval().requires_grad_(False)
    options = {"gaussian_blur": {"tau": 1.0}, "random_gaussian": {"measurements": 33}}
    physics = make_operator(operator, prior.image_shape, **options.get(operator, {})).to(dtype)
    y = physics.A(random(100, *prior.image_shape, dtype=dtype).sigmoid())
    sigma = 0.1 * float(y.std())

    def recovered(rows):
        return invert(prior, physics, y[rows], sigma=sigma, solver=solver, iterations=7).x

    together = recovered(torch.arange(100))
    for size in (1, 5, 16, 17, 33):
        rows = torch.randperm(100, generator=torch.Generator().manual_seed(size))[:size]
        assert torch.equal(recovered(rows), together[rows])
    with several_threads(3):
        assert torch.equal(recovered(torch.arange(20)), together[:20])


@contextmanager
def several_threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def test_many_rows_share_a_call_where_that_is_exact():
    def products(rows):
        return rows @ torch.ones(64, 64)

    def mixed(rows):
        return rows - rows.mean(0)

    def heavy(rows):
        return rows[:, :1] @ torch.ones(1, 8000) @ torch.ones(8000, 80_000)

    row = torch.zeros(1, 64)
    with batch_invariant():
        assert rows_per_call(products, row) == 8
        assert rows_per_call(mixed, row) == 1
        assert rows_per_call(heavy, row) == 1


def test_number_of_rows_does_not_depend_on_the_data():
    decoder, y = small_decoder().float(), random(20, 1, 4, 4)
    with batch_invariant():
        problems = [make_problem(decoder, torch.sin, row[None], sigma=0.1) for row in y]
        assert len({MAP().begin(problem).size for problem in problems}) == 1


def test_results_keep_their_form():
    rows = random(3, 2)
    found = by_rows(lambda a, b: {"sum": a + b, "pair": (a, None)}, rows, rows)
    assert torch.equal(found["sum"], 2 * rows)
    assert torch.equal(found["pair"][0], rows)
    assert found["pair"][1] is None
    assert by_rows(lambda a: a.square(), rows[:0]).shape == (0, 2)


def test_unequal_numbers_of_rows_are_refused():
    with pytest.raises(ValueError, match="rows"):
        by_rows(torch.add, random(2, 3), random(1, 3))
