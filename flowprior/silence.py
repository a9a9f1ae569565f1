"""Silence for packages that talk while they load."""

import contextlib
import io
import threading
import warnings
from collections.abc import Iterator

_LOCK = threading.Lock()


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Drop what this block prints and warns of, in one thread at a time.

    Standard output and error belong to the whole process: threads that silence them at once would
    leave it silent for good.
    """
    silence = io.StringIO()
    with (
        _LOCK,
        warnings.catch_warnings(),
        contextlib.redirect_stdout(silence),
        contextlib.redirect_stderr(silence),
    ):
        warnings.simplefilter("ignore")
        yield
