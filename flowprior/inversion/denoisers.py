"""Denoisers that solvers use: their weights, and whether they take the images."""

import copy

import torch
from torch import nn

from flowprior.inversion.problem import Problem
from flowprior.inversion.warned import Warned
from flowprior.parameters import load_parameters


def make_denoiser(denoiser: object, weights: str | None) -> nn.Module:
    """The denoiser, or a copy of it with the parameters of a safetensors file.

    Raises:
        ValueError: it is no torch module, or the file is missing, damaged or of another network.
    """
    if not isinstance(denoiser, nn.Module):
        raise ValueError(f"denoiser must be a torch module, got {denoiser!r}")
    if weights is None:
        return denoiser
    return load_parameters(copy.deepcopy(denoiser), weights)


@torch.no_grad()
def frozen_denoiser(denoiser: nn.Module, problem: Problem) -> nn.Module:
    """A copy that is ready for the images of a problem.

    Raises:
        ValueError: it does not turn such images and noise levels (k,) into images of their shape.
    """
    model = copy.deepcopy(denoiser).eval().requires_grad_(False).to(problem.like)
    grey = problem.like.new_full((1, *problem.image_shape), 0.5)
    try:
        found = getattr(model(grey, grey.new_full((1,), 0.1)), "shape", None)
    except Exception as error:  # whatever a user's code raises
        found = " ".join(str(error).split())[:200]
    if found != grey.shape:
        raise ValueError(
            f"denoiser: {type(model).__name__} must turn images {tuple(grey.shape)} and noise "
            f"levels (1,) into images of that shape, got {found}"
        )
    return model


def missing_stages(done: int, stages: int) -> list[Warned]:
    """A warning if an estimate was stopped where noise is left."""
    if done >= stages:
        return []
    reason = (
        f"only {done} of {stages} stages were made, so that noise is left: take {stages} "
        "iterations, or fewer stages"
    )
    return [Warned(reason, "stages_missing")]
