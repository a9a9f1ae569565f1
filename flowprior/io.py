"""Files that hold the old content or the new one, whatever happens in between."""

import errno
import fcntl
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``, which replaces ``path`` when the block succeeds.

    The temporary file keeps the suffix of ``path``, if it has one, because writers such as
    ``np.savez`` depend on it. When the block raises, the temporary file is removed and ``path`` is
    untouched.

    Args:
        path: the file to write; its folder exists. A symbolic link is followed.

    Raises:
        OSError: the disk is full or the folder cannot be written; the error names ``path``.
    """
    target = Path(os.path.realpath(path))
    # PyTorch takes no name whose only dot is its first character.
    suffix = "" if target.suffix else ".part"
    temporary = target.with_name(f".{secrets.token_hex(4)}-{target.name}{suffix}")
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, target)
        sync_folder(target.parent)
    except OSError as error:
        if error.filename is not None and str(error.filename) != str(temporary):
            raise
        raise named_error(error, path) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def atomic_write(path: str | Path, data: bytes | str) -> None:
    """Write ``data`` (text as UTF-8) to ``path``, all of it or nothing.

    Raises:
        OSError: as for `atomic_path`.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


@contextmanager
def sole_writer(folder: str | Path) -> Iterator[None]:
    """Keep other processes that call this from writing to ``folder`` while the block runs.

    Raises:
        BlockingIOError: another process is in such a block; the error names ``folder``.
    """
    with open(Path(folder) / ".lock", "a") as file:
        try:
            # Unlike flock, not inherited by processes that load data and may live a little longer.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:  # some network file systems have no locks
            if error.errno in (errno.EACCES, errno.EAGAIN):
                reason = "another process is writing to this folder"
                raise BlockingIOError(errno.EAGAIN, reason, str(folder)) from None
        yield


def remove_temporaries(folder: str | Path) -> None:
    """Remove what a kill within `atomic_path` has left in ``folder`` and the folders below it.

    Only to be called while nobody writes there.
    """
    for path in Path(folder).rglob(".*"):
        if re.match(r"\.[0-9a-f]{8}-", path.name):
            path.unlink(missing_ok=True)


def named_error(error: OSError, path: str | Path) -> OSError:
    """The same error, naming ``path``: a full disk does not say which file it was."""
    reason = error.strerror or str(error)
    return OSError(error.errno or errno.EIO, reason, str(path))


def sync_folder(folder: Path) -> None:
    """Make a file's creation or renaming in ``folder`` survive a power cut."""
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
