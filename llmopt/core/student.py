"""Student's t distribution at any level: what a handful of runs allows to be said.

Tables end at 95 and 99 %; a gate that looks several times, at several metrics, asks for levels such as .00087.
"""

from __future__ import annotations

import functools
import math

STEPS = 300  # of the continued fraction; it converges in some ten
TINY = 1e-300


def tail(t: float, freedom: float) -> float:
    """P(T > t) for so many degrees of freedom (Abramowitz and Stegun 1964, 26.7.1 with 26.5.8)."""
    if freedom <= 0:
        raise ValueError("Student's t needs at least one degree of freedom")
    if math.isinf(t):
        return 0.0 if t > 0 else 1.0
    half = incomplete_beta(freedom / 2, 0.5, freedom / (freedom + t * t)) / 2
    return half if t >= 0 else 1 - half


@functools.lru_cache(65_536)
def quantile(probability: float, freedom: float) -> float:
    """The t whose upper tail is ``probability``, by bisection. Raises ValueError outside of (0, 1)."""
    if not 0 < probability < 1:
        raise ValueError(f"no quantile of {probability}")
    if probability > 0.5:
        return -quantile(1 - probability, freedom)
    low, high = 0.0, 1.0
    while tail(high, freedom) > probability:
        low, high = high, high * 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if tail(middle, freedom) > probability else (low, middle)
    return (low + high) / 2


def incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularized incomplete beta function I_x(a, b), by its continued fraction after Lentz (1976)."""
    if x <= 0 or x >= 1:
        return 0.0 if x <= 0 else 1.0
    if x > (a + 1) / (a + b + 2):  # where the fraction converges fast
        return 1 - incomplete_beta(b, a, 1 - x)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    c, d = 1.0, 1 / (_away_from_zero(1 - (a + b) * x / (a + 1)))
    fraction = d
    for m in range(1, STEPS):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / _away_from_zero(1 + term * d)
            c = _away_from_zero(1 + term / c)
            fraction *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return front * fraction / a


def _away_from_zero(value: float) -> float:
    return value if abs(value) > TINY else TINY
