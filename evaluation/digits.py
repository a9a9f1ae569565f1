"""Numbers with the digits that they warrant."""

import math
from decimal import Decimal

_MOST_DIGITS = 5


def format_interval(mean: float, half_width: float | None) -> str:
    """A mean ± half the width of its interval; alone where the interval is too small to show.

    >>> format_interval(3.14159, 0.01273), format_interval(1.2e-7, 3.4e-8)
    ('3.142 ± 0.013', '(1.20 ± 0.34)e-7')
    >>> format_interval(1.0, 3e-8), format_interval(12, None)
    ('1.000', '12')
    """
    if not half_width:
        return format_number(mean)
    size = max(abs(mean), half_width)
    exponent = 0 if 1e-3 <= size < 1e6 else _exponent(size, 1)
    decimals = 1 - _exponent(half_width, 1) + exponent
    most = _MOST_DIGITS - 1 - _exponent(size, _MOST_DIGITS - 1) + exponent
    decimals = max(0, min(decimals, most))
    number, error = (Decimal(value).scaleb(-exponent) for value in (mean, half_width))
    shown = f"{error:.{decimals}f}"
    if not float(shown):
        return format_number(mean)
    text = f"{number:z.{decimals}f} ± {shown}"
    return f"({text})e{exponent}" if exponent else text


def format_number(value: float, digits: int = 4) -> str:
    """An integer as it is, anything else with some significant digits, infinity as ∞.

    >>> format_number(44123456), format_number(0.5), format_number(1234567.0)
    ('44123456', '0.5000', '1.235e6')
    """
    if isinstance(value, int) or value == 0:
        return str(int(value))
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if not 1e-3 <= abs(value) < 1e6:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    return f"{value:.{max(0, digits - 1 - _exponent(value, digits - 1))}f}"


def _exponent(value: float, decimals: int) -> int:
    """Decimal exponent after rounding, so that 0.0996 with two digits counts as 0.10."""
    return int(f"{value:.{decimals}e}".split("e")[1])
