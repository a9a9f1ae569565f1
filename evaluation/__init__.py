"""Sweeps that keep one record per (cell, image), and their tables, figures and reports."""

from evaluation.base import Cell, Evaluation, Result
from evaluation.runner import run
from evaluation.table import Metric

__all__ = ["Cell", "Evaluation", "Metric", "Result", "run"]
