"""Batched L-BFGS: against SciPy, against itself row by row, and where problems go wrong."""

import io

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flowprior.inversion import BatchedLBFGS
from flowprior.inversion.batched_lbfgs import RowStatus
from flowprior.inversion.strong_wolfe import StrongWolfe

N = 12
ROSENBROCKS = 12
QUADRATICS = 8
ROWS = ROSENBROCKS + QUADRATICS


class Problems:
    """Rosenbrock functions of 2 to 12 of the entries, then quadratics of condition 1 to 1e4."""

    def __init__(self, dtype=torch.float64):
        rng = np.random.default_rng(0)
        self.a = rng.uniform(0.5, 1.5, ROSENBROCKS)
        self.b = 10 ** rng.uniform(0, 2, ROSENBROCKS)
        self.used = np.linspace(2, N, ROSENBROCKS).astype(int)
        bases = [np.linalg.qr(rng.normal(size=(N, N)))[0] for _ in range(QUADRATICS)]
        conditions = np.logspace(0, 4, QUADRATICS)
        hessians = [q * np.geomspace(1, c, N) @ q.T for q, c in zip(bases, conditions, strict=True)]
        self.hessians = np.stack(hessians)
        self.centres = rng.normal(size=(QUADRATICS, N))
        self.start = torch.tensor(rng.uniform(-2, 2, (ROWS, N))).to(dtype)
        for name in ("a", "b", "used", "hessians", "centres"):
            value = torch.tensor(getattr(self, name))
            setattr(self, name, value.to(dtype) if value.is_floating_point() else value)

    def losses(self, x, rows):
        """Of the entries of x, (len(rows), N), as problems number `rows`."""
        return torch.stack([self.loss(row, int(index)) for row, index in zip(x, rows, strict=True)])

    def loss(self, x, index):
        if index < ROSENBROCKS:
            x = x[: self.used[index]]
            valley = self.b[index] * (x[1:] - x[:-1].square()).square()
            return (valley + (self.a[index] - x[:-1]).square()).sum()
        index -= ROSENBROCKS
        d = x - self.centres[index]
        return 0.5 * d @ (self.hessians[index] @ d) + 1


class Run:
    """An optimiser on some of the problems, with a record of the losses of all evaluations."""

    def __init__(self, rows=None, dtype=torch.float64, shape=(N,), **options):
        self.problems = Problems(dtype)
        self.rows = torch.arange(ROWS) if rows is None else torch.as_tensor(rows)
        self.x = torch.nn.Parameter(self.problems.start[self.rows].view(-1, *shape))
        self.optimizer = BatchedLBFGS([self.x], **options)
        self.trace = [[] for _ in self.rows]

    def closure(self, rows):
        losses = self.problems.losses(self.x[rows].flatten(1), self.rows[rows])
        losses.sum().backward()
        for row, loss in zip(rows.tolist(), losses.tolist(), strict=True):
            self.trace[row].append(loss)
        return losses

    def step(self, count=1):
        for _ in range(count):
            self.optimizer.step(self.closure)
        return self

    def finish(self):
        while self.optimizer.active.any():
            self.step()
        return self


def assert_same(first, second):
    assert torch.equal(first.x, second.x)
    for name in ("losses", "status", "evaluations", "iterations"):
        assert torch.equal(getattr(first.optimizer, name), getattr(second.optimizer, name))


def evaluations_to(level, trace):
    return next(index for index, loss in enumerate(trace, 1) if loss <= level)


def scipy_minimum(problems, index, memory):
    trace = []

    def evaluate(x):
        x = torch.tensor(x, requires_grad=True)
        loss = problems.loss(x, index)
        loss.backward()
        trace.append(loss.item())
        return loss.item(), x.grad.numpy()

    options = {"maxcor": memory, "ftol": 0, "gtol": 1e-10, "maxiter": 5000, "maxfun": 5000}
    start = problems.start[index].numpy()
    result = scipy.optimize.minimize(evaluate, start, jac=True, method="L-BFGS-B", options=options)
    return result, trace


