"""The network inside a coupling, with a fast path for the CPU."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

_LEGACY_BATCHED = torch._C._dispatch_key_parse("Batched")


class CouplingNet(nn.Module):
    """conv 3×3 → ReLU → conv 1×1 → ReLU → conv 3×3 with zero initial weights.

    Maps (B, in_channels, H, W) to (B, out_channels, H, W). The zero start makes every coupling the
    identity before training.

    On the CPU in single or double precision the net is four matrix products whose rows are pixels;
    elsewhere, under autocast, torch.compile, torch.func and forward-mode differentiation it is
    three convolutions with the same parameters. Derivatives of every order work in both forms.
    """

    def __init__(self, in_channels: int, out_channels: int, hidden_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, hidden_channels, 3, padding=1)
        self.conv2 = nn.Conv2d(hidden_channels, hidden_channels, 1)
        self.conv3 = nn.Conv2d(hidden_channels, out_channels, 3, padding=1)
        nn.init.zeros_(self.conv3.weight)
        nn.init.zeros_(self.conv3.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the net to x (B, in_channels, H, W)."""
        weights = (
            *(self.conv1.weight, self.conv1.bias),
            *(self.conv2.weight, self.conv2.bias),
            *(self.conv3.weight, self.conv3.bias),
        )
        if _products_apply(x, weights[0]):
            return _PixelRows.apply(x, *weights)
        return _convolutions(x, *weights)


def _products_apply(x: Tensor, weight: Tensor) -> bool:
    return (
        not torch.compiler.is_compiling()
        and x.device.type == "cpu"
        and x.dtype == weight.dtype
        and x.dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled("cpu")
        and not _transformed()
    )


def _transformed() -> bool:
    # A custom Function knows neither tangents nor batched tensors; convolutions do.
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def _is_batched(grad: Tensor) -> bool:
    # torch.autograd.grad(is_grads_batched=True) maps over gradients without a functorch level.
    return torch._C._dispatch_keys(grad).has(_LEGACY_BATCHED)


def _convolutions(
    x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, w3: Tensor, b3: Tensor
) -> Tensor:
    h = F.relu(F.conv2d(x, w1, b1, padding=1), inplace=True)
    h = F.relu(F.conv2d(h, w2, b2), inplace=True)
    return F.conv2d(h, w3, b3, padding=1)


class _PixelRows(torch.autograd.Function):
    """The net as matrix products, its gradient with the masks of the ReLUs applied in place."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, w3: Tensor, b3: Tensor
    ) -> Tensor:
        h1 = torch.addmm(b1, _patches(x), _first_matrix(w1).t()).relu_()
        h2 = torch.addmm(b2, h1, w2.flatten(1).t()).relu_()
        ctx.save_for_backward(x, w1, b1, w2, b2, w3, b3, h1, h2)
        shape = (len(x), len(b3), *x.shape[2:])
        return _add_patches_(_last_matrix(w3).t() @ h2.t(), shape) + b3.view(-1, 1, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, h1, h2 = ctx.saved_tensors
        # Gradients are enabled here only under create_graph=True.
        if torch.is_grad_enabled() or _transformed() or _is_batched(grad):
            return _differentiable_gradients(inputs, grad, ctx.needs_input_grad)
        return _gradients(*inputs, h1, h2, grad, ctx.needs_input_grad)


def _gradients(
    x: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    w3: Tensor,
    b3: Tensor,
    h1: Tensor,
    h2: Tensor,
    grad: Tensor,
    wanted: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    want_x, *want = wanted
    found: list[Tensor | None] = [None] * 6
    patches = _patches(grad)
    if want[4]:
        found[4] = _like_last(patches.t() @ h2, w3)
    if want[5]:
        found[5] = grad.sum((0, 2, 3))
    grad_h2 = _mask_(patches @ _last_matrix(w3).t(), h2)
    if want[2]:
        found[2] = (grad_h2.t() @ h1).view_as(w2)
    if want[3]:
        found[3] = grad_h2.sum(0)
    grad_h1 = _mask_(grad_h2 @ w2.flatten(1), h1)
    if want[0]:
        found[0] = _like_first(_patches(x).t() @ grad_h1, w1)
    if want[1]:
        found[1] = grad_h1.sum(0)
    grad_x = _add_patches_(_first_matrix(w1).t() @ grad_h1.t(), x.shape) if want_x else None
    return grad_x, *found


def _differentiable_gradients(
    inputs: list[Tensor], grad: Tensor, wanted: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    with torch.enable_grad():
        variables = [t for t, want in zip(inputs, wanted, strict=True) if want]
        out = _convolutions(*inputs)
        found = iter(torch.autograd.grad(out, variables, grad, create_graph=True))
    return tuple(next(found) if want else None for want in wanted)


def _patches(x: Tensor) -> Tensor:
    """The zero-padded 3×3 patch of every pixel of x (B, C, H, W), (B·H·W, 9·C).

    Columns are ordered (row, column, channel), so that runs of 3·C values are copied at once.
    """
    rows = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1)).unfold(1, 3, 1).unfold(2, 3, 1)
    return rows.permute(0, 1, 2, 4, 5, 3).reshape(-1, 9 * x.shape[1])


def _add_patches_(patches: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Adjoint of `_patches`: adds patches (9·C, B·H·W), which it overwrites, to (B, C, H, W)."""
    batch, channels, height, width = shape
    columns = patches.view(3, 3, channels, batch, height, width)
    rows = columns[:, 1]
    rows[..., 1:] += columns[:, 2, ..., :-1]
    rows[..., :-1] += columns[:, 0, ..., 1:]
    x = rows[1]
    x[..., 1:, :] += rows[2, ..., :-1, :]
    x[..., :-1, :] += rows[0, ..., 1:, :]
    return x.transpose(0, 1)


def _first_matrix(weight: Tensor) -> Tensor:
    return weight.permute(0, 2, 3, 1).flatten(1)


def _like_first(product: Tensor, weight: Tensor) -> Tensor:
    hidden, channels = weight.shape[:2]
    return product.view(3, 3, channels, hidden).permute(3, 2, 0, 1).contiguous()


def _last_matrix(weight: Tensor) -> Tensor:
    """A convolution as the adjoint of `_patches`: (hidden, 9·C) with the kernel turned round."""
    return weight.flip(2, 3).permute(1, 2, 3, 0).flatten(1)


def _like_last(product: Tensor, weight: Tensor) -> Tensor:
    channels, hidden = weight.shape[:2]
    return product.view(3, 3, channels, hidden).permute(2, 3, 0, 1).flip(2, 3).contiguous()


def _mask_(grad: Tensor, activation: Tensor) -> Tensor:
    return torch.ops.aten.threshold_backward.grad_input(grad, activation, 0, grad_input=grad)
