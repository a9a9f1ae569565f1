"""Lightning callbacks: checkpoints, guards, pictures, progress."""

from callbacks.averaging import EMA
from callbacks.checkpoints import AtomicCheckpointIO, Checkpoints, WeightExport
from callbacks.guards import Interrupted, StopOnNonFinite, StopOnSignal, TrainingStopped
from callbacks.progress import TrainingProgress
from callbacks.samples import LatentTypicality, SampleGrid

__all__ = [
    "EMA",
    "AtomicCheckpointIO",
    "Checkpoints",
    "Interrupted",
    "LatentTypicality",
    "SampleGrid",
    "StopOnNonFinite",
    "StopOnSignal",
    "TrainingProgress",
    "TrainingStopped",
    "WeightExport",
]
