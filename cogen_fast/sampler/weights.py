"""Arithmetic of log weights and genealogies, from plain tensors."""

from __future__ import annotations

import math

import torch
from torch import Tensor

LEAST_ROOTS = 4


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


def genealogical_variance(log_weights: Tensor, roots: Tensor) -> Tensor:
    """Relative variance of the mean weight of one population, ``(B,)``.

    By the genealogy (Lee and Whiteley 2018): particles that descend from different prior draws
    (``roots`` ``(B, N)``) are all but independent, so this is the usual variance of a mean, over
    the draws' shares of the weight. It takes nothing off for the resamplings, as the published
    estimator for multinomial resampling does by a factor ``N / (N - 1)`` each: systematic
    resampling adds next to no variance. NaN where too few roots are left to say (fewer than four,
    by weight).
    """
    weights = normalised_weights(log_weights)
    concentration = (torch.zeros_like(weights).scatter_add(-1, roots, weights) ** 2).sum(-1)
    count = weights.shape[-1]
    variance = (concentration * count - 1.0).clamp(min=0.0) / max(count - 1, 1)
    return torch.where(concentration * LEAST_ROOTS <= 1.0, variance, torch.nan)
