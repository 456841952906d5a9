"""Mean, deviation and interval of the accuracies of several seeds: how an accuracy is printed."""

import math
from dataclasses import dataclass
from functools import cache
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


def difference(values: list[float], others: list[float]) -> Interval:
    """Of the mean of `values` less that of `others`, drawn apart and spread each in its own way; n counts both, the deviation is the difference's own.

    Welch's interval (1947, Biometrika 34), with the degrees of freedom that he and Satterthwaite give it. NaN where a side has one value.
    """
    middle = mean(values) - mean(others)
    error, freedom = standard_error(values, others)
    half = quantile(0.975, freedom) * error if error else error
    return Interval(len(values) + len(others), middle, error, middle - half, middle + half)


def standard_error(values: list[float], others: list[float]) -> tuple[float, float]:
    """(of the difference of two means, its degrees of freedom); NaN where a side has one value."""
    if min(len(values), len(others)) < 2:
        return math.nan, math.nan
    parts = [stdev(side) ** 2 / len(side) for side in (values, others)]
    if not sum(parts):
        return 0.0, math.inf
    return math.sqrt(sum(parts)), sum(parts) ** 2 / sum(part**2 / (len(side) - 1) for part, side in zip(parts, (values, others)))


def p_at_least(values: list[float], target: float | list[float]) -> float:
    """p-value of the one-sided t-test: small says that the mean behind `values` is at least `target`, or the mean behind the values of another; large
    says nothing. NaN for n < 2."""
    if len(values) < 2:
        return math.nan
    if isinstance(target, list):
        middle, (error, freedom) = mean(values) - mean(target), standard_error(values, target)
    else:
        middle, error, freedom = mean(values) - target, stdev(values) / math.sqrt(len(values)), len(values) - 1
    if error == 0:
        return 0.0 if middle >= 0 else 1.0
    return 1 - distribution(middle / error, freedom)


STEPS = np.linspace(0, 1, 4_001)
SIMPSON = np.where(np.arange(len(STEPS)) % 2, 4.0, 2.0) - (np.arange(len(STEPS)) % (len(STEPS) - 1) == 0)


def distribution(t: float, freedom: float) -> float:
    """Student's cumulative distribution in [0, 1] for degrees of freedom from one on, whole or not: the integral of its density, by Simpson's rule.

    With t = tan(angle) * sqrt(freedom) the density is a power of the cosine.
    """
    if math.isnan(t) or math.isnan(freedom):
        return math.nan
    angle = math.atan(t / math.sqrt(freedom))
    integral = float(np.cos(angle * STEPS) ** (freedom - 1) @ SIMPSON) * angle / (3 * (len(STEPS) - 1))
    return 0.5 + integral * math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(math.pi)


@cache
def quantile(p: float, freedom: float) -> float:
    """The t that a share `p` of Student's distribution lies below."""
    low, high = -1e6, 1e6
    while high - low > 1e-10 * max(1.0, abs(low)):
        middle = (low + high) / 2
        low, high = (middle, high) if distribution(middle, freedom) < p else (low, middle)
    return (low + high) / 2
