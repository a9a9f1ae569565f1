"""What train.py and evaluate.py share: configs by bare name, and one line for a mistake."""

import difflib
import importlib
import importlib.util
import os
import re
import signal
import sys
import threading
import traceback
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flowprior.extras import extra

with extra("pipeline"):
    import yaml
    from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser
    from jsonargparse.typing import extend_base_type

ROOT = Path(__file__).resolve().parent.parent
STOPPED = 130
"""Exit status of a command that was asked to stop, which is no error."""


class UsageError(Exception):
    """A mistake in a command, config or path: one line that names it and what was expected."""


def find_config(name: str, folder: Path) -> Path:
    """The file meant by `--config NAME`: a path, or the bare name of a YAML file in `folder`.

    Raises:
        UsageError: if there is no such file; the message lists the names that exist.
    """
    path, known = Path(name), sorted(file.stem for file in folder.glob("*.yaml"))
    if name in known:
        return folder / f"{name}.yaml"
    if path.is_file():
        return path
    close = difflib.get_close_matches(name, known, 1)
    guess = f"; did you mean {close[0]}?" if close else ""
    raise UsageError(
        f"--config {name}: neither a file nor one of the configs {', '.join(known)}{guess}"
    )


def read_config(path: Path) -> dict[str, Any]:
    """The settings in a YAML file.

    Raises:
        UsageError: if it is not a text file with a YAML mapping.
    """
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"--config {path}: not a YAML text file: {reason}") from error
    if not isinstance(settings, dict):
        raise UsageError(f"--config {path}: expected `option: value` lines")
    return settings


def named_config_action(folder: Path) -> type[ActionConfigFile]:
    """The `--config` action of a parser whose bare names are looked up in `folder`.

    Before a config is parsed, the modules that its `imports` names are imported.
    """

    class NamedConfig(ActionConfigFile):
        def __call__(
            self,
            parser: ArgumentParser,
            namespace: Namespace,
            values: str,
            option: str | None = None,
        ) -> None:
            path = find_config(values, folder)
            import_beside(path, read_config(path).get("imports") or [])
            super().__call__(parser, namespace, str(path), option)

    return NamedConfig


def add_imports_option(parser: ArgumentParser) -> None:
    """Accept `imports` in the configs of a parser with `named_config_action`."""
    parser.add_argument(
        "--imports",
        type=list[ImportedModule],
        default=[],
        help="in a config file: Python modules beside it whose classes it uses",
    )


def imported_beside(config: Namespace) -> list[tuple[Path, list[str]]]:
    """Each config file of a command, and the modules that its `imports` names."""
    paths = [Path(str(path.absolute)) for path in config.config or []]
    return [(path, read_config(path).get("imports") or []) for path in paths]


def import_beside(config: Path, names: list[str]) -> None:
    """Import modules by name, also from the folder of `config`.

    The folder stays on the path, where worker processes look too.

    Raises:
        UsageError: if one cannot be imported, or is not the one beside the config.
    """
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UsageError(f"imports: expected a list of module names, got {names!r}")
    folder = str(config.resolve().parent)
    handler = signal.getsignal(signal.SIGINT)
    stop_quietly()
    sys.path.insert(0, folder)
    try:
        for name in names:
            _import(name, folder)
    finally:
        sys.path.remove(folder)
        if names and folder not in sys.path:
            sys.path.append(folder)
        if signal.getsignal(signal.SIGINT) is not handler:
            signal.signal(signal.SIGINT, handler)


def _import(name: str, folder: str) -> None:
    try:
        module = importlib.import_module(name)
    except Exception as error:  # whatever a user's file raises
        reason = f"{type(error).__name__}: {error}"
        raise UsageError(f"imports: cannot import {name}: {one_line(Exception(reason))}") from error
    file, wanted = module.__file__ or "", Path(folder, *name.split("."))
    if (wanted.is_dir() or wanted.with_suffix(".py").is_file()) and not file.startswith(folder):
        raise UsageError(f"imports: {name} is also a module at {file}: give yours another name")


def _check_imported(kind: type, name: str) -> None:
    if name not in sys.modules:
        raise ValueError(f"imports: {name} must be named in a config file, beside the module")


ImportedModule = extend_base_type("ImportedModule", str, _check_imported)


def output_folder(config: Namespace) -> Path:
    """The folder of a run: `--output`, or runs/ and the name of the last `--config`."""
    if config.output is not None:
        return config.output
    return Path("runs") / (Path(config.config[-1].relative).stem if config.config else "unnamed")


def stop_quietly() -> None:
    """End the process without a traceback on Ctrl-C, until `run_command` takes over.

    On a terminal it also says that the command is loading, which takes some seconds. To be called
    before the slow imports of a command, which lose an exception or turn it into one of their own.
    """
    in_main = threading.current_thread() is threading.main_thread()
    if in_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not ignored
        signal.signal(signal.SIGINT, _stop)
    if sys.stderr.isatty():
        print("loading ...", file=sys.stderr, flush=True)


def _stop(*_: object) -> None:
    os.write(2, b"stopped\n")
    os._exit(STOPPED)


def run_command(main: Callable[[], None], failures: tuple[type[Exception], ...] = ()) -> int:
    """Run a command; turn mistakes (status 2) and `failures` (status 1) into one line on stderr.

    FLOWPRIOR_TRACEBACK=1 prints the traceback as well.
    """
    if signal.getsignal(signal.SIGINT) is _stop:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        main()
    except (UsageError, ArgumentError) as error:
        return _report(error, 2)
    except (OSError, *failures) as error:
        return _report(error, getattr(error, "status", 1))
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return STOPPED
    return 0


def _report(error: Exception, status: int) -> int:
    if os.environ.get("FLOWPRIOR_TRACEBACK"):
        traceback.print_exception(error)
    command = Path(sys.argv[0]).name
    kind = "" if status == STOPPED else "error: "
    print(f"{command}: {kind}{one_line(error)}", file=sys.stderr)
    return status


def one_line(error: Exception) -> str:
    """The message of an error as one line; of jsonargparse's nested ones, what matters in it."""
    text = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"
    if "Original Traceback" in text:  # of a loading process: its message is the last line
        text = text.strip().splitlines()[-1].partition(": ")[2]
    lines = [line.strip().removeprefix("- ") for line in text.splitlines()]
    told = " ".join(line for line in lines if not _NOISE.match(line))
    told = re.sub(r"\.? (Given|Got) value: ", ", got ", told)
    told = re.sub(r"<class '([\w.]*\.)?(\w+)'>", r"\2", told)
    # What was given as a whole, around the part that was named already.
    told = re.sub(r", got \[?{'class_path'.*", "", told) if len(told) > 500 else told
    told = re.sub(r"""Parser key ["']([\w.]+)["']:""", r"\1:", told)
    return re.sub(r"\s+", " ", told).strip()


# Lines of jsonargparse's account of the types it tried, around the one that says what was wrong.
_NOISE = re.compile(
    r"Does not validate against|Subtypes: |Errors:|Given value type|Given value: \w+\("
    r"|Problem with given class_path|Expected a <class 'NoneType'>$|Not of type Path: "
)
