import copy

import numpy as np
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, jvp

from flowprior.flows.frozen import FrozenCache, are_frozen
from flowprior.flows.injective_convolution import InjectiveConvolution


class Squared(nn.Module):
    """The squares of a frozen parameter."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3), requires_grad=False)
        self.cache = FrozenCache()

    def forward(self):
        assert are_frozen(self.parameters())
        return self.cache.get(self.parameters(), lambda: self.weight.square())


def test_value_is_kept_until_a_parameter_changes():
    module = Squared()
    assert module() is module()
    module.weight.mul_(2)
    assert module().tolist() == [4.0, 4.0, 4.0]
    assert module.double()().dtype == torch.float64
    assert copy.deepcopy(module).cache._held is None


def test_new_parameters_where_old_ones_were():
    """Memory that is free again is given to the next tensor of the same size."""
    module, memory = Squared(), np.ones(3, np.float32)
    for k in range(3):
        memory[:] = k
        weight = torch.from_numpy(memory)
        module.weight = nn.Parameter(weight, requires_grad=False)
        assert module().tolist() == 3 * [k**2]
        memory[:] = k + 5
        given = functional_call(module, {"weight": torch.from_numpy(memory)}, ())
        assert given.tolist() == 3 * [(k + 5) ** 2]


def test_tangents_of_parameters_are_not_lost():
    module, w = Squared(), torch.arange(3.0)
    module()
    _, tangent = jvp(lambda w: functional_call(module, {"weight": w}, ()), (w,), (w,))
    assert tangent.tolist() == [0.0, 2.0, 8.0]
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(module.weight, w)
        found = forward_ad.unpack_dual(functional_call(module, {"weight": dual}, ()))
        assert found.tangent.tolist() == [0.0, 2.0, 4.0]
    assert forward_ad.unpack_dual(module()).tangent is None


def test_nothing_is_kept_of_a_transformation():
    module = Squared()
    torch.func.grad(lambda x: (x * module()).sum())(torch.ones(3))
    torch.func.jacfwd(torch.func.jacrev(lambda x: x * module()))(torch.ones(3))
    copy.deepcopy(module())
    again = torch.func.vmap(lambda x: jvp(lambda t: t * module(), (x,), (x,))[1])
    assert again(torch.ones(2, 3)).tolist() == 2 * [[1.0, 1.0, 1.0]]


def test_settings_are_a_part_of_what_is_kept():
    layer = InjectiveConvolution(4, "linear", 1e-6).requires_grad_(False)
    x = torch.ones(1, 4, 1, 1)
    before = layer.contract(x)
    layer.tikhonov = 1.0
    torch.testing.assert_close(layer.contract(x), before / 2, rtol=1e-4, atol=1e-6)
