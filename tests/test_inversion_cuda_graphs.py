"""Objectives as CUDA graphs: what can be seen without a GPU; the rest is in test_cuda_inversion."""

import gc
import weakref
from contextlib import nullcontext

import pytest
import torch

from flowprior.gaussianization.matrix_functions import _InverseSqrt, _InverseSqrtByProducts
from flowprior.inversion import MAP, Discrepancy, cuda_graphs, descent, invert, make_problem
from flowprior.inversion.batch_invariant import padded
from flowprior.inversion.cuda_graphs import Graphed, _alike, no_cuda_graphs
from flowprior.inversion.descent import AdamRun
from flowprior.inversion.forward import Forward
from flowprior.inversion.latent_terms import LatentTerms
from flowprior.physics.calls import Calls
from tests.inversion_problems import blur, images_of, small_glow


class Emulated:
    """A graph without a GPU: what is read from tensors is read anew, and Python's part as well."""

    def __init__(self, function, sizes):
        self.function, self.sizes = function, sizes

    def replay(self, tensors):
        self.sizes.append(len(tensors[0]))
        return self.function(*tensors)


@pytest.fixture
def replays(monkeypatch):
    """Calls are replayed, as on a GPU; numbers of rows of all replays."""
    sizes = []

    def record(function, tensors, memory):  # nothing is computed while it is recorded
        return Emulated(function, sizes)

    monkeypatch.setattr(cuda_graphs, "REPEATS", 2)
    monkeypatch.setattr(cuda_graphs, "_on_gpu", lambda tensor: True)
    monkeypatch.setattr(cuda_graphs, "_no_waiting", nullcontext)
    monkeypatch.setattr(cuda_graphs._Graph, "record", record)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    monkeypatch.setattr(torch.cuda, "device", lambda *_: nullcontext())
    return sizes


@pytest.mark.parametrize("rows", [1, 5, 17, 33])
@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
@pytest.mark.parametrize("own", [False, True], ids=["one mask", "masks of each image"])
def test_replays_give_what_calls_give(rows, optimizer, own, replays, monkeypatch):
    """Also the cost, and where L-BFGS fills up calls of some rows."""
    glow = small_glow()
    masks = torch.rand(rows if own else 1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    masks = (masks > 0.3).double()
    y = masks * images_of(glow, rows)
    y = y + 0.1 * torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).double()
    options = {"solver": MAP(optimizer=optimizer), "sigma": 0.1, "iterations": 15}
    monkeypatch.setattr(descent, "rows_per_call", lambda *_: rows)  # one call, as on a GPU
    found = invert(glow, lambda x: x * masks, y, **options)
    assert len(replays) > 8
    monkeypatch.undo()
    monkeypatch.setattr(descent, "rows_per_call", lambda *_: rows)
    expected = invert(glow, lambda x: x * masks, y, **options)
    torch.testing.assert_close(found.history["loss"], expected.history["loss"], rtol=1e-6, atol=0)
    torch.testing.assert_close(found.x, expected.x, rtol=0, atol=1e-4)
    assert found.calls.forward.tolist() == expected.calls.forward.tolist()
    assert found.calls.adjoint.tolist() == expected.calls.adjoint.tolist()


def test_what_replays_differently_is_called(replays, caplog):
    calls = []

    def function(x):
        calls.append(1)
        return x + len(calls)

    graphed = Graphed(4)
    with caplog.at_level("DEBUG", logger="flowprior"):
        for _ in range(8):
            before = len(calls)
            found = graphed(function, torch.zeros(4))
            assert before < found[0] <= len(calls)
    assert len(replays) == 1
    assert "a replay gave something else" in caplog.text


def test_a_size_is_recorded_once_it_has_come_often(replays, monkeypatch):
    monkeypatch.setattr(cuda_graphs, "REPEATS", 5)
    graphed = Graphed(8)
    for count in (8, 3, 8, 8, 3, 8, 8):
        assert graphed(torch.exp, torch.zeros(count)).tolist() == count * [1.0]
    assert not replays
    for count in (8, 3, 3, 7, 3, 4):
        assert graphed(torch.exp, torch.zeros(count)).tolist() == count * [1.0]
    assert replays == [8, 8, 4]


