"""Numbers as text: pass@k and pass^k in percent, max@k as it is."""

from __future__ import annotations

import math

from pkpo_kernels.typing import Metric

_NONE = "–"
# How many digits an interval may have: the fewest that tell its ends apart, or the first.
_DIGITS = {"pass@k": range(2, 7), "pass^k": range(2, 7), "max@k": range(4, 9)}


def figure(value: float, metric: Metric, *, signed: bool = False) -> str:
    """Write an estimate with no more decimals than there are, and a dash for NaN.

    >>> figure(0.3595, "pass@k"), figure(1.3125, "max@k"), figure(0.15, "pass@k", signed=True)
    ('35.95 %', '1.3125', '+15 %')
    """
    if math.isnan(value):
        return _NONE
    sign = "+" if signed else ""
    if metric == "max@k":
        return f"{value:{sign}.6g}"
    # Adding 0.0 takes the sign off a negative zero.
    text = f"{round(100 * value, 6) + 0.0:{sign}.6f}"
    return f"{text.rstrip('0').rstrip('.')} %"


def interval(ends: tuple[float, float], metric: Metric, *, signed: bool = False) -> str:
    """Write an interval with as many digits as tell its ends apart, and a dash for NaN.

    >>> interval((0.026, 0.7739), "pass@k"), interval((0.999021, 0.999034), "pass@k")
    ('2.60 to 77.39 %', '99.902 to 99.903 %')
    """
    low, high = ends
    if math.isnan(low):
        return _NONE
    sign, factor = "+" if signed else "", 1 if metric == "max@k" else 100
    styles = [f"{sign}.{digits}{'g' if metric == 'max@k' else 'f'}" for digits in _DIGITS[metric]]
    texts = [(f"{factor * low:{style}}", f"{factor * high:{style}}") for style in styles]
    first, last = next((pair for pair in texts if pair[0] != pair[1]), texts[0])
    return f"{first} to {last}{' %' if metric != 'max@k' else ''}"


def level(confidence: float) -> str:
    """Write the confidence of an interval.

    >>> level(0.95)
    '95 %'
    """
    return f"{100 * confidence:g} %"
