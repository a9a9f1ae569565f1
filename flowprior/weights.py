"""Flows on disk, `model.safetensors` and `config.json` in a folder; and those that come with us."""

import hashlib
import importlib
import inspect
import json
import math
import types
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

import flowprior.flows  # noqa: F401  # fills Flow.registry
from flowprior.argument_types import check_types
from flowprior.checks import shown
from flowprior.flows.base import Flow
from flowprior.io import atomic_write
from flowprior.physics.condition import Condition, UnknownCondition
from flowprior.registry import registered_name

FORMAT = "flowprior-weights-1"
SHIPPED = Path(__file__).with_name("shipped")
"""In a clone a link to `weights`."""
# What older versions did where weights now have an argument, as JSON.
BEFORE = {"log_scale_limit": "2.0", "shift_limit": "null", "unet_convolutions": "1"}


class WeightsError(ValueError):
    """A weights folder that cannot be used; the message names the file and what is wrong."""


class Available(dict[str, str]):
    """Names of weights, and a line on each; shows one a line."""

    def __repr__(self) -> str:
        width = max(map(len, self), default=0)
        return "\n".join(f"{name:{width}}  {line}" for name, line in self.items())


def available() -> Available:
    """The weights that come with flowprior: name to one line on what they are.

    >>> available()["glow_mnist"]
    "Glow of MNIST's digits, 1x28x28, 0.5 M parameters"
    """
    known = json.loads((SHIPPED / "index.json").read_text(encoding="utf-8"))
    return Available({name: known[name] for name in sorted(known) if (SHIPPED / name).is_dir()})


def path(name: str) -> Path:
    """The folder of weights that come with flowprior, also of those that are no flow.

    Raises:
        WeightsError: there are none of that name; the message lists the names.
    """
    known = available()
    if name not in known:
        raise WeightsError(
            f"{name} is neither a folder nor the name of weights that come with flowprior: "
            f"{', '.join(known)}"
        )
    return SHIPPED / name


def save(flow: Flow, folder: str | Path, card: dict[str, Any] | None = None) -> Path:
    """Write the flow's weights and what is needed to rebuild it; returns the folder.

    `card` (JSON values: data set, bits, epoch, metrics) is kept for people to read. Files are
    replaced atomically.

    Raises:
        ValueError: it is no flow, or one of your own whose `arguments` do not rebuild it.
        OSError: the folder cannot be written.
    """
    check_types(save, locals())
    if not isinstance(flow, Flow):
        raise ValueError(
            f"flow must be a flowprior.flows.Flow, got {type(flow).__name__}: build others anew"
        )
    _checked_arguments(flow)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.detach().cpu().contiguous() for name, value in flow.state_dict().items()}
    data = save_tensors(tensors, metadata={"format": FORMAT})
    config = {
        "format": FORMAT,
        "flow": registered_name(type(flow)),
        "arguments": flow.arguments,
        "conditioning": None if flow.conditioning is None else flow.conditioning.described(),
        "sha256": hashlib.sha256(data).hexdigest(),
        "card": card or {},
    }
    text = json.dumps(config, indent=2, allow_nan=False) + "\n"
    atomic_write(folder / "model.safetensors", data)
    atomic_write(folder / "config.json", text)
    return folder


def check_rebuilds(flow: Flow) -> None:
    """Raise ValueError unless an untrained flow is the same when it is rebuilt from `arguments`.

    A user's own flow is really built, and what it keeps as plain values compared: it must not come
    back with other options than it was trained with.
    """
    plain = _checked_arguments(flow)
    if _is_ours(_owner(type(flow))):
        return
    try:
        with torch.random.fork_rng(devices=[]):  # GPUs are not touched before processes start
            again = type(flow)(**plain)
        different = _differences(flow, again)
    except Exception as error:  # whatever a user's code raises
        different = [f"{type(error).__name__}: {' '.join(str(error).split())}"]
    if different:
        raise ValueError(
            f"{type(flow).__name__}.arguments do not rebuild it: {', '.join(different[:3])}; set "
            "self.arguments, after super().__init__, to what the constructor takes"
        )


