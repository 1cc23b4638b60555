"""What an evaluation keeps of a `Result`: an image's numbers, for JSON, and 8-bit pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cogen_fast.experiments.evaluate.nuts import NUTS
from cogen_fast.experiments.evaluate.tasks import Case
from cogen_fast.results import metrics
from cogen_fast.results.result import ANNEALED, Result

Record = dict[str, Any]
_END = 4  # acceptance is averaged over the last quarter of a run


def record_of(result: Result, case: Case, b: int) -> Record:
    """The record of observation ``b``; "metrics" are those of `metrics.summarise`.

    If samples were polished, metrics are those of the fits, whose mean image is `Result.estimate`;
    coverage is always that of the samples.
    """
    truth, hidden = case.truth[b].cpu(), case.hidden[b].cpu()
    weights = None if result.log_weights is None else result.weights[b]
    images, energies, shares = result.images[b], result.energies[b], weights
    if result.fit_images is not None and result.fit_energies is not None:
        images, energies, shares = (
            result.fit_images[b],
            result.fit_energies[b],
            result.fit_weights[b],
        )
    record: Record = {
        "cost": result.cost,
        "energies": energies.tolist(),
        "metrics": metrics.summarise(images, truth, energies, hidden, weights=shares),
        "diagnosis": result.diagnose(),
    }
    method = result.settings["method"]
    if method in ANNEALED:
        each = result.acceptance.shape[1] // len(result.images)
        columns = result.acceptance[:, b * each : (b + 1) * each]
        record["acceptance"] = [_end(column) for column in columns.T]
    if method in ("sir", NUTS) or method in ANNEALED:
        found = metrics.coverage(result.images[b], truth, hidden, weights=weights).tolist()
        record["coverage"] = dict(zip(map(str, metrics.LEVELS), found, strict=True))
    return record


def _end(column: Tensor) -> float:
    """The mean of the last quarter of what was reached; NaN if nothing was."""
    known = column[column.isfinite()]
    return float(known[-max(1, len(known) // _END) :].mean())


def pictures_of(result: Result) -> dict[str, npt.NDArray[np.uint8]]:
    """Of each image the best output by energy, and the mean of fits or samples.

    Both are ``(B, C, H, W)`` uint8.
    """
    mean = result.estimate
    if result.fit_images is None:
        mean = result.mean(weighted=result.log_weights is not None)
    return {"best": _levels(result.fit), "mean": _levels(mean)}


def _levels(images: Tensor) -> npt.NDArray[np.uint8]:
    levels: npt.NDArray[np.uint8] = (
        ((images.clamp(-1.0, 1.0) + 1.0) * 127.5).round().to(torch.uint8).numpy()
    )
    return levels


def plain(value: Any) -> Any:
    """The value, with None for numbers that JSON cannot represent."""
    if isinstance(value, Mapping):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