def test_what_cannot_be_recorded_is_called(replays, caplog, monkeypatch):
    def record(function, tensors, memory):
        raise ValueError("not\nnow")

    monkeypatch.setattr(cuda_graphs._Graph, "record", record)
    graphed = Graphed(4)
    with caplog.at_level("DEBUG", logger="flowprior"):
        for _ in range(5):
            assert graphed(torch.exp, torch.zeros(3)).tolist() == [1.0, 1.0, 1.0]
    assert not replays
    assert caplog.text.count("no CUDA graph is made: ValueError: not now") == 1


def test_nothing_is_replayed_where_that_is_forbidden(replays):
    graphed = Graphed(4)
    with no_cuda_graphs():
        for _ in range(5):
            assert graphed(torch.exp, torch.zeros(3)).tolist() == [1.0, 1.0, 1.0]
    assert not replays


def test_on_a_cpu_the_function_is_called_each_time():
    seen = []

    def function(v, rows):
        seen.append(rows.tolist())
        return {"loss": v.sum(1)}

    graphed = Graphed(4)
    for rows in ([0, 1, 2, 3], [1, 3], [1, 3], [1, 3]):
        rows = torch.tensor(rows)
        assert graphed(function, torch.ones(4, 5)[rows], rows)["loss"].tolist() == [5.0] * len(rows)
    assert seen == [[0, 1, 2, 3], [1, 3], [1, 3], [1, 3]]


@pytest.mark.parametrize("most", [1, 2, 5, 17, 33, 100])
def test_few_sizes_hold_every_number_of_rows(most):
    graphed = Graphed(most)
    sizes = [graphed._size(count) for count in range(1, most + 1)]
    assert all(count <= size <= most for count, size in enumerate(sizes, 1))
    assert sizes[-1] == most
    assert len(set(sizes)) <= most.bit_length() + 1
    assert all(size < 2 * count for count, size in enumerate(sizes, 1) if size > 1)


def test_rows_that_fill_up_a_call_are_not_counted():
    forward = Forward(lambda x: x.flatten(1), calls=Calls.none(5))
    rows = torch.tensor([1, 2, 4, 4, 4, 4])
    x = torch.rand(6, 1, 2, 2, requires_grad=True)
    forward(x, rows).sum().backward()
    assert forward.calls.forward.tolist() == [0, 1, 1, 0, 1]
    assert forward.calls.adjoint.tolist() == [0, 1, 1, 0, 1]
    forward.several(x.detach()[:2, None].expand(2, 3, 1, 2, 2), torch.tensor([0, 0]))
    assert forward.calls.forward.tolist() == [3, 1, 1, 0, 1]
    forward(x.detach(), torch.tensor([2, 2, 2, 3, 3, 4]))  # repeated on purpose
    assert forward.calls.forward.tolist() == [3, 1, 4, 2, 2]


