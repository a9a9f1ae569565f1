"""Results that do not depend on the rest of the batch."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def batch_invariant() -> Iterator[None]:
    """Within it no result on a CPU depends on the size of the batch, down to the last bit.

    oneDNN chooses its convolutions by the size of the batch, and L-BFGS on an ill-posed problem
    makes something visible of a difference in the last digit.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*TF32 acceleration.*")
        with torch.backends.mkldnn.flags(enabled=False):
            yield
