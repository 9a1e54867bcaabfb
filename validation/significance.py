"""Exact binomial tests of many points at once, with a bound on the probability of any false alarm."""

import numpy as np
from scipy import stats


def binomial_p(successes: np.ndarray, draws: int, probability: np.ndarray) -> np.ndarray:
    """Two-sided p value of each count under Binomial(draws, probability); 0 or 1 are tested exactly."""
    low = stats.binom.cdf(successes, draws, probability)
    high = stats.binom.sf(successes - 1, draws, probability)
    return np.minimum(1.0, 2 * np.minimum(low, high))


def same_rate_p(first: np.ndarray, second: np.ndarray, draws: int) -> np.ndarray:
    """Two-sided p value (Fisher's exact test) of two counts, each out of ``draws``, having one probability."""
    total = first + second
    low = stats.hypergeom.cdf(first, 2 * draws, total, draws)
    high = stats.hypergeom.sf(first - 1, 2 * draws, total, draws)
    return np.minimum(1.0, 2 * np.minimum(low, high))


def total_p(successes: np.ndarray, draws: int, probability: np.ndarray) -> float:
    """Two-sided p value of the sum of all counts: sees a small error that all points share.

    Normal approximation to the sum of binomials; 1 if no probability lies between 0 and 1.
    """
    spread = np.sqrt((draws * probability * (1 - probability)).sum())
    if spread == 0:
        return 1.0
    return float(2 * stats.norm.sf(abs((successes - draws * probability).sum()) / spread))


def binomial_band(draws: int, probability: np.ndarray, false_alarm: float) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest share of successes that a two-sided test at level ``false_alarm`` accepts."""
    low, high = stats.binom.interval(1 - false_alarm, draws, probability)
    return low / draws, high / draws
