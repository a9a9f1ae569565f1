"""Back-propagation through a chain of bijections without storing its activations.

Plain autograd keeps what every layer needs for its gradient, so memory grows with depth. A
bijection's input can instead be recovered from its output, so `memory_flat` keeps only the output
of the chain and, going backwards, rebuilds one layer at a time (RevNet: Gomez et al., 2017).
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

KEPT_BYTES = 64 * 2**20
"""By default, a chain whose activations take no more than this keeps them."""


class ChainLayer(Protocol):
    """A bijection in one direction, as the chain sees it.

    `tensors` are the tensors (parameters or functions of them) that receive gradients; `forward`
    must be a function of its input and of these alone.
    """

    tensors: tuple[Tensor, ...]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return (y, log|det dy/dx| (B,), or None where it does not depend on x)."""

    def pull_back(
        self, y: Tensor, grad: Tensor, grad_log_det: Tensor, wanted: Sequence[bool]
    ) -> tuple[Tensor, Tensor, list[Tensor | None]]:
        """Recover x from y, and take the gradients of y and of log_det back through the layer.

        Returns (x, gradient of x, gradients of `tensors`, None where they are not `wanted`).
        """


def run_chain(layers: Sequence[ChainLayer], x: Tensor) -> tuple[Tensor, Tensor]:
    """Apply the layers in order with ordinary autograd; returns (y, log_det (B,))."""
    log_det = x.new_zeros(len(x))
    for layer in layers:
        x, layer_log_det = layer.forward(x)
        if layer_log_det is not None:
            log_det = log_det + layer_log_det
    return x, log_det


def memory_flat(
    layers: Sequence[ChainLayer], x: Tensor, segment: int | None = None
) -> tuple[Tensor, Tensor]:
    """Apply the layers in order, rebuilding activations by inversion in the backward pass.

    With `segment` the exact state is kept every `segment` layers, so that rounding errors of the
    rebuilt states grow over one segment only. Gradients are first-order only: `create_graph=True`
    raises RuntimeError.
    """
    size = segment or max(len(layers), 1)
    log_det = x.new_zeros(len(x))
    for start in range(0, len(layers), size):
        part = layers[start : start + size]
        tensors = [tensor for layer in part for tensor in layer.tensors]
        x, part_log_det = _RebuildByInversion.apply(part, x, *tensors)
        log_det = log_det + part_log_det
    return x, log_det


def activation_bytes(layers: Sequence[ChainLayer], x: Tensor) -> int:
    """About what ordinary autograd keeps of a chain on x (B, C, ...), for its gradients.

    Of every weight (out, in, ...) its output at all B·H·W places, and of every layer some copies of
    its state.
    """
    places = x.numel() // max(x.shape[1], 1)
    channels = sum(
        6 * x.shape[1] + sum(len(tensor) for tensor in layer.tensors if tensor.dim() > 1)
        for layer in layers
    )
    return channels * places * x.element_size()


class _RebuildByInversion(torch.autograd.Function):
    """A chain of layers whose backward pass walks from the output to the input."""

    @staticmethod
    def forward(
        ctx: Any, layers: Sequence[ChainLayer], x: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, Tensor]:
        y, log_det = run_chain(layers, x)
        ctx.layers = layers
        ctx.autocast = _autocast_state(x.device.type)
        ctx.save_for_backward(y)
        return y, log_det

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_log_det: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # else what follows would be taken for a constant
            raise RuntimeError(
                "a flow with memory_efficient=True has first derivatives only: set "
                "flow.memory_efficient = False to differentiate twice (create_graph=True)"
            )
        (y,) = ctx.saved_tensors
        end = len(ctx.needs_input_grad)
        grads: list[Tensor | None] = []
        with torch.autocast(**ctx.autocast):
            for layer in reversed(ctx.layers):
                start = end - len(layer.tensors)
                wanted = ctx.needs_input_grad[start:end]
                y, grad, layer_grads = layer.pull_back(y, grad, grad_log_det, wanted)
                grads += reversed(layer_grads)
                end = start
        return None, grad, *reversed(grads)


def _autocast_state(device_type: str) -> dict[str, Any]:
    # Every weight is used once per pass; a cast cached under no_grad would have no graph.
    return {
        "device_type": device_type,
        "enabled": torch.is_autocast_enabled(device_type),
        "dtype": torch.get_autocast_dtype(device_type),
        "cache_enabled": False,
    }
