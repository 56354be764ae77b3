"""Curves that fall from 1 to 0 over a run, for schedules."""

import math


def cosine(share: float) -> float:
    """Return a factor that falls from 1 to 0 along half a cosine while `share` rises from 0 to 1.

    Example:
        >>> [round(cosine(share), 2) for share in (0.0, 0.5, 1.0)]
        [1.0, 0.5, 0.0]
    """
    return 0.5 * (1 + math.cos(math.pi * share))


def polynomial(share: float, power: float = 0.9) -> float:
    """Return the factor ``(1 - share) ** power``, which falls from 1 to 0 while `share` rises from 0 to 1."""
    return (1 - share) ** power
