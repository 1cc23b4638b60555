"""Arithmetic of log weights and genealogies, from plain tensors."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def normalised_weights(log_weights: Tensor) -> Tensor:
    """Weights ``(..., N)`` that sum to one over chains."""
    return torch.softmax(log_weights, dim=-1)


def effective_sample_size(log_weights: Tensor) -> Tensor:
    """``(sum w)^2 / sum w^2`` of log weights ``(..., N)``; shape ``(...)``, from 1 to N."""
    w = normalised_weights(log_weights)
    return 1.0 / (w * w).sum(-1)


def log_mean_weight(log_weights: Tensor) -> Tensor:
    """Logarithm of the mean weight, the estimate of the log ratio of normalisers (Neal 2001)."""
    return torch.logsumexp(log_weights, dim=-1) - math.log(log_weights.shape[-1])


def surviving_roots(roots: Tensor) -> Tensor:
    """How many prior draws still have descendants, ``(...)`` int64, of roots ``(..., N)``."""
    ordered = roots.sort(-1).values
    return 1 + (ordered[..., 1:] != ordered[..., :-1]).sum(-1)


def second_order(variance: Tensor, particles: int) -> Tensor:
    """The variance of a log normaliser, from the sum of the variances of its factors' logs.

    The relative variance of a product of independent factors is ``exp(v) - 1``, of which the first
    two terms are taken; and ``2 / N`` of it more for the N particles themselves, whose products
    are left out of that sum. Held to measured errors in ``benchmarks/exact_posteriors.py``.
    """
    variance = variance * (1.0 + 2.0 / particles)
    return variance * (1.0 + 0.5 * variance)


def variance_between(log_means: Tensor) -> Tensor:
    """Relative variance of the mean of R independent estimates, ``(B, R)`` logarithms; ``(B,)``.

    0 for a single one, which cannot tell.
    """
    shares, count = normalised_weights(log_means), log_means.shape[-1]
    return ((shares**2).sum(-1) * count - 1.0).clamp(min=0.0) / max(count - 1, 1)


def deviation_of_mean(log_means: Tensor) -> Tensor:
    """Standard error of the mean of R independent logarithms ``(B, R)``, ``(B,)``; 0 for one.

    Unlike `variance_between`, at most 1, it has no bound, and says how far apart two of them are.
    """
    count = log_means.shape[-1]
    return (
        log_means.std(-1) / math.sqrt(count) if count > 1 else torch.zeros_like(log_means[..., 0])
    )


def variance_if_gaussian(log_weights: Tensor) -> Tensor:
    """Relative variance of the mean of N weights, if their logarithms are Gaussian, ``(...)``.

    By the deviation of the bulk of the logarithms, which even few weights tell. The sample variance
    of the weights themselves rests on the few largest, and is too small where these are missing.
    """
    count = log_weights.shape[-1]
    squared = robust_deviation(log_weights) ** 2 * (1.0 + 2.0 / count)
    return torch.expm1(squared) / count


def variance_is_reliable(log_weights: Tensor) -> Tensor:
    """Whether weights ``(..., N)`` are even enough to tell their own variance, ``(...)``.

    An effective ``2 sqrt(N)``: with fewer, what a mean of heavy-tailed weights misses is in
    draws that are not there.
    """
    return effective_sample_size(log_weights) >= 2.0 * math.sqrt(log_weights.shape[-1])


def error_of_log(variance: Tensor) -> Tensor:
    """Root mean square error of the log of an unbiased estimate of that relative ``variance``.

    With its bias, to first order minus half of the variance.
    """
    return (variance + 0.25 * variance**2).sqrt()


def nan_where_unknown(error: Tensor, known: Tensor) -> Tensor | None:
    """``error`` ``(B,)``, NaN where it is not ``known``; None where that is nowhere."""
    return torch.where(known, error, torch.nan) if bool(known.any()) else None


def robust_deviation(values: Tensor) -> Tensor:
    """Standard deviation of ``(..., N)`` that a few far-off values cannot make large, ``(...)``.

    About the median, each distance at most three times what their median says of a Gaussian; 0 for
    a single value.
    """
    distance = (values - values.median(-1, keepdim=True).values).abs()
    most = 3.0 * 1.4826 * distance.median(-1, keepdim=True).values
    limited = torch.where(most > 0.0, torch.minimum(distance, most), distance)
    return (limited**2).sum(-1).div(max(values.shape[-1] - 1, 1)).sqrt()
