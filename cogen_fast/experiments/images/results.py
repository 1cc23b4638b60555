"""The results of the image study: numbers by method, from the records of its evaluations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cogen_fast.experiments.evaluate.evaluate import Study, gather, posed
from cogen_fast.experiments.evaluate.record import Record
from cogen_fast.experiments.evaluate.table import Table, mean_and_error, tabulated
from cogen_fast.experiments.evaluate.tuning import tunings
from cogen_fast.experiments.images.plan import (
    CURVES,
    DEFAULT,
    SAMPLED,
    Effort,
    Part,
)

METRICS = {
    "mse": "MSE (pixels in [-1, 1])",
    "ssim": "SSIM",
    "ms_ssim": "MS-SSIM (two scales at 32 px)",
}
ESTIMATE = (DEFAULT, "mean")
"""What all others are compared with: `Result.estimate` of the default."""
STUCK = 0.05
"""The acceptance at the end of a run below which a chain counts as stuck."""
Pair = tuple[float, float]


@dataclass(frozen=True)
class PartResults:
    """A part of the study with its records, and what `tuned` has found.

    ``tunings`` has, by method, its learning rate and grid (`cogen_fast.methods.baselines.Tuning`).
    ``residuals`` has, by method, for each image's chain of lowest energy the root mean square error
    of what is observed, in units of the pixels.
    """

    part: Part
    study: Study
    out: Path
    tunings: Mapping[str, Mapping[str, Any]]
    records: tuple[Record, ...]
    residuals: Mapping[str, tuple[float, ...]]

    @cached_property
    def table(self) -> Table:
        """The table of the records."""
        return tabulated(self.records)

    @property
    def kind(self) -> str:
        """The kind of images: one of `plan.KINDS`."""
        return self.part.kind

    @property
    def is_main(self) -> bool:
        """Whether all methods ran, and not only those of figure 4."""
        return self.part.methods != CURVES


@dataclass(frozen=True)
class Line:
    """A method's numbers in a part: means over images and their standard errors.

    ``taken`` is "best", the chain of lowest energy, or "mean", the mean image of the chains (for
    the default its estimate). ``residual`` is known for chains only. ``excess`` is by how much the
    error is above that of `ESTIMATE`, paired by image. ``acceptance``, at the end of runs, and the
    share of ``stuck`` chains are None for methods without acceptance tests.
    """

    method: str
    taken: str
    cost: float
    seconds: float
    residual: Pair | None
    values: Mapping[str, Pair]
    excess: Pair
    acceptance: float | None
    stuck: float | None


def part_results(part: Part, folder: Path, effort: Effort, seed: int) -> PartResults:
    """The results of a part, from the study's folder; corrupt images are left out."""
    out, study = part.folder(folder), part.study(effort, seed)
    records = [r for r in gather(out) if "methods" in r and r["image"] < part.images]
    residuals: dict[str, list[float]] = {name: [] for name in part.methods}
    for record in records:
        case = posed(study, {record["image"]: part.data.load(record["image"])})
        entries = int(case.x_obs.isfinite().sum())
        for name, values in residuals.items():
            lowest = min(e for e in record["methods"][name]["energies"] if e is not None)
            values.append((lowest / part.weight(name) / entries) ** 0.5)
    kept = {name: tuple(values) for name, values in residuals.items()}
    rates = tunings(out, study, part.images, effort.grid)
    return PartResults(part, study, out, rates, tuple(records), kept)


def all_tunings(results: Sequence[PartResults]) -> dict[str, Mapping[str, Any]]:
    """All tunings, by the part's name and the method."""
    return {
        f"{result.part.name}/{method}": tuning
        for result in results
        for method, tuning in result.tunings.items()
    }


def lines(result: PartResults) -> list[Line]:
    """A line for each method, and for each method with many chains another for their mean image."""
    rows = {(row.method, row.taken): row for row in result.table.rows}
    found_lines = []
    for method in result.part.methods:
        for taken in ("best", "mean") if method in SAMPLED else ("best",):
            row = rows[method, taken]
            found_lines.append(
                Line(
                    method,
                    taken,
                    row.cost,
                    row.seconds,
                    mean_and_error(result.residuals[method]) if taken == "best" else None,
                    row.values,
                    _excess(result.records, method, taken),
                    row.acceptance,
                    _stuck(result.records, method),
                )
            )
    return found_lines


def errors(records: Sequence[Record], method: str, taken: str, metric: str) -> list[float]:
    """A metric of each image."""
    return [record["methods"][method]["metrics"][taken][metric][0] for record in records]


def kinds_of(results: Sequence[PartResults]) -> tuple[str, ...]:
    """The kinds of images that the results have, in order."""
    return tuple(dict.fromkeys(result.kind for result in results))


def over_training(results: Sequence[PartResults]) -> bool:
    """Whether there are results of earlier snapshots."""
    return not all(result.is_main for result in results)


def curve(
    results: Sequence[PartResults], kind: str, images: int
) -> list[tuple[int, dict[str, Any]]]:
    """For each snapshot the images shown and, by method, the ``values`` of a row of the table.

    They are of the task of the first result, the methods of figure 4 and the first ``images``
    images only; for the default they are those of its estimate.
    """
    points = []
    for result in results:
        if result.kind != kind or result.part.task != results[0].part.task:
            continue
        few = [
            record | {"methods": {name: record["methods"][name] for name in CURVES}}
            for record in result.records
            if record["image"] < images
        ]
        answers = {name: "best" for name in CURVES} | dict([ESTIMATE])
        rows = {r.method: r.values for r in tabulated(few).rows if r.taken == answers[r.method]}
        points.append((result.part.snapshot.shown, rows))
    return sorted(points, key=lambda point: point[0])


def _excess(records: Sequence[Record], method: str, taken: str) -> Pair:
    estimate, own = errors(records, *ESTIMATE, "mse"), errors(records, method, taken, "mse")
    return mean_and_error(mine - theirs for theirs, mine in zip(estimate, own, strict=True))


def _stuck(records: Sequence[Record], method: str) -> float | None:
    runs = [record["methods"][method].get("acceptance") for record in records]
    if runs[0] is None:
        return None
    chains: list[float] = [value for run in runs for value in run if value is not None]
    if not chains:  # the budget allowed no move
        return None
    return sum(value < STUCK for value in chains) / len(chains)
