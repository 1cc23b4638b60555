"""The image study in words and tables; every number and verdict is computed from the records."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from cogen_fast.experiments.evaluate.nuts import NUTS
from cogen_fast.experiments.images.plan import (
    CURVES,
    DEFAULT,
    KINDS,
    MULTI_STARTS,
    NOISE_STD,
    PRESET,
    SCALED,
    TUNING_IMAGES,
    Effort,
)
from cogen_fast.experiments.images.results import (
    ESTIMATE,
    METRICS,
    STUCK,
    Line,
    Pair,
    PartResults,
    all_tunings,
    curve,
    kinds_of,
    lines,
    over_training,
)
from cogen_fast.sampler.tuning import POPULATION
from cogen_fast.support.files import write_atomically

FILES = ("report.md", "table.txt", "table.csv")
_HEAD = (
    "method",
    "taken",
    "cost",
    "observed, RMS",
    "MSE",
    "hidden MSE",
    "SSIM",
    "MS-SSIM",
    "MSE above the default's",
    "accepted",
    "stuck",
    "s",
)
_PLACE = ("images_of", "task", "generator", "images")
_VALUE = ("metric", "mean", "standard_error")
_METRICS = ("mse", "hidden_mse", "ssim", "ms_ssim")
_CLEAR = 2.0  # standard errors
_NUTS_NOTE = (
    f"{NUTS}: Pyro's NUTS, one chain at noise_std {NOISE_STD:g} from the best of as many draws; "
    "best: its sample of lowest energy; mean: the mean image of its samples."
)
_VERDICTS = (
    "Better than",
    "Not distinguished from",
    "Worse than",
    "Not compared, with one image, with",
)


def write(out: Path, report: str, results: Sequence[PartResults]) -> None:
    """Write all of `FILES`; ``report`` is the result of `text`."""
    for name, content in zip(FILES, (report, _full(results)), strict=False):
        write_atomically(out / name, partial(Path.write_text, data=content + "\n"))
    write_atomically(out / FILES[2], lambda file: _write_csv(file, results))


def text(results: Sequence[PartResults], effort: Effort) -> str:
    """The report: what was run, a table for each kind of images and task, and what they show."""
    blocks = ["# Image study", _settings(results, effort), summary_of(results)]
    for kind in kinds_of(results):
        blocks.append(f"## {KINDS[kind][0].upper()}{KINDS[kind][1:]}")
        for result in results:
            if result.kind == kind and result.is_main:
                blocks += [f"### {result.part.task}", *_part(result)]
        if over_training(results):
            title = f"### {results[0].part.task}, over the training"
            blocks += [title, _training(results, kind, effort)]
    return "\n\n".join(blocks)


def verdicts(found: Sequence[Line]) -> list[str]:
    """For all except the default's estimate: whether errors differ by `_CLEAR` standard errors."""
    by_verdict: dict[str, list[str]] = {}
    for line in found:
        if (line.method, line.taken) != ESTIMATE:
            by_verdict.setdefault(_verdict(line.excess), []).append(_label(line))
    return [
        f"{verdict} the default's estimate: {', '.join(by_verdict[verdict])}."
        for verdict in _VERDICTS
        if verdict in by_verdict
    ]


def _verdict(excess: Pair) -> str:
    mean, error = excess
    if error != error:
        return _VERDICTS[3]
    if abs(mean) <= _CLEAR * error:
        return _VERDICTS[1]
    return _VERDICTS[2 if mean > 0.0 else 0]


def summary_of(results: Sequence[PartResults]) -> str:
    """How often other methods beat the default's estimate, and how often it beats multi-starts."""
    mains = [lines(result) for result in results if result.is_main]
    better, _, worse, one = _VERDICTS
    if any(_verdict(line.excess) == one for found in mains for line in found):
        return "With one image no methods can be distinguished."
    unbeaten = sum(all(_verdict(line.excess) != better for line in found) for found in mains)
    many = [[line for line in found if line.method in MULTI_STARTS] for found in mains]
    ahead = sum(all(_verdict(line.excess) == worse for line in found) for found in many)
    return (
        f"No method beats the default's estimate in {unbeaten} of {len(mains)} cells of images and "
        f"task, and the estimate beats every multi-start ({', '.join(MULTI_STARTS)}) in {ahead}. "
        f"To beat means to be better by {_CLEAR:g} standard errors of the difference, paired by "
        "image."
    )


def _label(line: Line) -> str:
    return f"{line.method} (mean image)" if line.taken == "mean" else line.method


