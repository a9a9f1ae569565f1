"""Weights that other packages download."""

from contextlib import suppress
from functools import cache
from pathlib import Path, PurePosixPath
from threading import Thread
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import torch

PATIENCE = 10.0
"""Seconds that a server may take to answer."""


@cache
def obtainable(url: str, seconds: float = PATIENCE) -> bool:
    """Whether PyTorch has a file of weights on this machine, or its server answers in time.

    Where a firewall drops packets, as on compute nodes of many clusters, a download would wait for
    minutes for every address of the server. The answer is kept for as long as the process runs.

    Args:
        url: as given to `torch.hub.load_state_dict_from_url`.
        seconds: to wait at most.
    """
    if (
        Path(torch.hub.get_dir()) / "checkpoints" / PurePosixPath(urlsplit(url).path).name
    ).exists():
        return True
    answered = []

    def ask() -> None:
        with suppress(OSError), urlopen(Request(url, method="HEAD"), timeout=seconds):
            answered.append(url)

    thread = Thread(target=ask, daemon=True)  # a lookup of the name knows no timeout
    thread.start()
    thread.join(seconds)
    return bool(answered)
