"""Lightning callbacks: checkpoints, guards, pictures, progress, inversions."""

from callbacks.averaging import EMA
from callbacks.checkpoints import AtomicCheckpointIO, Checkpoints, WeightExport
from callbacks.gaussianization import Gaussianization
from callbacks.guards import Interrupted, StopOnNonFinite, StopOnSignal, TrainingStopped
from callbacks.inversion_curves import InversionCurves
from callbacks.preparation import Preparation
from callbacks.processes import LinkedDDP
from callbacks.progress import TrainingProgress
from callbacks.resuming import (
    CurveLogger,
    RestoreLimit,
    SameStart,
    Start,
    close_phase,
    start_from,
)
from callbacks.samples import LatentTypicality, Projections, SampleGrid

__all__ = [
    "EMA",
    "AtomicCheckpointIO",
    "Checkpoints",
    "CurveLogger",
    "Gaussianization",
    "Interrupted",
    "InversionCurves",
    "LatentTypicality",
    "LinkedDDP",
    "Preparation",
    "Projections",
    "RestoreLimit",
    "SameStart",
    "SampleGrid",
    "Start",
    "StopOnNonFinite",
    "StopOnSignal",
    "TrainingProgress",
    "TrainingStopped",
    "WeightExport",
    "close_phase",
    "start_from",
]
