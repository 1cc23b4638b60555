"""Log weights: effective sample sizes, log normalisers and their errors, from plain tensors."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def normalised_weights(log_weights: Tensor) -> Tensor:
    """Weights ``(..., N)`` that sum to one over the last dimension."""
    return torch.softmax(log_weights, dim=-1)


def effective_sample_size(log_weights: Tensor) -> Tensor:
    """``(sum w)^2 / sum w^2`` of log weights ``(..., N)``; shape ``(...)``, from 1 to N."""
    w = normalised_weights(log_weights)
    return 1.0 / (w * w).sum(-1)


def log_mean_weight(log_weights: Tensor) -> Tensor:
    """Logarithm of the mean weight, the estimate of the log ratio of normalisers (Neal 2001)."""
    return torch.logsumexp(log_weights, dim=-1) - math.log(log_weights.shape[-1])


def surviving_roots(roots: Tensor) -> Tensor:
    """The number of different prior draws among the ``roots`` ``(..., N)``, ``(...)`` int64."""
    ordered = roots.sort(-1).values
    return 1 + (ordered[..., 1:] != ordered[..., :-1]).sum(-1)


def second_order(variance: Tensor, particles: int) -> Tensor:
    """The relative variance of a normaliser to second order, from its first-order ``variance``.

    The first-order variance v sums the variances of the logarithms of the factors. The relative
    variance of a product of independent factors is ``exp(v) - 1``, of which the first two terms are
    taken. The factor ``1 + 2 / N`` is for the products of contributions of the N particles, which
    the sum leaves out. ``benchmarks/exact_posteriors.py`` compares the result with measured errors.
    """
    variance = variance * (1.0 + 2.0 / particles)
    return variance * (1.0 + 0.5 * variance)


def variance_between(log_means: Tensor) -> Tensor:
    """Relative variance of the mean of R independent estimates, ``(B,)``.

    ``log_means`` ``(B, R)`` are the estimates' logarithms. The value lies between 0 and 1, and is 0
    for a single estimate, of which no variance can be estimated.
    """
    shares, count = normalised_weights(log_means), log_means.shape[-1]
    return ((shares**2).sum(-1) * count - 1.0).clamp(min=0.0) / max(count - 1, 1)


def deviation_of_mean(log_means: Tensor) -> Tensor:
    """Standard error of the mean of R independent logarithms ``(B, R)``, ``(B,)``; 0 for one.

    `variance_between` is at most 1. This error has no bound, so that it shows how far apart even
    two estimates are.
    """
    count = log_means.shape[-1]
    return (
        log_means.std(-1) / math.sqrt(count) if count > 1 else torch.zeros_like(log_means[..., 0])
    )


def variance_if_gaussian(log_weights: Tensor) -> Tensor:
    """Relative variance of the mean of N weights, if their logarithms are Gaussian, ``(...)``.

    It follows from the standard deviation of the bulk of the logarithms, which a few weights are
    enough to estimate. The sample variance of the weights themselves depends on the few largest,
    and is too small where the sample lacks these.
    """
    count = log_weights.shape[-1]
    squared = robust_deviation(log_weights) ** 2 * (1.0 + 2.0 / count)
    return torch.expm1(squared) / count


def variance_is_reliable(log_weights: Tensor) -> Tensor:
    """Whether weights ``(..., N)`` are even enough to estimate their own variance, ``(...)``.

    The criterion is an effective sample size of at least ``2 sqrt(N)``: below it, the error of a
    mean of heavy-tailed weights comes from large weights that the sample does not contain.
    """
    return effective_sample_size(log_weights) >= 2.0 * math.sqrt(log_weights.shape[-1])


def error_of_log(variance: Tensor) -> Tensor:
    """Root mean square error of the log of an unbiased estimate with relative ``variance``.

    It includes the bias of the logarithm, which is to first order minus half of the variance.
    """
    return (variance + 0.25 * variance**2).sqrt()


def nan_where_unknown(error: Tensor, known: Tensor) -> Tensor | None:
    """``error`` ``(B,)`` with NaN where it is not ``known``; None if it is known nowhere."""
    return torch.where(known, error, torch.nan) if bool(known.any()) else None


def robust_deviation(values: Tensor) -> Tensor:
    """Standard deviation of ``(..., N)`` that is robust against a few outliers, ``(...)``.

    It is taken about the median. Each distance counts as at most three times the standard deviation
    that the median distance implies for a Gaussian, unless the median distance is 0. The result is
    0 for a single value.
    """
    distance = (values - values.median(-1, keepdim=True).values).abs()
    most = 3.0 * 1.4826 * distance.median(-1, keepdim=True).values
    limited = torch.where(most > 0.0, torch.minimum(distance, most), distance)
    return (limited**2).sum(-1).div(max(values.shape[-1] - 1, 1)).sqrt()
