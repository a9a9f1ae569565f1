"""Networks whose weights PyTorch downloads when they are made."""

import logging
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from threading import Thread
from typing import TypeVar
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import torch

from flowprior.silence import silenced

PATIENCE = 10.0
"""Seconds that a server may take to answer."""

_LOGGER = logging.getLogger(__name__)
Network = TypeVar("Network")


def fetched(url: str, make: Callable[[], Network]) -> Network | None:
    """A network whose weights are on this machine or can be downloaded, otherwise None.

    Where a firewall drops packets, as on compute nodes of many clusters, PyTorch would wait for
    minutes. So the server is asked first, once in a process, and has `PATIENCE` seconds.

    Args:
        url: of the weights, as `make` gives it to `torch.hub.load_state_dict_from_url`.
        make: makes the network; what it prints is dropped.
    """
    name = PurePosixPath(urlsplit(url).path).name
    try:
        if not (Path(torch.hub.get_dir()) / "checkpoints" / name).exists() and not _answers(url):
            return None
        with silenced():
            return make()
    except OSError as error:
        _LOGGER.debug("%s: %s", url, error)
        return None


@cache
def _answers(url: str) -> bool:
    """Whether the server speaks HTTP, in time: what it thinks of the question is no matter."""
    answers: list[str] = []

    def ask() -> None:
        with suppress(OSError, HTTPException):
            try:
                urlopen(Request(url, method="HEAD"), timeout=PATIENCE).close()
            except HTTPError as error:
                error.close()
            answers.append(url)

    thread = Thread(target=ask, daemon=True)  # a lookup in the DNS has no timeout
    thread.start()
    thread.join(PATIENCE)
    answered = bool(answers)
    if not answered:
        _LOGGER.debug("%s: no answer", url)
    return answered
