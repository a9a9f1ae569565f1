"""Where the weights of an evaluation are."""

from pathlib import Path

from flowprior.command_line import ROOT
from flowprior.weights import WeightsError


def found_weights(folder: Path) -> Path:
    """The folder of an exported flow: as given, or beside evaluate.py.

    Raises WeightsError if it is in neither place.
    """
    for candidate in (folder, ROOT / folder):
        if (candidate / "model.safetensors").is_file():
            return candidate
    raise WeightsError(
        f"weights: there is no exported flow in {folder}; train one first, "
        "or give another folder with --evaluation.weights"
    )