def _settings(results: Sequence[PartResults], effort: Effort) -> str:
    tunings, grown = all_tunings(results), over_training(results)
    edge = [name for name, tuning in tunings.items() if tuning["at_the_edge"]]
    said = [
        f"{effort.images} images of each kind and task"
        + (
            f"; the first {effort.snapshot_images} of them over the generator's training."
            if grown
            else "."
        ),
        f"paper: the settings of the preset {PRESET} (one chain, {effort.ais_steps} temperatures, "
        f"{effort.leapfrog_steps} leapfrog steps, paper form, weight 1), which cost "
        f"{effort.budget:,} forwards for an image, where a z-gradient counts as 2. No other method "
        "costs more.",
        f"{SCALED}: the same with the weight {results[0].part.weight(SCALED):g}, because an image "
        f"has that many times fewer values than in {PRESET}.",
        f"multi: from the best of {effort.starts:,} prior draws, whose cost is counted.",
        f"adaptive: {POPULATION} particles share that cost, with noise_std {NOISE_STD:g}, which is "
        "the library's advice for images and not tuned. best: the chain of lowest energy; mean: "
        "the mean image.",
        f"{DEFAULT}: the same with polish='auto', the default of inpaint and super_resolve. best: "
        "the fit of lowest energy; mean: the estimate, which is the mean of the fits, weighted by "
        "their misfits.",
        *([_NUTS_NOTE] if effort.nuts else []),
        f"Learning rates come from a grid. They have the lowest error on {TUNING_IMAGES} other "
        f"images of the same kind after {effort.tuning_steps:,} steps, for each method, task and "
        f"snapshot (tuning.json). At the edge of their grid are: {', '.join(edge) or 'none'}.",
        "Standard errors are in brackets. observed, RMS: the error of what is observed, in units "
        "of pixels in [-1, 1], of the chain of lowest energy. MSE above the default's: the mean "
        "difference to its estimate, paired by image. accepted: the acceptance at the end of the "
        f"run; stuck: the share of runs in which it is below {STUCK:g}. s: seconds for an image.",
    ]
    return "\n".join(f"- {line}" for line in said)


def _part(result: PartResults) -> list[str]:
    found = lines(result)
    best = min(found, key=lambda line: line.values["mse"][0])
    said = f"Lowest MSE: {_label(best)}. " + " ".join(verdicts(found))
    return [_table(_HEAD, map(_cells, found)), said]


def _training(results: Sequence[PartResults], kind: str, effort: Effort) -> str:
    """The numbers of figure 4."""
    points = curve(results, kind, effort.snapshot_images)
    rows = [
        [f"{shown:,}", method, *(_shown(values[method][name]) for name in METRICS)]
        for shown, values in points
        for method in CURVES
    ]
    return (
        _table(["images shown", "method", *METRICS.values()], rows)
        + "\n\n"
        + _multi_start_excess(points)
    )


def _multi_start_excess(points: Sequence[tuple[int, dict[str, Any]]]) -> str:
    """By how much the errors of multi-starts are above the default's, over the training."""
    said = []
    for shown, values in points:
        excess = [
            f"{name} {values[name]['mse'][0] - values[DEFAULT]['mse'][0]:+.4f}"
            for name in MULTI_STARTS
            if name in values
        ]
        said.append(f"{shown:,}: {', '.join(excess)}")
    return f"MSE above the default's, by images shown: {'; '.join(said)}."


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines_of_cells = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines_of_cells)


def _cells(line: Line) -> list[str]:
    return [
        line.method,
        line.taken,
        f"{line.cost:,.0f}",
        "" if line.residual is None else f"{line.residual[0]:.3f}",
        *(_shown(line.values[name]) for name in _METRICS),
        "" if (line.method, line.taken) == ESTIMATE else _shown(line.excess),
        _share(line.acceptance),
        _share(line.stuck),
        f"{line.seconds:.0f}",
    ]


def _share(value: float | None) -> str:
    """The number; an empty cell if nothing was accepted or rejected."""
    return "" if value is None or value != value else f"{value:.2f}"


def _shown(pair: Pair) -> str:
    mean, error = pair
    return f"{mean:.4f}" + ("" if error != error else f" ({error:.4f})")


def _full(results: Sequence[PartResults]) -> str:
    """The table of every evaluation."""
    return "\n\n".join(f"{r.part.name}: {KINDS[r.kind]}\n{r.table.text()}" for r in results)


def _write_csv(path: Path, results: Sequence[PartResults]) -> None:
    """Write a line for each evaluation, method, what is taken and metric, with every digit."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*_PLACE, "method", "taken", "cost", "seconds", "acceptance", *_VALUE])
        for result in results:
            part = result.part
            for row in result.table.rows:
                where = [part.kind, part.task, part.snapshot.name, row.images]
                run = [row.method, row.taken, row.cost, row.seconds, row.acceptance]
                for metric, pair in row.values.items():
                    writer.writerow([*where, *run, metric, *pair])
