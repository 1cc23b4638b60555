"""The table of an evaluation, from its records: as text for people, and as CSV with every digit."""

from __future__ import annotations

import csv
import math
import statistics
import textwrap
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cogen_fast.experiments.evaluate.record import Record

TAKEN = ("chains", "best", "mean", "oracle")
"""What is taken of a method's chains: see `cogen_fast.results.metrics.summarise`."""
_DIGITS = {"psnr": 2, "hidden_psnr": 2}
_NOTES = (
    "The numbers are means over images, with their standard errors. chains: the mean over an "
    "image's chains; best: the chain of lowest energy; mean: the mean image; oracle: the chain of "
    "lowest error, which cannot be chosen without the truth; single: the method has one chain. "
    "cost: forwards of all chains for an image, where a z-gradient counts as 2. accept: mean "
    "acceptance over the last quarter of a run.",
    "coverage: the share of hidden pixels whose true value lies in their credible interval, by the "
    "level of the interval.",
)


@dataclass(frozen=True)
class Row:
    """One method and what is taken of it; ``values`` are mean and standard error by metric.

    The standard error is NaN for one image; both are NaN if no image has a value. ``acceptance``
    and ``coverage`` (by level) are None if the method has none.
    """

    method: str
    taken: str
    images: int
    cost: float
    seconds: float
    values: dict[str, tuple[float, float]]
    acceptance: float | None
    coverage: dict[str, tuple[float, float]] | None


@dataclass(frozen=True)
class Table:
    """Rows over the images that every method has done, and what is missing of the other images.

    ``waiting`` is the number of images that some method has not done; ``broken`` has a line for
    each corrupt image.
    """

    rows: list[Row]
    waiting: int
    broken: list[str]

    def text(self) -> str:
        """The table as text, for people."""
        found = self.rows
        lines = [_head(found), *_lines(found)] if found else ["no image is done by every method"]
        chains = [row for row in found if row.taken == "chains"]
        lines += [_coverage(row) for row in chains if row.coverage is not None]
        if self.waiting:
            lines.append(f"{self.waiting} images are not done by every method yet")
        notes = (textwrap.fill(note, 98) for note in _NOTES if found)
        return "\n".join([*lines, *self.broken, *notes])

    def write(self, path: Path) -> None:
        """Write CSV: a line for each row and metric, with its mean and standard error."""
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(
                ["method", "taken", "images", "cost", "seconds", "metric", "mean", "standard_error"]
            )
            for row in self.rows:
                start = [row.method, row.taken, row.images, row.cost, row.seconds]
                for name, pair in row.values.items():
                    writer.writerow([*start, name, *pair])


def tabulated(records: Iterable[Record]) -> Table:
    """The table of records (of `evaluate.gather`), each of which is read once."""
    broken: list[str] = []
    # By the set of methods that have done an image; the set of all methods is known at the end.
    columns: dict[frozenset[str], dict[str, _Columns]] = {}
    counts: Counter[frozenset[str]] = Counter()
    for record in records:
        if "error" in record:
            broken.append(f"left out: {record['name']}: {record['error']}")
            continue
        names = frozenset(record["methods"])
        counts[names] += 1
        if names not in columns:
            columns[names] = {name: _Columns() for name in sorted(names)}
        for name, run in record["methods"].items():
            columns[names][name].add(run)
    every = frozenset().union(*columns)
    done = columns.get(every, {})
    rows = [found.row(name, taken) for name, found in done.items() for taken in TAKEN]
    return Table(rows, counts.total() - counts[every], broken)


class _Columns:
    """The numbers of a method's runs that a table needs, eight bytes each: NaN if not known."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[str, str], array[float]] = {}

    def add(self, run: Record) -> None:
        """Add those of one more image."""
        for taken in TAKEN:
            for name, chains in run["metrics"][taken].items():
                self._put(taken, name, mean_and_error(chains)[0])
        for name in ("cost", "seconds"):
            self._put("run", name, run[name])
        if "acceptance" in run:
            self._put("run", "acceptance", mean_and_error(run["acceptance"])[0])
        for level, share in run.get("coverage", {}).items():
            self._put("coverage", level, math.nan if share is None else share)

    def row(self, method: str, taken: str) -> Row:
        """The row of what is taken of the method."""
        run, coverage = self._pairs("run"), self._pairs("coverage")
        return Row(
            method,
            taken,
            len(self._numbers["run", "cost"]),
            run["cost"][0],
            run["seconds"][0],
            self._pairs(taken),
            run["acceptance"][0] if "acceptance" in run else None,
            coverage or None,
        )

    def _put(self, kind: str, name: str, number: float) -> None:
        self._numbers.setdefault((kind, name), array("d")).append(number)

    def _pairs(self, kind: str) -> dict[str, tuple[float, float]]:
        """Mean and standard error by name."""
        return {
            name: mean_and_error(numbers)
            for (each, name), numbers in self._numbers.items()
            if each == kind
        }


def mean_and_error(values: Iterable[float | None]) -> tuple[float, float]:
    """Mean and standard error of the finite values; NaN if they are not known."""
    known = [v for v in values if v is not None and math.isfinite(v)]
    if not known:
        return math.nan, math.nan
    error = statistics.stdev(known) / len(known) ** 0.5 if len(known) > 1 else math.nan
    return statistics.fmean(known), error


def _head(found: Sequence[Row]) -> str:
    names = "".join(f"{name:>18}" for name in found[0].values)
    return f"{'method':<16}{'taken':<8}{'images':>7}{'cost':>10}{'s':>8}{'accept':>8}{names}"


def _lines(found: Sequence[Row]) -> list[str]:
    """A line for each row; one line for a method of single chains, whose rows are all the same."""
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
