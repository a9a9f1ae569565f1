"""What tests of the GPU share: the device, and comparisons with the CPU."""

import copy
import os
from collections.abc import Mapping

import pytest
import torch

DEVICE = os.environ.get("FLOWPRIOR_TEST_DEVICE", "cuda")
"""FLOWPRIOR_TEST_DEVICE=cpu runs the tests without a GPU, to see that they are right."""

on_gpu = pytest.mark.skipif(
    DEVICE == "cuda" and not torch.cuda.is_available(), reason="there is no GPU"
)


def moved(value):
    """A copy of a module or tensor on the device."""
    return copy.deepcopy(value).to(DEVICE)


def agree(found, expected, atol, rtol=0.0):
    """Check tensors, tuples or dictionaries of tensors on the device against the CPU's."""
    if isinstance(expected, Mapping):
        assert found.keys() == expected.keys()
        found, expected = list(found.values()), list(expected.values())
    if isinstance(expected, tuple | list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            agree(one, other, atol, rtol)
        return
    assert found.device.type == torch.device(DEVICE).type
    assert found.dtype == expected.dtype
    torch.testing.assert_close(
        found.detach().cpu(), expected.detach(), atol=atol, rtol=rtol, equal_nan=True
    )


def normal(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=dtype)


def uniform(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator, dtype=dtype)
