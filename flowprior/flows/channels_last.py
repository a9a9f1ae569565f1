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
    return x.contiguous(memory_format=torch.channels_last) if _is_one_dnn_s(x) else x


def relu_of_1x1(convolution: nn.Conv2d, x: Tensor) -> Tensor:
    """ReLU of a 1×1 convolution of x (B, C, H, W), best with channels last.

    The rows of all images are passed as a batch of images of one row where there are too few
    images: PyTorch then takes oneDNN, which is twice as fast on processors that are not Intel's.
    """
    if not _rows_pay(x):
        return F.relu(convolution(x), inplace=True)
    rows = x.transpose(1, 2).flatten(0, 1).unsqueeze(2)
    rows = F.relu(convolution(rows), inplace=True)
    return rows.squeeze(2).unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2)


def _rows_pay(x: Tensor) -> bool:
    few = len(x) < FEW <= len(x) * x.shape[2] and x.numel() >= MANY
    return few and _is_one_dnn_s(x) and torch.get_num_threads() == 1


def _is_one_dnn_s(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == torch.float32
