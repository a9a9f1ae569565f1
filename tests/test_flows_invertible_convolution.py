import copy

import pytest
import torch

from flowprior.flows.invertible_convolution import InvertibleConvolutions, pixel_affine


@pytest.fixture(params=[torch.float32, torch.float64], ids=str)
def stack(request):
    return perturbed_stack(request.param)


def perturbed_stack(dtype=torch.float64, channels=8, steps=3):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        stack = InvertibleConvolutions(channels, steps).to(dtype)
        with torch.no_grad():
            for parameter in stack.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return stack


def test_folded_weight_times_inverse_is_the_identity(stack):
    folded = stack.fold()
    atol = 1e-5 if folded.weight.dtype == torch.float32 else 1e-12
    identity = torch.eye(8, dtype=folded.weight.dtype).expand(3, 8, 8)
    torch.testing.assert_close(folded.weight @ folded.inverse, identity, atol=atol, rtol=0)
    torch.testing.assert_close(folded.inverse @ folded.weight, identity, atol=atol, rtol=0)
    x = torch.randn(2, 8, 3, 5, dtype=folded.weight.dtype)
    for layer in stack.layers(folded):
        y = layer.forward(x)[0]
        assert (y - x).abs().max() > 0.1
        torch.testing.assert_close(layer.flipped().forward(y)[0], x, atol=10 * atol, rtol=0)


def test_log_det_is_that_of_the_matrices():
    folded = perturbed_stack().fold()
    torch.testing.assert_close(folded.log_det, torch.linalg.slogdet(folded.weight)[1].sum())


def test_starts_as_rotations():
    stack = InvertibleConvolutions(12, 4).double()
    folded = stack.fold()
    identity = torch.eye(12, dtype=torch.float64).expand(4, 12, 12)
    torch.testing.assert_close(folded.weight.mT @ folded.weight, identity, atol=1e-5, rtol=0)
    assert abs(folded.log_det) < 1e-4
    assert (folded.weight[0] - folded.weight[1]).abs().max() > 0.1


def test_pixel_affine_is_a_matrix_product_at_every_pixel():
    x, weight, offset = torch.randn(2, 3, 4, 5), torch.randn(6, 3), torch.randn(6)
    expected = (x.movedim(1, -1) @ weight.T + offset).movedim(-1, 1)
    torch.testing.assert_close(pixel_affine(x, weight, offset), expected)


class TestCache:
    def test_is_used_while_frozen_only(self, stack):
        assert stack.fold() is not stack.fold()
        stack.requires_grad_(False)
        kept = stack.fold()
        assert stack.fold() is kept
        stack.requires_grad_(True)
        assert stack.fold() is not kept
        assert stack.fold().weight.requires_grad

    def test_one_trainable_parameter_switches_it_off(self, stack):
        stack.requires_grad_(False)
        stack.fold()
        stack.bias.requires_grad_(True)
        assert stack.fold().offset.requires_grad

    def test_is_dropped_by_load_state_dict(self, stack):
        stack.requires_grad_(False)
        old = stack.fold()
        other = InvertibleConvolutions(8, 3).to(old.weight.dtype)
        stack.load_state_dict(other.state_dict())
        new = stack.fold()
        torch.testing.assert_close(new.weight, other.fold().weight.detach(), rtol=0, atol=0)
        assert not torch.allclose(new.weight, old.weight)

    @pytest.mark.parametrize("name", ["log_scale", "bias", "lower", "upper", "log_diagonal"])
    def test_is_dropped_by_an_edit_in_place(self, stack, name):
        stack.requires_grad_(False)
        old = stack.fold()
        getattr(stack, name).mul_(1.5)
        new = stack.fold()
        assert new is not old
        assert not torch.equal(new.offset, old.offset)
        assert stack.fold() is new

    def test_is_dropped_by_a_change_of_dtype(self):
        stack = perturbed_stack(torch.float32).requires_grad_(False)
        assert stack.fold().weight.dtype == torch.float32
        assert stack.double().fold().weight.dtype == torch.float64

    def test_of_a_copy_follows_the_copy(self, stack):
        stack.requires_grad_(False)
        old = stack.fold()
        twin = copy.deepcopy(stack)
        twin.bias.add_(1)
        assert not torch.equal(twin.fold().offset, old.offset)
        assert torch.equal(stack.fold().offset, old.offset)
