"""Flows whose first batch in training sets their ActNorms, and that need not keep activations."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from flowprior.flows.base import Flow
from flowprior.flows.memory_flat import (
    KEPT_BYTES,
    ChainLayer,
    activation_bytes,
    memory_flat,
    run_chain,
)


class InitializedFlow(Flow):
    """A flow with a flag that its ActNorms are set, and a choice of how its layers are run.

    Args:
        image_shape: (C, H, W).
        data_range: (low, high) of the images.
        arguments: those of the subclass's constructor.
        memory_efficient: rebuild activations by inversion in the backward pass where they would
            take more than `kept_bytes`.

    Attributes:
        kept_bytes: a chain of layers, such as a level, whose activations are estimated to take no
            more than this keeps them: that is quicker, and rebuilding would save little. 0 rebuilds
            them always.
        anchor_layers: number of layers between two states that are kept under autocast, because
            networks in bfloat16 are not rebuilt exactly.
    """

    kept_bytes: int = KEPT_BYTES
    anchor_layers: ClassVar[int] = 8

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        data_range: tuple[float, float],
        arguments: dict[str, Any],
        memory_efficient: bool,
    ) -> None:
        super().__init__(image_shape, data_range, arguments)
        self.memory_efficient = memory_efficient
        self.register_buffer("initialized", torch.tensor(False))
        self._initialized: bool | None = None  # the buffer, read once: no device sync per step
        self.register_load_state_dict_post_hook(_forget)

    def is_initialized(self) -> bool:
        """Whether the ActNorms are set."""
        if self._initialized is None:
            self._initialized = bool(self.initialized)
        return self._initialized

    def end_initialization(self) -> None:
        """Remember that the ActNorms are set."""
        self.initialized.fill_(True)
        self._initialized = True

    def run(
        self,
        layers: Sequence[ChainLayer],
        x: Tensor,
        whole: Sequence[ChainLayer] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Apply layers one after another; returns (y, log_det).

        Where they are part of a chain, this is the `whole` of it, which is kept or rebuilt as one.
        """
        if not self.memory_efficient or not torch.is_grad_enabled():
            return run_chain(layers, x)
        if activation_bytes(layers if whole is None else whole, x) <= self.kept_bytes:
            return run_chain(layers, x)
        anchored = torch.is_autocast_enabled(x.device.type)
        return memory_flat(layers, x, segment=self.anchor_layers if anchored else None)


def _forget(flow: InitializedFlow, _: object) -> None:
    """Look at the buffer again, after weights were loaded."""
    flow._initialized = None
