"""Mean, deviation and interval of the accuracies of several seeds: how an accuracy is printed."""

import math
from dataclasses import dataclass
from statistics import mean, stdev

import numpy as np


@dataclass(frozen=True)
class Interval:
    """n values: mean, sample standard deviation and the 95% confidence interval of the mean (NaN where n is 1)."""

    n: int
    mean: float
    deviation: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> "Interval":
        """Student's interval, for values taken as normal. Raises `ValueError` where there are none."""
        if not values:
            raise ValueError("no values")
        n, middle = len(values), mean(values)
        if n == 1:
            return cls(1, middle, math.nan, math.nan, math.nan)
        deviation = stdev(values)
        half = quantile(0.975, n - 1) * deviation / math.sqrt(n)
        return cls(n, middle, deviation, middle - half, middle + half)

    def __str__(self) -> str:
        if self.n == 1:
            return f"{self.mean:.4f} (n 1)"
        return f"{self.mean:.4f} (n {self.n}, standard deviation {self.deviation:.4f}, 95% interval {self.low:.4f} to {self.high:.4f})"


def p_at_least(values: list[float], target: float) -> float:
    """p-value of the one-sided t-test: small says that the mean behind `values` is at least `target`. NaN for n < 2."""
    if len(values) < 2:
        return math.nan
    middle, deviation = mean(values), stdev(values)
    if deviation == 0:
        return 0.0 if middle >= target else 1.0
    return 1 - distribution((middle - target) / (deviation / math.sqrt(len(values))), len(values) - 1)


def distribution(t: float, freedom: int) -> float:
    """Student's cumulative distribution in [0, 1] for whole degrees of freedom.

    The finite series of Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4.
    """
    angle = math.atan(t / math.sqrt(freedom))
    sine, square = math.sin(angle), math.cos(angle) ** 2
    odd = freedom % 2
    terms = np.arange(1, (freedom - odd) // 2)  # each factor turns one term of the series into the next
    ratios = (2 * terms / (2 * terms + 1) if odd else (2 * terms - 1) / (2 * terms)) * square
    series = float(1 + np.cumprod(ratios).sum())
    if not odd:
        return 0.5 + 0.5 * sine * series
    return 0.5 + (angle + (sine * math.cos(angle) * series if freedom > 1 else 0.0)) / math.pi


def quantile(p: float, freedom: int) -> float:
    """The t that a share `p` of Student's distribution lies below."""
    low, high = -1e6, 1e6
    while high - low > 1e-10 * max(1.0, abs(low)):
        middle = (low + high) / 2
        low, high = (middle, high) if distribution(middle, freedom) < p else (low, middle)
    return (low + high) / 2
