"""Operators by name: those of the papers, and any other by its import path."""

import inspect
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import torch
from torch import nn

from flowprior.physics import operators
from flowprior.physics.born import linearized_born
from flowprior.physics.eikonal import crosshole
from flowprior.physics.waveforms import full_waveform

Builder = Callable[..., nn.Module]
ImageShape = tuple[int, int, int]

OPERATORS: dict[str, Builder] = {
    "denoising": operators.denoising,
    "gaussian_blur": operators.gaussian_blur,
    "mean_blur": operators.mean_blur,
    "box_inpainting": operators.box_inpainting,
    "random_inpainting": operators.random_inpainting,
    "super_resolution": operators.super_resolution,
    "colourisation": operators.colourisation,
    "random_gaussian": operators.random_gaussian,
    "phase_retrieval": operators.phase_retrieval,
    "cartesian_mri": operators.cartesian_mri,
    "limited_angle_ct": operators.limited_angle_ct,
    "crosshole_tomography": crosshole,
    "linearized_born": linearized_born,
    "full_waveform": full_waveform,
}

SHAPE_OPTIONS = ("image_shape", "img_size")


def find_operator(name_or_path: str) -> Builder:
    """The class or function that makes the operator with this name.

    Args:
        name_or_path: as for `make_operator`.

    Raises:
        ValueError: there is no such operator, or its module cannot be imported.
    """
    if name_or_path in OPERATORS:
        return OPERATORS[name_or_path]
    module, _, attribute = name_or_path.rpartition(".")
    if not module:
        raise ValueError(
            f"operator must be one of {', '.join(OPERATORS)}, or an import path; got "
            f"{name_or_path!r}"
        )
    try:
        found = getattr(import_module(module), attribute)
    except Exception as error:
        raise ValueError(f"operator {name_or_path}: {_first_line(error)}") from error
    if not callable(found):
        raise ValueError(f"operator {name_or_path} is neither a class nor a function")
    return found


def make_operator(name_or_path: str, image_shape: ImageShape, **options: Any) -> nn.Module:
    """The operator with this name for images of this shape.

    An option `image_shape` or `img_size` (deepinv's name) gets the shape, where there is one. A
    list is turned into a tensor, and an integer seed into a generator, where the signature asks
    for these. Random operators are the same at every call, also without a seed.

    Args:
        name_or_path: a name in `OPERATORS`, or the import path of a class or function that gives
            a torch module, such as `deepinv.physics.Inpainting` or `my_ops.RowMean`.
        image_shape: (C, H, W).
        options: of the operator.

    Raises:
        ValueError: there is no such operator, or it does not take these options.
    """
    builder = find_operator(name_or_path)
    own = inspect.signature(builder).parameters
    shape = {name: tuple(image_shape) for name in SHAPE_OPTIONS if name in own}
    given = _converted(_checked(name_or_path, builder, shape | options), own)
    try:
        operator = _built(builder, given)
    except Exception as error:
        text = ", ".join(f"{name}={value!r}" for name, value in options.items())
        refused = f" does not take {text}" if text else ""
        raise ValueError(f"operator {name_or_path}{refused}: {_first_line(error)}") from error
    if not isinstance(operator, nn.Module):
        raise ValueError(
            f"operator {name_or_path} gives {type(operator).__name__}, expected a torch module "
            "such as a deepinv Physics"
        )
    return operator


def _built(builder: Builder, options: dict[str, Any]) -> object:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return builder(**options)


def _checked(name: str, builder: Builder, options: dict[str, Any]) -> dict[str, Any]:
    """The options, if the builder takes them."""
    own = inspect.signature(builder)
    try:
        own.bind(**options)
    except TypeError as error:
        raise ValueError(f"operator {name}: {error}; {_expected(own)}") from None
    # deepinv passes what it does not know on to base classes, which ignore it with a warning.
    unknown = set(options) - _named(builder) if inspect.isclass(builder) else set()
    if unknown:
        raise ValueError(f"operator {name} has no {', '.join(sorted(unknown))}; {_expected(own)}")
    return options


def _named(cls: type) -> set[str]:
    """Names of the options of a class and of the bases that it passes others on to."""
    names: set[str] = set()
    for base in cls.__mro__:
        if "__init__" in vars(base):
            parameters = inspect.signature(base.__init__).parameters.values()
            names |= {parameter.name for parameter in parameters}
            if all(parameter.kind != parameter.VAR_KEYWORD for parameter in parameters):
                break
    return names


def _expected(signature: inspect.Signature) -> str:
    names = [
        parameter.name
        for parameter in signature.parameters.values()
        if parameter.name not in SHAPE_OPTIONS
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    return f"its options are {', '.join(names) or 'none'}"


def _converted(
    options: dict[str, Any], parameters: Mapping[str, inspect.Parameter]
) -> dict[str, Any]:
    """Options from a config, with lists and seeds as the tensors and generators asked for."""
    found = dict(options)
    for name, value in options.items():
        kind = str(parameters[name].annotation) if name in parameters else ""
        if isinstance(value, list) and "Tensor" in kind:
            found[name] = torch.tensor(value)
        elif isinstance(value, int) and "Generator" in kind:
            found[name] = torch.Generator().manual_seed(value)
    return found


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