def _checked_arguments(flow: Flow) -> dict[str, Any]:
    """The arguments as JSON gives them back; a ValueError unless the constructor takes them."""
    kind, given = type(flow), flow.arguments
    who = f"{kind.__name__}.arguments"
    if not isinstance(given, dict):
        raise ValueError(f"{who} must be a dictionary, got {shown(given)}")
    for name, value in given.items():
        if not isinstance(name, str) or not _is_plain(value):
            raise ValueError(
                f"{who} must be finite numbers, strings, booleans, None, or lists or dictionaries "
                f"of these, by names; {name} is {shown(value)}"
            )
    plain = json.loads(json.dumps(given))
    if _is_ours(_owner(kind)):
        return plain  # they leave out what later versions added, at its default
    parameters = inspect.signature(kind).parameters.values()
    kinds = {parameter.kind for parameter in parameters}
    variable = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    named = [p for p in parameters if p.kind not in variable and p.default is not None]
    missing = [p.name for p in named if p.name not in plain]
    if missing:
        raise ValueError(f"{who} must have {', '.join(missing)}, which the constructor takes")
    if variable[0] in kinds and variable[1] not in kinds:
        raise ValueError(f"{who} are given by name, so that the constructor must take no *args")
    try:
        _check_arguments(kind, plain, math.inf)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{who} do not rebuild it: {error}") from error
    return plain


def _owner(kind: type[Flow]) -> type:
    """The class that has the constructor."""
    return next(base for base in kind.__mro__ if "__init__" in vars(base))


def _differences(flow: Flow, again: Flow) -> list[str]:
    """What tells two untrained flows apart, but for the values of their tensors."""
    tensors = flow.state_dict().keys() ^ again.state_dict().keys()
    before, after = vars(flow), vars(again)
    plain = [name for name, value in before.items() if name != "training" and _is_plain(value)]
    return sorted(tensors) + [
        f"{name} becomes {shown(after.get(name))}"
        for name in plain
        if not _is_plain(after.get(name)) or _as_json(after.get(name)) != _as_json(before[name])
    ]


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _is_plain(value: Any) -> bool:
    """Whether JSON gives a value back, but for tuples, which become lists."""
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(name, str) and _is_plain(item) for name, item in value.items())
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, str | int)


@torch.inference_mode(False)  # tensors made in that mode could not be used in a gradient later
def load(
    folder: str | Path, device: torch.device | str = "cpu", imports: Sequence[str] = ()
) -> Flow:
    """Rebuild a flow from exported weights, in evaluation mode with its parameters frozen.

    Nothing in the folder is executed or imported: the architecture is looked up by name among the
    flows that are imported already, and the tensors are read by safetensors. They keep the
    precision they were saved in.

    Args:
        folder: as `save` or training wrote it; or, where there is no such folder, the name of
            weights that come with flowprior (`available`).
        device: where to put the flow.
        imports: modules to import first, where a flow of your own is defined.

    Raises:
        WeightsError: if there is neither, a file is missing, truncated or altered, or the two do
            not belong together.
    """
    check_types(load, locals())
    for name in imports:
        importlib.import_module(name)
    folder = Path(folder) if Path(folder).exists() else path(str(folder))
    if (folder / "card.json").is_file():
        about = available().get(folder.name, "something else")
        raise WeightsError(f"{folder} is no flow: {about}")
    config = read_config(folder)
    data = _read(folder / "model.safetensors")
    if hashlib.sha256(data).hexdigest() != config.get("sha256"):
        raise WeightsError(
            f"{folder / 'model.safetensors'} is not the file that config.json was written with "
            "(SHA-256 differs): it is truncated, altered or from another export"
        )
    tensors = _tensors(folder / "model.safetensors", data)
    flow = _build(folder / "config.json", config, tensors)
    flow.conditioning = _condition(folder / "config.json", config.get("conditioning"), flow)
    try:
        flow.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        _does_not_fit(folder / "model.safetensors", error)
    return flow.to(device).eval().requires_grad_(False)


def _condition(path: Path, given: Any, flow: Flow) -> Condition | None:
    """What the flow was given of data in training; None where that is not known."""
    if given is None:
        return None
    if not flow.conditional:
        raise WeightsError(f"{path}: conditioning is for conditional flows only")
    try:
        return Condition.restored(given)
    except UnknownCondition as error:
        warnings.warn(
            f"{path}: conditioning: {error}; it is left out: one of your own must be imported "
            'before, by load(..., imports=["its_module"]) or `imports:` of a config',
            stacklevel=3,
        )
        return None
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{path}: conditioning: {' '.join(str(error).split())}") from None


def read_config(folder: str | Path) -> dict[str, Any]:
    """The parsed `config.json` of a weights folder; raises WeightsError if there is none."""
    path = Path(folder) / "config.json"
    content = _read(path)
    try:
        config = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise WeightsError(f'{path} must be a JSON object with "format": "{FORMAT}"')
    return config


