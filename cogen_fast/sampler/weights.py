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


def genealogical_variance(log_weights: Tensor, roots: Tensor, resamplings: Tensor) -> Tensor:
    """Relative variance of the mean weight of one population, ``(B,)``.

    Lee and Whiteley 2018, eq. 7, with the weights since the last resampling: particles that descend
    from different prior draws (``roots`` ``(B, N)``) are all but independent, so what they disagree
    about is the error; without ``resamplings`` ``(B,)`` it is the usual variance of a mean. For
    multinomial resampling; systematic resampling errs less. NaN where too few roots are left to say
    (fewer than four, by weight).
    """
    weights = normalised_weights(log_weights)
    concentration = (torch.zeros_like(weights).scatter_add(-1, roots, weights) ** 2).sum(-1)
    count = weights.shape[-1]
    factor = (count / max(count - 1, 1)) ** (resamplings.double() + 1.0)
    variance = 1.0 - factor * (1.0 - concentration)
    known = (concentration * LEAST_ROOTS <= 1.0) & (variance >= 0.0)
    return torch.where(known, variance, torch.nan)
