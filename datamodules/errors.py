"""What can be wrong with a data set, said in one line."""

import logging
from typing import Any

from pytorch_lightning.utilities.rank_zero import rank_zero_only


class DataError(ValueError):
    """A data set cannot be used, or not in this way; the message says what was expected."""


class ImageError(DataError):
    """An image cannot be used; the message names it and says what is wrong."""


def require(valid: bool, option: str, value: Any, expected: str) -> None:
    """Raise a ValueError unless the value of an option is valid."""
    if not valid:
        raise ValueError(f"data.{option}={value}: expected {expected}")


@rank_zero_only
def notice(message: str) -> None:
    """Tell the user something about the data, as one line on stderr, from one process only."""
    logging.getLogger("datamodules").warning(message)