@pytest.mark.parametrize("memory", [5, 30])
def test_reaches_the_optima_of_scipy_with_no_more_evaluations(memory):
    run = Run(memory=memory, tolerance_grad=1e-10, tolerance_change=0).finish()
    ratios = []
    for index in range(ROWS):
        reference, trace = scipy_minimum(run.problems, index, memory)
        assert run.optimizer.losses[index].item() == pytest.approx(reference.fun, abs=1e-13)
        used = run.problems.used[index] if index < ROSENBROCKS else N
        found = run.x[index, :used].detach().numpy()
        np.testing.assert_allclose(found, reference.x[:used], atol=1e-6)
        for accuracy in (1e-4, 1e-8, 1e-12):
            level = reference.fun + accuracy * (trace[0] - reference.fun)
            ours, theirs = (evaluations_to(level, each) for each in (run.trace[index], trace))
            ratios.append(ours / theirs)
    assert max(ratios) <= 1.5
    assert np.mean(ratios) <= 1.1


def test_a_batch_is_its_rows_alone():
    together = Run().step(15)
    for index in range(ROWS):
        alone = Run([index]).step(15)
        torch.testing.assert_close(alone.x[0], together.x[index], rtol=1e-10, atol=1e-10)
        assert alone.optimizer.evaluations[0] == together.optimizer.evaluations[index]
        assert alone.optimizer.iterations[0] == together.optimizer.iterations[index]


@settings(deadline=None, max_examples=5)
@given(st.permutations(range(ROWS)))
def test_the_order_of_rows_does_not_matter(order):
    run, permuted = Run().step(10), Run(order).step(10)
    torch.testing.assert_close(permuted.x, run.x[order], rtol=1e-10, atol=1e-10)


def test_the_shape_of_a_row_does_not_matter():
    assert torch.equal(Run(shape=(3, 2, 2)).step(10).x.flatten(1), Run().step(10).x)


def loss_and_gradient(run):
    x = run.x.detach().clone().requires_grad_()
    losses = run.problems.losses(x, run.rows)
    losses.sum().backward()
    return losses.detach(), x.grad


def test_strong_wolfe_conditions_hold_at_every_step():
    run = Run(tolerance_change=1e-12)
    loss, gradient = loss_and_gradient(run)
    while run.optimizer.active.any():
        old_x, old_loss, old_gradient = run.x.detach().clone(), loss, gradient
        before = run.optimizer.iterations
        run.step()
        loss, gradient = loss_and_gradient(run)
        torch.testing.assert_close(run.optimizer.losses, loss, rtol=1e-12, atol=0)
        moved = run.optimizer.iterations > before
        change = run.x.detach() - old_x
        assert torch.equal(change.abs().amax(1) > 0, moved)
        slope, new_slope = ((g * change).sum(1)[moved] for g in (old_gradient, gradient))
        rounding = 1e-14 * old_loss[moved]
        assert (slope < 0).all()
        assert (loss[moved] <= old_loss[moved] + 1e-4 * slope + rounding).all()
        assert (new_slope.abs() <= 0.9 * slope.abs() * (1 + 1e-9)).all()
    assert run.optimizer.iterations.max() > 30


def test_converged_rows_are_left_alone():
    run = Run()
    done = {}
    while run.optimizer.active.any():
        run.step()
        for row in (~run.optimizer.active).nonzero()[:, 0].tolist():
            done.setdefault(row, (len(run.trace[row]), run.x[row].detach().clone()))
    assert len({count for count, _ in done.values()}) > ROWS // 2
    for row, (count, x) in done.items():
        assert len(run.trace[row]) == count == run.optimizer.evaluations[row]
        assert torch.equal(run.x[row], x)
    assert (run.optimizer.status == RowStatus.CONVERGED).all()
    gradient = loss_and_gradient(run)[1]
    assert gradient.abs().max() < 1e-2
    total = sum(map(len, run.trace))
    run.step(3)
    assert sum(map(len, run.trace)) == total


