"""Parameters of networks that are no flows, from files."""

from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

Network = TypeVar("Network", bound=nn.Module)


def load_parameters(model: Network, weights: str | Path) -> Network:
    """The network itself, with the parameters of a safetensors file.

    Raises:
        ValueError: the file is missing, damaged or of another network.
    """
    try:
        model.load_state_dict(load_file(weights))
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"weights={weights}: expected a safetensors file of the parameters of "
            f"{type(model).__name__}: {reason}"
        ) from error
    return model
