"""The table of an evaluation, from its records: as text for people, and as CSV with every digit."""

from __future__ import annotations

import csv
import math
import statistics
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cogen_fast.experiments.evaluation_record import Record
from cogen_fast.files import write_atomically

TAKEN = ("chains", "best", "mean", "oracle")
"""What is taken of a method's chains: see `cogen_fast.metrics.summarise`."""
_DIGITS = {"psnr": 2, "hidden_psnr": 2}
_NOTES = (
    "Means over images, with their standard errors. chains: the mean over an image's chains; best: "
    "the chain of lowest energy; mean: the mean image; oracle: the chain of lowest error, which "
    "only who knows the truth can choose; single: there is one chain only. cost: forwards for each "
    "image by all chains, where a z-gradient counts as 2. accept: mean acceptance over the last "
    "quarter of a run.",
    "coverage: share of hidden pixels whose truth lies in their credible interval, by its level.",
)


@dataclass(frozen=True)
class Row:
    """One method and what is taken of it; ``values`` are mean and standard error by metric.

    The standard error is NaN for one image, both are where no image has a value. ``acceptance`` and
    ``coverage`` (by level) are None where the method has none.
    """

    method: str
    taken: str
    images: int
    cost: float
    seconds: float
    values: dict[str, tuple[float, float]]
    acceptance: float | None
    coverage: dict[str, tuple[float, float]] | None


def rows(records: Sequence[Record]) -> list[Row]:
    """Rows of the records (`gather`): only of images that every method has done."""
    done = _done(records)
    names = sorted(done[0]["methods"]) if done else []
    return [
        _row(name, taken, [r["methods"][name] for r in done]) for name in names for taken in TAKEN
    ]


def text(records: Sequence[Record]) -> str:
    """The table, and what is missing from it."""
    found = rows(records)
    broken = [record for record in records if "error" in record]
    waiting = len(records) - len(broken) - len(_done(records))
    lines = [_head(found), *_lines(found)] if found else ["no image is done by every method"]
    lines += [_coverage(row) for row in found if row.coverage is not None and row.taken == "chains"]
    if waiting:
        lines.append(f"{waiting} images are not done by every method yet")
    lines += [f"left out: {record['name']}: {record['error']}" for record in broken]
    return "\n".join([*lines, *(textwrap.fill(note, 98) for note in _NOTES if found)])


def write(path: Path, records: Sequence[Record]) -> None:
    """As CSV: a line for each row and metric, with its mean and standard error."""
    write_atomically(path, lambda file: _write(file, rows(records)))


def _done(records: Sequence[Record]) -> list[Record]:
    names = {name for record in records for name in record.get("methods", {})}
    return [record for record in records if set(record.get("methods", {})) == names and names]


def _row(method: str, taken: str, runs: Sequence[Record]) -> Row:
    metrics = runs[0]["metrics"][taken]
    values = {
        name: mean_and_error(mean_and_error(run["metrics"][taken][name])[0] for run in runs)
        for name in metrics
    }
    acceptance = None
    if "acceptance" in runs[0]:
        acceptance = mean_and_error(mean_and_error(run["acceptance"])[0] for run in runs)[0]
    coverage = None
    if "coverage" in runs[0]:
        levels = runs[0]["coverage"]
        coverage = {
            level: mean_and_error(run["coverage"][level] for run in runs) for level in levels
        }
    cost, seconds = (mean_and_error(run[name] for run in runs)[0] for name in ("cost", "seconds"))
    return Row(method, taken, len(runs), cost, seconds, values, acceptance, coverage)


def mean_and_error(values: Iterable[float | None]) -> tuple[float, float]:
    """Mean and standard error of what is a number; NaN where they are not known."""
    known = [v for v in values if v is not None and math.isfinite(v)]
    if not known:
        return math.nan, math.nan
    error = statistics.stdev(known) / len(known) ** 0.5 if len(known) > 1 else math.nan
    return statistics.fmean(known), error


def _head(found: Sequence[Row]) -> str:
    names = "".join(f"{name:>18}" for name in found[0].values)
    return f"{'method':<16}{'taken':<8}{'images':>7}{'cost':>10}{'s':>8}{'accept':>8}{names}"


def _lines(found: Sequence[Row]) -> list[str]:
    """A line for each row, or one for a method of single chains, where all that is taken is one."""
    lines: list[str] = []
    for start in range(0, len(found), len(TAKEN)):
        each = found[start : start + len(TAKEN)]
        single = {_line(replace(row, taken="single")) for row in each}
        lines += single if len(single) == 1 else map(_line, each)
    return lines


def _line(row: Row) -> str:
    accept = "" if row.acceptance is None else f"{row.acceptance:.2f}"
    cells = "".join(f"{_shown(name, *pair):>18}" for name, pair in row.values.items())
    start = f"{row.method:<16}{row.taken:<8}{row.images:>7}{row.cost:>10,.0f}{row.seconds:>8.1f}"
    return f"{start}{accept:>8}{cells}"


def _shown(name: str, mean: float, error: float) -> str:
    digits = _DIGITS.get(name, 4)
    known = "" if math.isnan(error) else f" ({error:.{digits}f})"
    return "" if math.isnan(mean) else f"{mean:.{digits}f}{known}"


def _coverage(row: Row) -> str:
    assert row.coverage is not None
    shares = [
        f"{level}: {_shown('', *pair) or 'too few samples'}" for level, pair in row.coverage.items()
    ]
    return f"coverage of {row.method}: {', '.join(shares)}"


def _write(path: Path, found: Sequence[Row]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["method", "taken", "images", "cost", "seconds", "metric", "mean", "standard_error"]
        )
        for row in found:
            start = [row.method, row.taken, row.images, row.cost, row.seconds]
            for name, pair in row.values.items():
                writer.writerow([*start, name, *pair])
