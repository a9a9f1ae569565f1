"""Layouts of memory change the time, not the result."""

import copy

import pytest
import torch
from torch.func import jvp, vmap

from flowprior.flows import channels_last
from flowprior.flows.coupling_net import CouplingNet


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def net_and_input(rows, channels=2, hidden=128, side=14):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = CouplingNet(channels, 2 * channels, hidden)
        torch.nn.init.normal_(net.conv3.weight, std=0.03)
        return net, torch.randn(rows, channels, side, side)


def gradients(net, x):
    x = x.clone().requires_grad_()
    y = net(x)
    weight = torch.linspace(-1, 1, y[0].numel()).to(y).view_as(y[0])
    found = torch.autograd.grad((weight * y).sum(), [x, *net.parameters()])
    return [y, *found]


@pytest.mark.parametrize(("rows", "side"), [(1, 14), (8, 14), (15, 14), (16, 14), (1, 32), (3, 7)])
def test_outputs_and_gradients_are_those_of_float64(rows, side):
    net, x = net_and_input(rows, side=side)
    expected = gradients(copy.deepcopy(net).double(), x.double())
    found = gradients(net, x)
    assert found[0].is_contiguous()
    for one, other in zip(found, expected, strict=True):
        assert (one - other).norm() <= 1e-5 * other.norm()


def test_rows_are_passed_as_images_only_where_that_pays():
    x = torch.zeros(8, 128, 14, 14)
    assert channels_last._rows_pay(x)
    assert not channels_last._rows_pay(x.double())
    assert not channels_last._rows_pay(torch.zeros(16, 128, 14, 14))
    assert not channels_last._rows_pay(torch.zeros(1, 128, 14, 14))
    torch.set_num_threads(2)
    assert not channels_last._rows_pay(x)


def test_rows_give_what_images_give():
    net, _ = net_and_input(1)
    x = channels_last.channels_last(torch.randn(8, 128, 14, 14))
    found = channels_last.relu_of_1x1(net.conv2, x)
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, net.conv2(x).relu(), atol=1e-5, rtol=1e-5)


def test_derivatives_of_many_directions_and_second_ones():
    net, x = net_and_input(8)
    exact = copy.deepcopy(net).double()
    directions = torch.randn(3, *x.shape)

    def moved(net, x, directions):
        return vmap(lambda d: jvp(net, (x,), (d,))[1])(directions)

    expected = moved(exact, x.double(), directions.double())
    found = moved(net, x, directions)
    assert (found - expected).norm() <= 1e-5 * expected.norm()

    def curvature(net, x):
        x = x.clone().requires_grad_()
        (first,) = torch.autograd.grad(net(x).square().sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), x)[0]

    expected = curvature(exact, x.double())
    assert (curvature(net, x) - expected).norm() <= 1e-4 * expected.norm()