@pytest.mark.parametrize("count", [1, 5, 17, 33])
def test_rows_that_fill_up_a_call_leave_gradients_alone(count):
    """Also where each image has a mask of its own."""
    masks = torch.rand(count, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    forward = Forward(lambda x: x * masks, images=count)
    rows, x = torch.arange(count), torch.ones(count, 1, 3, 3)
    filled = padded(rows, count + 4)
    leaf = padded(x, count + 4).requires_grad_()
    data = forward(leaf, filled)
    (gradient,) = torch.autograd.grad(data.square().sum(), leaf)
    torch.testing.assert_close(data, padded(masks, count + 4))
    torch.testing.assert_close(gradient[:count], 2 * masks**2)


def test_a_row_that_differs_is_seen():
    expected = torch.tensor([1000.0, 0.5]), {"loss": torch.tensor([1.0, torch.nan])}
    assert _alike((expected[0].clone(), {"loss": expected[1]["loss"].clone()}), expected)
    assert not _alike((torch.tensor([1000.0, 0.6]), expected[1]), expected)
    assert not _alike((expected[0], {"loss": torch.tensor([1.0, 0.0])}), expected)
    assert not _alike((expected[0], {"loss": torch.tensor([torch.inf, torch.nan])}), expected)


def test_a_finished_run_is_freed_at_once():
    glow = small_glow()
    y = blur(images_of(glow, 2))
    runs = []
    gc.disable()
    try:
        for optimizer in ("lbfgs", "adam"):
            solver = MAP(optimizer=optimizer)
            watch = [lambda _, run: runs.append(weakref.ref(run))]
            invert(glow, blur, y, sigma=0.1, solver=solver, iterations=3, observers=watch)
            del watch
            assert all(run() is None for run in runs)
    finally:
        gc.enable()


def test_a_schedule_makes_graphs_anew():
    glow = small_glow()
    y = blur(images_of(glow, 2))
    calls = []

    def schedule(iteration, run):
        run._call()
        calls.append(run._graphed)
        if iteration == 2:
            run.terms.weight = 0.5

    solver = MAP(penalty="log_density", optimizer="adam")
    invert(glow, blur, y, sigma=0.1, solver=solver, iterations=4, observers=[schedule])
    assert calls[0] is calls[1] is calls[2]
    assert calls[2] is not calls[3]
    assert calls[3] is calls[4]


def test_a_subclass_is_not_replayed_unless_it_says_so():
    class Own(LatentTerms):
        pass

    glow = small_glow()
    problem = make_problem(glow, blur, blur(images_of(glow, 2)), sigma=0.1)
    v = torch.nn.Parameter(torch.zeros(2, glow.latent.size, dtype=problem.like.dtype))
    for kind, replayed in ((LatentTerms, True), (Own, False)):
        run = AdamRun(kind(MAP(), problem), v, 0.1)
        run._call()
        assert (run._graphed is not None) == replayed


def test_a_weight_that_moves_keeps_its_memory():
    """A graph reads it where it was when it was recorded."""
    glow = small_glow()
    y = blur(images_of(glow, 2))
    weights = []
    solver = Discrepancy(MAP(beta=10.0), stage=2)

    def watch(iteration, run):
        weights.append((run.run.terms.weight.data_ptr(), run.run.terms.weight.tolist()))

    found = invert(glow, blur, y, sigma=0.1, solver=solver, iterations=8, observers=[watch])
    assert len({address for address, _ in weights}) == 1
    assert weights[0][1] != weights[-1][1]
    torch.testing.assert_close(
        torch.tensor(weights[-1][1], dtype=torch.float64), found.history["beta"][-1].double()
    )


@pytest.mark.parametrize("condition", [1.0, 1e3, 1e6, 1e9])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_inverse_square_root_by_products(condition, scale):
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(3, 16, 16, generator=generator, dtype=torch.float64)
    rotation = torch.linalg.qr(draws)[0]
    values = scale * torch.logspace(0, -1, 16, base=condition, dtype=torch.float64)
    matrix = (rotation * values) @ rotation.mT
    weights = torch.randn(3, 16, 16, generator=generator, dtype=torch.float64)
    made = []
    for function in (_InverseSqrt, _InverseSqrtByProducts):
        leaf = ((matrix + matrix.mT) / 2).requires_grad_()
        root = function.apply(leaf)
        made.append([root.detach(), *torch.autograd.grad((weights * root).sum(), leaf)])
    for found, expected in zip(made[1], made[0], strict=True):
        assert (found - expected).abs().max() < 1e-15 * condition * 100 * expected.abs().max()


def test_inverse_square_root_by_products_of_nan_stays_in_its_row():
    matrix = torch.eye(3).repeat(2, 1, 1)
    matrix[0, 0, 0] = torch.nan
    found = _InverseSqrtByProducts.apply(matrix)
    assert found[0].isnan().all()
    torch.testing.assert_close(found[1], torch.eye(3))
