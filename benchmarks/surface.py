"""What a few settings, drawn at random, say of each: the ranges they are drawn from, and a least-squares fit of what came out.

A setting's value stands in the fit as a place on its range, -1 at the low end and 1 at the high one, with its square; a word of a list as whether it is that word.

From: response surfaces (Box and Wilson 1951); draws after Sobol, whose points fill a space of many settings more evenly than independent ones, and which, unlike
a grid, try as many values of each setting as there are trials (Bergstra and Bengio 2012, "Random search for hyper-parameter optimization").
"""

import math
from dataclasses import dataclass

import numpy as np
import torch

from train.interval import quantile

WIDE = 4.0  # a range whose high end is that many times the low one is drawn from on a log scale
SPARE = 3  # trials beyond the number of unknowns, so that the fit's own spread is known


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, evenly on a log scale where the range is wide and above 0; `kind` is int or float."""

    name: str
    low: float
    high: float
    kind: type

    @property
    def log(self) -> bool:
        return 0 < WIDE * self.low <= self.high

    def value(self, share: float) -> int | float:
        """The value at a share of the way, 0 to 1."""
        if self.log:
            value = self.low * (self.high / self.low) ** share
        else:
            value = self.low + (self.high - self.low) * share
        return int(round(value)) if self.kind is int else float(f"{value:.4g}")  # few digits, so that a command can be read

    def place(self, value: float) -> float:
        """-1 at the low end, 1 at the high one."""
        low, high, at = (math.log(v) for v in (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        return 2 * (at - low) / (high - low) - 1

    @property
    def between(self) -> bool:
        """Whether there are values between its ends, without which nothing is known of the square."""
        return self.kind is float or self.high - self.low > 1

    def holds(self, value) -> bool:
        return self.low <= value <= self.high

    def terms(self, value, curved: bool) -> list[float]:
        """Of the fit: the place, and its square where `curved`."""
        at = self.place(value)
        return [at, at * at] if curved else [at]

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}"


@dataclass(frozen=True)
class Choice:
    """One of a list of words, numbers or switches; the first is what the others are compared with."""

    name: str
    values: tuple

    def value(self, share: float):
        return self.values[min(int(share * len(self.values)), len(self.values) - 1)]

    def holds(self, value) -> bool:
        return value in self.values

    def terms(self, value, curved: bool) -> list[float]:
        """Of the fit: for each word but the first, whether it is that."""
        return [float(value == word) for word in self.values[1:]]

    def __str__(self) -> str:
        return ", ".join(map(str, self.values))


def draws(ranges: list[Range | Choice], count: int, seed: int) -> list[dict]:
    """The first `count` settings, {name: value}; more of them begin with the same."""
    shares = torch.quasirandom.SobolEngine(len(ranges), scramble=True, seed=seed).draw(count).tolist()
    return [{one.name: one.value(share) for one, share in zip(ranges, row)} for row in shares]


@dataclass(frozen=True)
class Estimate:
    """A value and half of its 95% interval (Student's)."""

    value: float
    half: float

    @property
    def clear(self) -> bool:
        """Whether zero lies outside."""
        return abs(self.value) > self.half


class Surface:
    """A least-squares fit of one figure of each trial by its settings: linear and squared terms, or linear ones where trials are few.

    Raises `ValueError` where trials are too few for that, too.
    """

    def __init__(self, ranges: list[Range | Choice], trials: list[dict], figures: list[float]):
        self.ranges = ranges
        self.curved = len(trials) >= self._unknowns(True) + SPARE
        if len(trials) < self._unknowns(self.curved) + SPARE:
            raise ValueError(f"{len(trials)} trials of {len(ranges)} settings: a fit takes {self._unknowns(False) + SPARE}")
        design, wanted = np.array([self.row(trial) for trial in trials]), np.array(figures)
        self.weights, _, rank, _ = np.linalg.lstsq(design, wanted, rcond=None)
        freedom = len(trials) - rank
        self.deviation = float(np.sqrt(((wanted - design @ self.weights) ** 2).sum() / freedom))  # of a trial, what the settings do not tell
        self.covariance, self.t = self.deviation**2 * np.linalg.pinv(design.T @ design), quantile(0.975, freedom)
        self.seen = np.linalg.pinv(design) @ design  # to which contrasts the trials have an answer: those that it leaves as they are

    def _unknowns(self, curved: bool) -> int:
        return 1 + sum(len(one.terms(one.value(0.5), curved)) for one in self.ranges)

    def row(self, trial: dict) -> np.ndarray:
        """The terms of a trial's settings, 1 first."""
        return np.array([1.0] + [term for one in self.ranges for term in one.terms(trial[one.name], self.curved)])

    def estimate(self, contrast: np.ndarray) -> Estimate:
        """Of a sum of the terms' weights; of one on which no trials bear, such as of a word whose trials all diverged, the interval has no end."""
        if abs(contrast @ self.seen - contrast).max() > 1e-6:
            return Estimate(float(contrast @ self.weights), math.inf)
        return Estimate(float(contrast @ self.weights), float(self.t * np.sqrt(max(contrast @ self.covariance @ contrast, 0.0))))

    def difference(self, one: dict, other: dict) -> Estimate:
        """How much more the figure is at some settings than at others."""
        return self.estimate(self.row(one) - self.row(other))

    def middle(self, one: Range) -> Estimate:
        """How much more the figure is at the middle of a range, which need not be a value that it takes, than at the mean of its two ends: where it is curved.

        The place is 0 in both, and its square 0 and 1.
        """
        before = self.ranges[: self.ranges.index(one)]
        contrast = np.zeros(len(self.weights))
        contrast[1 + sum(len(other.terms(other.value(0.5), self.curved)) for other in before) + 1] = -1.0
        return self.estimate(contrast)

    def at(self, trial: dict) -> Estimate:
        """The figure at some settings: of its mean, not of a single trial."""
        return self.estimate(self.row(trial))

    def best(self, own: dict, grid: int = 41) -> dict:
        """The settings at which the fit has the most: of those whose effect is clear; the others stay at their `own` value."""
        found = dict(own)
        for one in self.ranges:
            values = one.values if isinstance(one, Choice) else [one.value(k / (grid - 1)) for k in range(grid)]
            value = max(values, key=lambda v: float(self.row({**own, one.name: v}) @ self.weights))
            if self.difference({**own, one.name: value}, own).clear:
                found[one.name] = value
        return found