def test_a_closure_of_all_rows_gives_the_same():
    subset, full = Run().finish(), Run()

    def closure():
        losses = full.problems.losses(full.x, full.rows)
        losses.sum().backward()
        return losses

    while full.optimizer.active.any():
        full.optimizer.step(closure)
    assert_same(subset, full)


def test_an_interrupted_step_can_be_repeated():
    run, interrupted = Run().step(8), Run().step(7)
    before = interrupted.x.detach().clone()

    def failing(rows):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted.optimizer.step(failing)
    assert torch.equal(interrupted.x, before)
    assert_same(run, interrupted.step())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("steps", [0, 1, 7, 40])
def test_resuming_changes_nothing(dtype, steps):
    first = Run(dtype=dtype, memory=6).step(steps)
    file = io.BytesIO()
    torch.save({"x": first.x.detach(), "optimizer": first.optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = Run(dtype=dtype)
    resumed.x.data.copy_(saved["x"])
    resumed.optimizer.load_state_dict(saved["optimizer"])
    assert_same(first.step(12), resumed.step(12))
    assert first.optimizer.param_groups[0]["memory"] == resumed.optimizer.param_groups[0]["memory"]


def test_a_loaded_state_is_not_shared():
    first, second, uninterrupted = Run().step(5), Run(), Run().step(10)
    second.x.data.copy_(first.x)
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    first.step(5)
    assert_same(second.step(5), uninterrupted)
    assert_same(first, uninterrupted)


def minimize(function, start, steps=200, **options):
    x = torch.nn.Parameter(torch.tensor(start, dtype=torch.float64))
    optimizer = BatchedLBFGS([x], **options)

    def closure():
        losses = function(x)
        losses.sum().backward()
        return losses

    for _ in range(steps):
        optimizer.step(closure)
    return x.detach(), optimizer


def quartic(x):
    return ((x - 1) ** 4 + (x - 1) ** 2).sum(1)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_nonfinite_start_freezes_its_row_only(bad):
    good, expected = minimize(quartic, [[3.0, 4.0], [-7.0, 2.0]])
    x, optimizer = minimize(quartic, [[3.0, 4.0], [bad, 2.0], [-7.0, 2.0]])
    assert optimizer.status.tolist() == [1, RowStatus.NONFINITE, 1]
    assert torch.equal(x[[0, 2]], good)
    assert torch.equal(optimizer.losses[[0, 2]], expected.losses)
    assert x[1, 1] == 2
    assert optimizer.evaluations[1] == 1


def test_a_row_that_becomes_nan_stays_where_it_was():
    good, expected = minimize(quartic, [[3.0, 4.0], [-7.0, 2.0]])
    calls = []

    def spoilt(x):
        calls.append(0)
        spoil = torch.tensor([0.0, torch.nan if len(calls) > 4 else 0.0, 0.0])
        return quartic(x) + spoil

    x, optimizer = minimize(spoilt, [[3.0, 4.0], [9.0, 9.0], [-7.0, 2.0]])
    assert optimizer.status.tolist() == [1, RowStatus.NONFINITE, 1]
    assert torch.equal(x[[0, 2]], good)
    assert torch.equal(optimizer.losses[[0, 2]], expected.losses)
    assert quartic(x[1:2]).item() == pytest.approx(optimizer.losses[1].item())
    assert optimizer.evaluations[1] <= 4 + 2 * 25


def test_steps_out_of_the_domain_are_shortened():
    x, optimizer = minimize(lambda x: (x - x.log()).sum(1), [[1e-3, 5.0], [20.0, 0.3]])
    assert (optimizer.status == RowStatus.CONVERGED).all()
    torch.testing.assert_close(x, torch.ones_like(x), atol=1e-4, rtol=0)


def test_a_gradient_that_is_not_finite_counts_as_a_bad_point():
    def function(x):
        x.register_hook(lambda g: torch.where(x.detach() < 0.9, torch.nan, g))
        return 0.7 * (x - 1).square().sum(1)

    # The first trial, at 0.88, has a lower loss and no gradient.
    x, optimizer = minimize(function, [[1.3], [1.2]])
    assert (optimizer.status == RowStatus.CONVERGED).all()
    torch.testing.assert_close(x, torch.ones_like(x), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("decrease", "accepted"), [(0.9e-4, False), (1.1e-4, True)])
def test_sufficient_decrease(decrease, accepted):
    one = torch.ones(1, dtype=torch.float64)
    search = StrongWolfe(one, -one, 0 * one, c1=1e-4, c2=0.9)
    assert search.advance(one - decrease, -0.5 * one).item() is accepted
    assert search.pending.item() is not accepted


class WrongGradient(torch.autograd.Function):
    """|x|², with the gradient of −|x|² from the second call on."""

    @staticmethod
    def forward(ctx, x, wrong):
        ctx.save_for_backward(x)
        ctx.sign = -1 if wrong else 1
        return x.square().sum(1)

    @staticmethod
    def backward(ctx, grad):
        return ctx.sign * 2 * grad[:, None] * ctx.saved_tensors[0], None


def test_a_wrong_gradient_is_given_up():
    _, optimizer = minimize(lambda x: WrongGradient.apply(x, True), [[1.0, 2.0]])
    assert optimizer.status.tolist() == [RowStatus.FAILED]
    assert optimizer.evaluations[0] <= 26
    assert optimizer.iterations[0] == 0


def test_a_failed_search_forgets_the_pairs_before_it_gives_up():
    x = torch.nn.Parameter(torch.tensor([[8.0, -6.0]], dtype=torch.float64))
    optimizer = BatchedLBFGS([x])
    blocked = []

    def closure():
        losses = quartic(x) + (1e9 if blocked else 0)
        losses.sum().backward()
        return losses

    for _ in range(3):
        optimizer.step(closure)
    before, losses = x.detach().clone(), optimizer.losses
    blocked.append(True)
    optimizer.step(closure)
    assert optimizer.status.tolist() == [RowStatus.ACTIVE]
    assert torch.equal(x, before)
    assert torch.equal(optimizer.losses, losses)
    blocked.clear()
    while optimizer.active.any():
        optimizer.step(closure)
    assert optimizer.status.tolist() == [RowStatus.CONVERGED]
    torch.testing.assert_close(x.detach(), torch.ones_like(x), atol=1e-4, rtol=0)


def test_the_evaluations_of_a_step_are_limited():
    _, optimizer = minimize(lambda x: (x - 1e6).square().sum(1), [[0.0]], 1, max_evaluations=3)
    assert optimizer.evaluations.tolist() == [1 + 3]
    assert optimizer.iterations.tolist() == [1]


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_negative_curvature_and_scales_do_no_harm(scale):
    x, optimizer = minimize(lambda x: scale * (x.cos() + 1).sum(1), [[0.1, 1.0], [-2.0, 0.5]],
                            tolerance_grad=1e-12, tolerance_change=0)  # fmt: skip
    assert optimizer.status.max() <= RowStatus.FAILED
    torch.testing.assert_close(x.cos(), -torch.ones_like(x), atol=1e-8, rtol=0)


def test_starting_at_the_minimum_costs_one_evaluation():
    x, optimizer = minimize(quartic, [[1.0, 1.0], [2.0, 2.0]])
    assert optimizer.status.tolist() == [1, 1]
    assert optimizer.evaluations[0] == 1
    assert torch.equal(x[0], torch.ones(2, dtype=torch.float64))


def test_float32():
    run = Run(dtype=torch.float32).finish()
    expected = Run().finish().optimizer.losses
    assert (run.optimizer.status <= RowStatus.FAILED).all()
    torch.testing.assert_close(run.optimizer.losses, expected, atol=2e-4, rtol=1e-4)
    assert run.optimizer.losses.dtype == torch.float64
    assert run.x.dtype == torch.float32


def test_before_the_first_step():
    optimizer = Run().optimizer
    assert optimizer.active.all()
    assert optimizer.losses.isnan().all()
    assert optimizer.evaluations.sum() == 0


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ([torch.zeros(2, 3), torch.zeros(2, 3)], "one parameter"),
        ([torch.zeros(())], r"must be \(B, ...\)"),
        ([torch.zeros(0, 3)], "not empty"),
        ([torch.zeros(2, 3, dtype=torch.float16)], "float16"),
    ],
)
def test_wrong_parameters(params, message):
    with pytest.raises(ValueError, match=message):
        BatchedLBFGS(params)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory": 0}, "memory"),
        ({"max_evaluations": 0}, "max_evaluations"),
        ({"tolerance_grad": -1}, "tolerances"),
        ({"tolerance_change": float("nan")}, "tolerances"),
        ({"c1": 0.9, "c2": 0.5}, "c1 < c2"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        BatchedLBFGS([torch.zeros(2, 3)], **options)


@pytest.mark.parametrize(
    ("closure", "message"),
    [
        (lambda x: x.sum(), r"shape \(4,\), got \(\)"),
        (lambda x: x.sum(1)[:2], r"shape \(4,\), got \(2,\)"),
        (lambda x: None, r"shape \(4,\), got NoneType"),
        (lambda x: x.detach().sum(1), "back-propagate"),
        (lambda x: torch.zeros(4, dtype=torch.long), "floating point"),
    ],
)
def test_wrong_closures(closure, message):
    x = torch.nn.Parameter(torch.ones(4, 3))
    with pytest.raises(ValueError, match=message):
        BatchedLBFGS([x]).step(lambda: closure(x))
    with pytest.raises(ValueError, match="closure"):
        BatchedLBFGS([x]).step(None)


def test_a_state_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"\(3, 12\).*\(2, 12\)"):
        Run([0, 1]).optimizer.load_state_dict(Run([0, 1, 2]).step().optimizer.state_dict())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu():
    x = torch.nn.Parameter(Problems().start.cuda())
    optimizer = BatchedLBFGS([x])

    def closure(rows):
        losses = quartic(x[rows])
        losses.sum().backward()
        return losses

    for _ in range(50):
        optimizer.step(closure)
    assert (optimizer.status == RowStatus.CONVERGED).all()
    torch.testing.assert_close(x.detach(), torch.ones_like(x), atol=1e-3, rtol=0)


