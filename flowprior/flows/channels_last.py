"""Layouts of memory in which oneDNN, PyTorch's library of convolutions on CPUs, is fast."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEW = 16
"""With one thread PyTorch keeps 1×1 convolutions of fewer images from oneDNN."""
MANY = 40_000
"""Entries of x from which on passing rows as images gains more than it costs."""


def channels_last(x: Tensor) -> Tensor:
    """Images (B, C, H, W) as convolutions take them fastest: in oneDNN, channels side by side."""
    # Under vmap a tensor cannot be given a memory format by name.
    return x.movedim(1, 3).contiguous().movedim(3, 1) if _suits_one_dnn(x) else x


def relu_of_1x1(convolution: nn.Conv2d, x: Tensor) -> Tensor:
    """ReLU of a 1×1 convolution of x (B, C, H, W), best with channels last.

    The rows of all images are passed as a batch of images of one row where there are too few
    images: PyTorch then takes oneDNN in place of MKL, which is twice as fast on AMD's processors.
    """
    if not _rows_pay(x):
        return F.relu(convolution(x), inplace=True)
    rows = x.transpose(1, 2).flatten(0, 1).unsqueeze(2)
    rows = F.relu(convolution(rows), inplace=True)
    return rows.squeeze(2).unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2)


def _rows_pay(x: Tensor) -> bool:
    few = len(x) < FEW <= len(x) * x.shape[2] and x.numel() >= MANY
    return few and _suits_one_dnn(x) and torch.get_num_threads() == 1


def _suits_one_dnn(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == torch.float32
