"""What train.py and evaluate.py share: configs by bare name, and one line for a mistake."""

import difflib
import os
import re
import sys
import traceback
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser

ROOT = Path(__file__).resolve().parent.parent


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


def named_config_action(folder: Path) -> type[ActionConfigFile]:
    """The `--config` action of a parser whose bare names are looked up in `folder`."""

    class NamedConfig(ActionConfigFile):
        def __call__(
            self,
            parser: ArgumentParser,
            namespace: Namespace,
            values: str,
            option: str | None = None,
        ) -> None:
            super().__call__(parser, namespace, str(find_config(values, folder)), option)

    return NamedConfig


def config_name(arguments: list[str]) -> str | None:
    """The stem of the last `--config` of a command line."""
    name = None
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        if argument in ("--config", "-c"):
            name = following
        elif argument.startswith("--config="):
            name = argument.partition("=")[2]
    return Path(name).stem if name else None


def run_command(main: Callable[[], None], failures: tuple[type[Exception], ...] = ()) -> int:
    """Run a command; turns mistakes (status 2) and `failures` (status 1) into one line on stderr.

    FLOWPRIOR_TRACEBACK=1 prints the traceback as well.
    """
    try:
        main()
    except (UsageError, ArgumentError) as error:
        return _report(error, 2)
    except (OSError, *failures) as error:
        return _report(error, getattr(error, "status", 1))
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return 0


def _report(error: Exception, status: int) -> int:
    if os.environ.get("FLOWPRIOR_TRACEBACK"):
        traceback.print_exception(error)
    command = Path(sys.argv[0]).name
    print(f"{command}: error: {one_line(error)}", file=sys.stderr)
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
    r"|Problem with given class_path|Expected a <class 'NoneType'>$"
)
