"""What configurations that have something in common tell of each other.

Two that share a quantization, an engine or a setting are alike in part: a run of one is some evidence about the other.
A mixed linear model says how much: ``level = mean + Σ (what a trait adds) + (what is its own)``, the two spreads chosen by
restricted maximum likelihood (Patterson and Thompson 1971).  Where the traits explain nothing the estimates stay as they
are, drawn a little towards the mean as single noisy runs should be (James and Stein 1961).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

LEAST = 6  # arms, below which nothing can be said of what they share
OF_TRAITS = (0.0, 0.05, 0.1, 0.2, 0.4)  # standard deviations that are tried, in logarithms
OF_ITS_OWN = (0.01, 0.03, 0.06, 0.12, 0.25, 0.5)


def borrowed(
    levels: Mapping[str, float], errors: Mapping[str, float], traits: Mapping[str, Sequence[str]]
) -> tuple[dict[str, float], dict[tuple[str, str], float]]:
    """Better means, and the covariance of every pair, of levels measured with these standard errors."""
    import numpy as np

    arms = list(levels)
    measured = np.array([levels[arm] for arm in arms])
    own = [set(traits.get(arm, ())) for arm in arms]
    shared = np.array([[len(a & b) for b in own] for a in own], float)
    noise, alone, ones = np.diag([errors[arm] ** 2 for arm in arms]), np.eye(len(arms)), np.ones(len(arms))
    kernels = np.multiply.outer(np.square(OF_TRAITS), shared)[:, None] + np.multiply.outer(np.square(OF_ITS_OWN), alone)
    roots = np.linalg.cholesky(kernels + noise)
    white = np.linalg.solve(roots, np.column_stack([measured, ones]))
    level, one = white[..., 0], white[..., 1]
    weights = (one * one).sum(-1)
    rest = level - ((one * level).sum(-1) / weights)[..., None] * one
    determinants = np.log(np.diagonal(roots, axis1=-2, axis2=-1)).sum(-1)
    likelihood = -(rest * rest).sum(-1) / 2 - determinants - np.log(weights) / 2
    spread = kernels[np.unravel_index(likelihood.argmax(), likelihood.shape)]
    inverse = np.linalg.inv(spread + noise)
    weight = ones @ inverse @ ones
    middle = (ones @ inverse @ measured) / weight
    gain = spread @ inverse
    means = middle + gain @ (measured - middle)
    unsure = ones - gain @ ones  # of the mean itself
    covariance = spread - gain @ spread + np.outer(unsure, unsure) / weight
    pairs = {(a, b): float(covariance[i, j]) for i, a in enumerate(arms) for j, b in enumerate(arms)}
    return dict(zip(arms, means.tolist(), strict=True)), pairs
