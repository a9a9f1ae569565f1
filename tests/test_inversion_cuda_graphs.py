"""Objectives as CUDA graphs: what can be seen without a GPU; the rest is in test_cuda_inversion."""

import pytest
import torch

from flowprior.gaussianization.matrix_functions import _InverseSqrt, _InverseSqrtByProducts
from flowprior.inversion import MAP, Discrepancy, invert
from flowprior.inversion.cuda_graphs import Graphed
from flowprior.inversion.forward import Calls, Forward
from tests.inversion_problems import blur, images_of, small_glow


def test_on_a_cpu_the_function_is_called_each_time():
    seen = []

    def function(v, rows):
        seen.append(rows.tolist())
        return {"loss": v.sum(1)}

    graphed = Graphed(function, 4)
    for rows in ([0, 1, 2, 3], [1, 3], [1, 3], [1, 3]):
        rows = torch.tensor(rows)
        assert graphed(torch.ones(4, 5)[rows], rows)["loss"].tolist() == [5.0] * len(rows)
    assert seen == [[0, 1, 2, 3], [1, 3], [1, 3], [1, 3]]


@pytest.mark.parametrize("most", [1, 2, 5, 17, 33, 100])
def test_few_sizes_hold_every_number_of_rows(most):
    graphed = Graphed(torch.abs, most)
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