def valley(scale):
    """Ill-conditioned quadratics, one in each row, that take many iterations."""
    curvature = torch.logspace(0, 4, 40, dtype=torch.float64)

    def closure_of(x):
        def closure(rows):
            losses = 1 + (x[rows].square() * curvature).sum(1) * scale[rows]
            losses.sum().backward()
            return losses

        return closure

    return closure_of


@pytest.mark.parametrize("window", [1, 5])
def test_rows_end_when_a_window_of_iterations_gains_too_little(window):
    scale = torch.tensor([1.0, 1e-3, 1e-6], dtype=torch.float64)
    starts = torch.linspace(0.5, 2, 120, dtype=torch.float64).view(3, 40)
    tolerance = 1e-3

    def run(rows):
        x = torch.nn.Parameter(starts[rows].clone())
        optimizer = BatchedLBFGS([x], tolerance_change=tolerance, window=window)
        closure, curve = valley(scale[rows])(x), []
        while optimizer.active.any():
            curve.append(optimizer.step(closure))
        return torch.stack(curve), optimizer.iterations

    curve, iterations = run([0, 1, 2])
    for row, count in enumerate(iterations.tolist()):
        losses = curve[:count, row]
        gains = (losses[:-window] - losses[window:]) / losses[window:]
        assert (gains[:-1] > tolerance).all()
        if count > window:
            assert gains[-1] <= tolerance
        alone, own = run([row])
        assert own.tolist() == [count]
        assert torch.equal(alone[-1, 0], curve[-1, row])
    assert len(set(iterations.tolist())) > 1
