"""Numbers that say how far a run is to be trusted, from plain tensors."""

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


def genealogical_variance(log_weights: Tensor, roots: Tensor, resamplings: Tensor) -> Tensor:
    """Relative variance of the mean weight of one resampled population, ``(B,)``.

    Lee and Whiteley 2018, eq. 7, with the weights since the last resampling: particles that descend
    from different prior draws (``roots`` ``(B, N)``) are all but independent, so what they disagree
    about is the error. For multinomial resampling; systematic resampling errs less. Means little
    (and may be negative) where few roots survive ``resamplings`` ``(B,)``.
    """
    weights = normalised_weights(log_weights)
    by_root = torch.zeros_like(weights).scatter_add(-1, roots, weights)
    count = weights.shape[-1]
    factor = (count / max(count - 1, 1)) ** (resamplings.double() + 1.0)
    return 1.0 - factor * (1.0 - (by_root * by_root).sum(-1))
