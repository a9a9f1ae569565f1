"""What processes that work for another one have in common."""

import multiprocessing
import os
from threading import Thread


def end_with_parent() -> None:
    """Do not outlive a parent that was killed; to be called once in a process it started."""

    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    Thread(target=watch, daemon=True).start()
