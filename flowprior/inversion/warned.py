"""Warnings of an estimate, with the rows that each is about."""

import torch
from torch import Tensor

from flowprior.argument_types import check_types
from flowprior.checks import shown


class Warned(str):
    """A warning of `Estimate.warnings`: a sentence that also says what it is about.

    Tables add up the images of all warnings of one kind, and tell the worst of these.

    Args:
        reason: what is wrong and what to try, without the rows.
        kind: a name that warnings share which differ in rows and numbers alone.
        rows: mask (B,), of bools, of the rows that it is about; None for all of the batch.
        size: how bad it is; the warning of a kind with the largest is the worst.
        joint: between the rows and the reason.

    Attributes:
        rows: their numbers, or None.

    Raises:
        ValueError: an argument is of another type, such as row numbers instead of a mask.

    >>> import torch
    >>> print(Warned("too short", "short", torch.tensor([True, False, True])))
    rows 0, 2: too short
    """

    reason: str
    kind: str
    rows: tuple[int, ...] | None
    size: float

    # Pickle and copies give the whole sentence, and set the attributes afterwards.
    def __new__(
        cls,
        reason: str,
        kind: str = "",
        rows: Tensor | None = None,
        size: float | Tensor = 0.0,
        joint: str = ": ",
    ) -> "Warned":
        """The sentence, which begins with the rows."""
        check_types(Warned.__new__, locals())
        if rows is not None and (rows.dtype != torch.bool or rows.ndim != 1):
            raise ValueError(
                f"rows must be a mask (B,) of bools, got {rows.dtype} of shape {tuple(rows.shape)}"
            )
        if isinstance(size, Tensor) and size.numel() != 1:
            raise ValueError(f"size must be one number, got {shown(size)}")
        made = super().__new__(cls, reason if rows is None else named_rows(rows) + joint + reason)
        made.reason, made.kind, made.size = reason, kind, float(size)
        made.rows = None if rows is None else tuple(rows.nonzero()[:, 0].tolist())
        return made


def own_warnings(run: object, *rows: Tensor) -> tuple[str, ...]:
    """What a run says by its method `warnings`, if it has one: nothing, a sentence or several."""
    found = run.warnings(*rows) if hasattr(run, "warnings") else None
    if found is None:
        return ()
    every = (found,) if isinstance(found, str) else tuple(found)
    return tuple(one if isinstance(one, str) else str(one) for one in every)


def named_rows(mask: Tensor) -> str:
    """The rows of a mask (B,) in words."""
    numbers = mask.nonzero()[:, 0].tolist()
    more = len(numbers) - 8
    listed = ", ".join(map(str, numbers[:8])) + (f" and {more} more" if more > 0 else "")
    return f"rows {listed}" if len(numbers) > 1 else f"row {listed}"
