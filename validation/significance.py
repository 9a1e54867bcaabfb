"""Tests of counts (exact, at many points at once) and of distributions."""

import math

import numpy as np
from scipy import stats


def binomial_p(successes: np.ndarray, draws: int, probability: np.ndarray) -> np.ndarray:
    """Two-sided p value (twice the smaller tail) of each count under Binomial(draws, probability); 0, 1 are exact."""
    low = stats.binom.cdf(successes, draws, probability)
    high = stats.binom.sf(successes - 1, draws, probability)
    return np.minimum(1.0, 2 * np.minimum(low, high))


def same_rate_p(first: np.ndarray, second: np.ndarray, draws: int) -> np.ndarray:
    """Two-sided p value (twice the smaller tail) of Fisher's exact test that two counts, of ``draws``, share a rate."""
    total = first + second
    low = stats.hypergeom.cdf(first, 2 * draws, total, draws)
    high = stats.hypergeom.sf(first - 1, 2 * draws, total, draws)
    return np.minimum(1.0, 2 * np.minimum(low, high))


def total_p(successes: np.ndarray, draws: int, probability: np.ndarray) -> float:
    """Two-sided p value of the sum of all counts: sees a small error that all points share.

    Normal approximation to the sum of binomials. If no probability lies between 0 and 1, it is 1 for the one sum that
    can be, and 0 for others.
    """
    spread = np.sqrt((draws * probability * (1 - probability)).sum())
    if spread == 0:
        return float((successes == draws * probability).all())
    return float(2 * stats.norm.sf(abs((successes - draws * probability).sum()) / spread))


def binomial_band(draws: int, probability: np.ndarray, false_alarm: float) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest share of successes that a two-sided binomial test at level ``false_alarm`` accepts."""
    low, high = stats.binom.interval(1 - false_alarm, draws, probability)
    return low / draws, high / draws


def standardised(changes: np.ndarray, together: np.ndarray) -> np.ndarray:
    """Changes (repeats, synapses) in each synapse's standard deviations from its mean.

    Mean and deviation are those of ``together``, (any repeats, synapses). Synapses that never vary in it are left out.
    """
    mean, deviation = together.mean(0), together.std(0)
    vary = deviation > 1e-12
    return (changes - mean)[:, vary] / deviation[vary]


def same_distribution_p(first: np.ndarray, second: np.ndarray) -> float:
    """p value of the two-sample Kolmogorov-Smirnov test on all changes (repeats, synapses) of two samples.

    Both samples are standardised together, so that equal distributions stay equal. NaN if a change is not finite.
    """
    together = np.concatenate([first, second])
    if not np.isfinite(together).all():
        return math.nan
    one, other = (standardised(sample, together).ravel() for sample in (first, second))
    return float(stats.ks_2samp(one, other, method="asymp").pvalue) if one.size else 1.0


def same_spread_p(first: np.ndarray, second: np.ndarray) -> float:
    """p value of the Brown-Forsythe test that the sum over all synapses has equal spread in both samples.

    A difference shows that the synapses of one sample do not draw independently. Each synapse counts in the direction
    of its mean change, so that LTP and LTD that occur together add up.
    """
    together = np.concatenate([first, second])
    directed = np.where(together.mean(0) < 0, -1.0, 1.0)
    one, other = (standardised(sample * directed, together * directed).sum(1) for sample in (first, second))
    return float(stats.levene(one, other, center="median").pvalue)
