"""Flows on disk: `model.safetensors` and `config.json` in one folder."""

import hashlib
import inspect
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

import flowprior.flows  # noqa: F401  # fills Flow.registry
from flowprior.flows.base import Flow
from flowprior.io import atomic_write

FORMAT = "flowprior-weights-1"


class WeightsError(ValueError):
    """A weights folder that cannot be used; the message names the file and what is wrong."""


def save(flow: Flow, folder: str | Path, card: dict[str, Any] | None = None) -> Path:
    """Write the flow's weights and what is needed to rebuild it; returns the folder.

    `card` (JSON values: data set, bits, epoch, metrics) is kept for people to read. Files are
    replaced atomically. Raises OSError if the folder cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.detach().cpu().contiguous() for name, value in flow.state_dict().items()}
    data = save_tensors(tensors, metadata={"format": FORMAT})
    config = {
        "format": FORMAT,
        "flow": type(flow).__name__,
        "arguments": flow.arguments,
        "sha256": hashlib.sha256(data).hexdigest(),
        "card": card or {},
    }
    atomic_write(folder / "model.safetensors", data)
    atomic_write(folder / "config.json", json.dumps(config, indent=2, allow_nan=False) + "\n")
    return folder


@torch.inference_mode(False)  # tensors made in that mode could not be used in a gradient later
def load(folder: str | Path, device: torch.device | str = "cpu") -> Flow:
    """Rebuild a flow from exported weights, in evaluation mode with its parameters frozen.

    Nothing in the folder is executed: the architecture is looked up by name among this library's
    flows, and the tensors are read by safetensors. They keep the precision they were saved in.

    Raises:
        WeightsError: if a file is missing, truncated or altered, or the two do not belong together.
    """
    folder = Path(folder)
    config = read_config(folder)
    flow = _build(folder, config)
    data = _read(folder / "model.safetensors")
    if hashlib.sha256(data).hexdigest() != config.get("sha256"):
        raise WeightsError(
            f"{folder / 'model.safetensors'} is not the file that config.json was written with "
            "(SHA-256 differs): it is truncated, altered or from another export"
        )
    try:
        flow.load_state_dict(load_tensors(data), assign=True)
    except (SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise WeightsError(f"{folder / 'model.safetensors'} does not fit: {reason}") from None
    return flow.to(device).eval().requires_grad_(False)


def read_config(folder: str | Path) -> dict[str, Any]:
    """The parsed `config.json` of a weights folder; raises WeightsError if there is none."""
    path = Path(folder) / "config.json"
    try:
        config = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise WeightsError(f'{path} must be a JSON object with "format": "{FORMAT}"')
    return config


def _build(folder: Path, config: dict[str, Any]) -> Flow:
    name, arguments = config.get("flow"), config.get("arguments")
    if not isinstance(name, str) or name not in Flow.registry:
        known = ", ".join(sorted(Flow.registry))
        raise WeightsError(
            f"{folder / 'config.json'}: unknown flow {name!r}, expected one of {known}"
        )
    try:
        inspect.signature(Flow.registry[name]).bind(**arguments)
        # Without storage: no random numbers are drawn, and wrong sizes cost no memory.
        with torch.device("meta"):
            return Flow.registry[name](**arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise WeightsError(
            f"{folder / 'config.json'}: wrong arguments for {name}: {reason}"
        ) from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise WeightsError(
            f"cannot read {path}: {error.strerror}; expected a folder with model.safetensors and "
            "config.json, as training exports it"
        ) from None
