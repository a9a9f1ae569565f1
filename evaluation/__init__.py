"""Sweeps that keep one record per (cell, image), and their tables, figures and reports."""

from evaluation.arrays import ArrayStore
from evaluation.base import Cell, Evaluation
from evaluation.records import Record, RecordStore, file_digest
from evaluation.runner import run
from evaluation.table import Metric, Stat, Table

__all__ = [
    "ArrayStore",
    "Cell",
    "Evaluation",
    "Metric",
    "Record",
    "RecordStore",
    "Stat",
    "Table",
    "file_digest",
    "run",
]