def _tensors(path: Path, data: bytes) -> dict[str, Tensor]:
    try:
        tensors = load_tensors(data)
    except SafetensorError as error:
        _does_not_fit(path, error)
    for name, value in tensors.items():
        if not value.isfinite().all():
            raise WeightsError(f"{path}: {name} has values that are not finite")
        if value.is_complex():
            raise WeightsError(f"{path}: {name} is complex")
    precisions = {str(t.dtype) for t in tensors.values() if t.is_floating_point()}
    if len(precisions) > 1:
        raise WeightsError(f"{path} mixes precisions: {', '.join(sorted(precisions))}")
    return tensors


def _build(path: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> Flow:
    kind, arguments = _find_flow(path, config.get("flow")), config.get("arguments")
    ours = _is_ours(kind)
    try:
        _check_arguments(kind, arguments, sum(map(Tensor.numel, tensors.values())))
        # Without storage: no random numbers are drawn, and wrong sizes cost no memory. A class of
        # somebody else may not be made for that.
        place = torch.device("meta") if ours else nullcontext()
        with _at_most(len(tensors)), torch.random.fork_rng(devices=[]), place:
            flow = kind(**arguments)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise WeightsError(f"{path}: wrong arguments for {kind.__name__}: {reason}") from None
    missing = sorted(flow.arguments.keys() - arguments.keys())
    if ours and missing:  # a default that is not what the weights were trained with
        before = [f"{name} was {BEFORE[name]}" for name in missing if name in BEFORE]
        hint = f"; before there was the option, {' and '.join(before)}" if before else ""
        raise WeightsError(f"{path}: arguments must have {', '.join(missing)}{hint}")
    return flow


def _is_ours(kind: type) -> bool:
    return kind.__module__.partition(".")[0] == "flowprior"


def _find_flow(path: Path, name: Any) -> type[Flow]:
    if isinstance(name, str):
        if name in Flow.registry:
            return Flow.registry[name]
        # Older exports have the bare name of a user's class.
        known = [kind for kind in Flow.registry.values() if kind.__name__ == name]
        if len(known) == 1:
            return known[0]
    raise WeightsError(
        f"{path}: unknown flow {name!r}, expected one of {', '.join(sorted(Flow.registry))}; a "
        'flow of your own must be imported before: load(..., imports=["its_module"]), or '
        "`imports:` of a config"
    )


def _check_arguments(kind: type[Flow], arguments: Any, values: float) -> None:
    """Raise unless the arguments have the types that the flow declares, and credible sizes.

    No size of our flows can exceed the number of `values` in the file, other than a seed. The
    values of one's own need not grow with their sizes.
    """
    most = values if _is_ours(kind) else math.inf
    inspect.signature(kind).bind(**arguments)
    hints = {}
    with suppress(NameError):  # a flow of your own may name types that are not imported
        hints = get_type_hints(kind.__init__)
    for name, value in arguments.items():
        if not _fits(value, hints.get(name, Any)):
            raise TypeError(f"{name} must be {inspect.formatannotation(hints[name])}, got {value}")
        for number in _numbers(value):
            if not math.isfinite(number):
                raise ValueError(f"{name} must be finite, got {value}")
            if isinstance(number, int) and number > most and name != "seed":
                raise ValueError(f"{name} is {value}, but the file has only {values} numbers")


def _fits(value: Any, hint: Any) -> bool:
    """Whether a JSON value has a type; True for types that JSON has no word for."""
    kind, parts = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if kind is Literal:
        return value in parts
    if kind in (tuple, list):
        return isinstance(value, list)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind in (bool, str):
        return isinstance(value, kind)
    return kind is not type(None) or value is None


def _numbers(value: Any) -> Iterator[int | float]:
    if isinstance(value, list):
        for part in value:
            yield from _numbers(part)
    elif isinstance(value, int | float):
        yield value


@contextmanager
def _at_most(count: int) -> Iterator[None]:
    """Raise ValueError as soon as a module built in this block has more tensors than the file."""
    registered: set[tuple[int, str]] = set()

    def register(module: torch.nn.Module, name: str, _: Tensor | None) -> None:
        registered.add((id(module), name))
        if len(registered) > 2 * count + 100:  # some may not be saved, or not kept
            raise ValueError(f"they make more tensors than the {count} of model.safetensors")

    hooks = [
        register_module_parameter_registration_hook(register),
        register_module_buffer_registration_hook(register),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _does_not_fit(path: Path, error: Exception) -> NoReturn:
    raise WeightsError(f"{path} does not fit: {' '.join(str(error).split())}") from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise WeightsError(
            f"cannot read {path}: {error.strerror}; expected a folder with model.safetensors and "
            "config.json, as training exports it"
        ) from None
