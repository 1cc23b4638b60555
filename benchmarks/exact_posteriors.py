"""Samples, their spread, the evidence and its error against posteriors that are known exactly.

    python benchmarks/exact_posteriors.py [--quick] [--cells 'iso-100-*' ...]
        [--further] [--probe FILE | --again FILE] [--rivals]

A cell is a model of `cogen_fast.experiments.exact_models`, a number of latents, a noise level, and
the number N of chains. It has 200 independent repetitions (40 in 1,024 latents) with default
settings, each on a data set of its own, drawn from the model. Cells with two modes have R
populations of 16 particles each, 4,096 populations in all. The models "relu", "relu-deep",
"sigmoid" and "step" are flat over most of the prior; "abs" and "sine" have, in every latent, modes
between which no move goes. `paper-...` cells use the published method, with an annealing that is
slow enough; in `centred-...` cells all data are 0, and their posterior has the prior's mean; a
`bounded-...` cell has a budget of 2,500 gradients, and an `eight-...` cell has eight populations.
Gradients are those of a particle in a batch of 50 data sets, and of a data set that runs alone; in
512 latents and more each runs alone, because the matrices of several would not fit into a cache.
``--rivals`` runs BlackJAX (extra ``peers``) on some cells, on data drawn from the same model, with
the number of gradients that this package took, in a batch if there is one (`exact_rivals`).

Every finished piece of work is a line of ``benchmarks/results/exact_posteriors.jsonl``; if the
command is started again, it continues. Lines from another state of the sampler's sources are
ignored. After a change of the sources that should change no figure, run ``--probe FILE`` with the
old package, then ``--again FILE`` with the new one, on the same machine: cells whose probes, of a
few data sets, are equal to the last digit are taken over. ``--quick`` runs the first piece of the
cells with at most 100 latents and N = 16, or R = 64. The command ends with the table of all cells
that have lines, which is also written to ``exact_posteriors.md`` beside the log. To use two cores,
start the command twice, each pinned to one core (``taskset``), with different ``--cells``; then
start it with a pattern that matches no cell, to write the table of both.

A cell passes if the mean energy is within four standard errors, if the variances of latents are
within 2 % or four standard errors in every direction that is tested, if the log of the mean
evidence is within three of its errors, and if the runs' own errors of the log evidence, doubled,
cover the true value in 90 % of the runs that give an error, less the binomial error of that share.
The same holds for the share of a mode, and for the errors of it that the populations of a run
estimate. Of so many cells some fail by chance: ``--further`` runs 800 further data sets of the
cells that it is given, which are judged by themselves ("others").
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import torch
from log import Log
from machine import digest_of_method
from torch import Tensor

from cogen_fast import Adaptive, Paper, Result
from cogen_fast.experiments.exact_models import (
    FOLDS,
    MAPS,
    SCALES,
    Elementwise,
    LinearGaussian,
    TwoModes,
    draws,
    log_mean_and_error,
    share_and_error,
)
from cogen_fast.results.result import GRADIENT_COST

_RESULTS = Path(__file__).parent / "results"
_MODELS = "cogen_fast/experiments/exact_models.py"
_SIZES, _NOISES, _CHAINS = (8, 20, 64, 100, 512), (0.1, 0.3), (16, 64)
_REPETITIONS, _TOGETHER, _ALONE = 200, 50, 4
_MANY, _MANY_REPETITIONS = 1024, 40
_PROBED = 3  # data sets
_FURTHER = range(1000, 1800)  # data sets by which a cell that failed is judged again
_QUICK_SIZE = 100
_BUDGET = 2500
_EIGHT, _EIGHT_SIZE = 8, 64
_ELEMENTWISE_SIZES = (4, 8, 20)
_MODE_SIZES, _POPULATIONS, _MODE_CHAINS = (2, 5, 20), (16, 64, 256), 16
_IN_ALL, _AT_ONCE = 4096, 256  # populations
_PAPER_SIZES, _PAPER_NOISE, _PAPER_STEPS, _PAPER_LENGTH = (8, 20), 0.3, 1600, 10
_PAPER_AT_ONE = np.ones(400)  # moves at beta = 1: samples lag behind beta, which weights correct
_COVERED = 0.9


@dataclass(frozen=True)
class Cell:
    """A model of d latents, linear or one of `MAPS`, the noise, and N.

    ``kind`` is "paper" for the published method, "centred" for data of 0, "bounded" for a budget,
    "eight" for as many populations, else empty.
    """

    model: str
    size: int
    noise: float
    chains: int
    kind: str = ""

    @property
    def name(self) -> str:
        """The name of the cell, which no other has."""
        before = f"{self.kind}-" if self.kind else ""
        return f"{before}{self.model}-{self.size}-{self.noise:g}-{self.chains}"

    @property
    def quick(self) -> bool:
        """Whether ``--quick`` looks at it."""
        small = self.size <= _QUICK_SIZE and self.chains == _CHAINS[0]
        return small and not self.kind

    @property
    def together(self) -> int:
        """How many repetitions run at a time."""
        return _TOGETHER if self.size <= _QUICK_SIZE else 1

    @property
    def exact(self) -> LinearGaussian | Elementwise:
        """The model."""
        if self.model in MAPS:
            return Elementwise(self.model, self.size, self.noise)
        return LinearGaussian.named(self.model, self.size, self.noise)

    @property
    def pieces(self) -> Sequence[range]:
        """Numbers of the repetitions that run together."""
        count = _MANY_REPETITIONS if self.size == _MANY else _REPETITIONS
        return _parts(range(count), self.together)

    @property
    def further(self) -> Sequence[range]:
        """Numbers of the repetitions on the data sets of ``--further`` that run together."""
        return _parts(_FURTHER, self.together)

    def run(self, ids: range) -> dict[str, Any]:
        """The results of the repetitions of a piece, as plain numbers."""
        exact, x = self.exact, self.exact.data(ids)
        x = torch.zeros_like(x) if self.kind == "centred" else x
        result = draws(exact, ids, x, chains=self.chains, **self._settings())
        assert result.log_evidence is not None
        energy = exact.mean_energy(x)
        return _cost(result) | {
            "energy": _short(energy),
            "energy_off": _short(result.energies.mean(1) - energy),
            "energy_at_posterior_off": _short(_at_posterior(result) - energy),
            "variances": {
                name: _short(each)
                for name, each in exact.relative_variances(result.latents, x).items()
            },
            "log_evidence_off": _short(result.log_evidence - exact.log_evidence(x)),
            "log_evidence_error": _errors(result),
        }

    def _settings(self) -> dict[str, Any]:
        if self.kind == "bounded":
            return {"budget": _BUDGET}
        if self.kind == "eight":
            return {"method": Adaptive(populations=_EIGHT)}
        if self.kind != "paper":
            return {}
        betas = np.concatenate([np.geomspace(1e-4, 1.0, _PAPER_STEPS), _PAPER_AT_ONE])
        return {"method": Paper(schedule=betas, leapfrog_steps=_PAPER_LENGTH)}


@dataclass(frozen=True)
class ModesCell:
    """A model of two modes, and how many populations tell their masses."""

    model: str
    size: int
    populations: int

    @property
    def name(self) -> str:
        """The name of the cell, which no other has."""
        return f"{self.model}-{self.size}-{self.populations}"

    @property
    def quick(self) -> bool:
        """Whether ``--quick`` looks at it."""
        return self.populations == _POPULATIONS[1]

    @property
    def exact(self) -> TwoModes:
        """The model."""
        return TwoModes(self.model, self.size)

    @property
    def pieces(self) -> Sequence[range]:
        """Numbers of the repetitions that run together."""
        each = _AT_ONCE // self.populations
        return [range(i * each, (i + 1) * each) for i in range(_IN_ALL // _AT_ONCE)]

    def run(self, ids: range) -> dict[str, Any]:
        """The results of the repetitions of a piece and of their populations, as plain numbers."""
        exact, shape = self.exact, (len(ids), self.populations, _MODE_CHAINS)
        x = exact.data(ids)
        result = draws(
            exact, ids, x, method=Adaptive(populations=self.populations), chains=_MODE_CHAINS
        )
        assert result.log_weights is not None and result.log_evidence is not None
        log_weights = result.log_weights.reshape(shape)
        # Relative to the exact evidence, so that all data sets have equal weight.
        off = torch.logsumexp(log_weights, -1) - exact.log_evidence(x)[:, None]
        right = (result.latents[..., 0] >= 0.0).double().reshape(shape)
        return _cost(result) | {
            "log_weights": [_short(row) for row in off],
            "right": [_short(row) for row in (torch.softmax(log_weights, -1) * right).sum(-1)],
            "log_evidence_off": _short(result.log_evidence - exact.log_evidence(x)),
            "log_evidence_error": _errors(result),
        }


def cells() -> Iterator[Cell | ModesCell]:
    """All cells, the cheapest first."""
    for chains in _CHAINS:
        for size in _SIZES:
            for noise in _NOISES:
                for model in SCALES:
                    yield Cell(model, size, noise, chains)
    for size in _MODE_SIZES:
        for populations in _POPULATIONS:
            for model in FOLDS:
                yield ModesCell(model, size, populations)
    for size in _PAPER_SIZES:
        for model in SCALES:
            yield Cell(model, size, _PAPER_NOISE, _CHAINS[0], "paper")
    for size in _SIZES[:-1]:
        for model in SCALES:
            yield Cell(model, size, _NOISES[0], _CHAINS[0], "centred")
    for size in _ELEMENTWISE_SIZES:
        for model in MAPS:
            yield Cell(model, size, _NOISES[0], _CHAINS[0])
    for model in SCALES:
        yield Cell(model, _EIGHT_SIZE, _NOISES[0], _CHAINS[0], "eight")
    for model in MAPS:
        yield Cell(model, _ELEMENTWISE_SIZES[1], _NOISES[0], _CHAINS[0], "eight")
    yield Cell("iso", _SIZES[-1], _NOISES[0], _CHAINS[0], "bounded")
    for model in SCALES:
        yield Cell(model, _MANY, _NOISES[0], _CHAINS[0])


_AGAINST = tuple(
    Cell(model, size, noise, 16)
    for size, noises in ((20, _NOISES), (64, _NOISES), (100, _NOISES), (512, _NOISES[:1]))
    for noise in noises
    for model in SCALES
)
"""Cells that rivals run too."""


def _parts(ids: range, size: int) -> list[range]:
    return [range(first, first + size) for first in range(ids.start, ids.stop, size)]


def _short(values: Tensor) -> list[float]:
    return [float(f"{value:.6g}") for value in values.tolist()]


def _cost(result: Result) -> dict[str, float]:
    """The cost of each particle, in gradients."""
    return {
        "gradients": result.gradients + result.forwards / GRADIENT_COST,
        "temperatures": len(result.betas),
    }


def _at_posterior(result: Result) -> Tensor:
    """The mean energy over all moves at beta = 1, ``(B,)``."""
    there = (result.betas == 1.0) & result.acceptance.isfinite()
    energy = torch.where(there, result.energy_history, torch.nan).nanmean(0)
    return energy.reshape(len(result.energies), -1).mean(1)


def _errors(result: Result) -> list[float | None]:
    error = result.log_normaliser_error
    if error is None:
        return [None] * len(result.energies)
    return [None if math.isnan(value) else value for value in _short(error)]


def _run(cell: Cell | ModesCell, log: Log, sources: str, pieces: Sequence[range]) -> None:
    for ids in pieces:
        key = {"cell": cell.name, "first": ids.start, "sources": sources}
        if any(log.find(**key)):
            continue
        start = time.monotonic()
        found = cell.run(ids)
        seconds = round(time.monotonic() - start, 1)
        log.add(**key, seconds=seconds, threads=torch.get_num_threads(), **found)
        print(f"{cell.name} from {ids.start}: {seconds} s", flush=True)


def _run_probe(cell: Cell | ModesCell, probes: Log, sources: str) -> None:
    """A piece that is small enough to be made for every change of the sources."""
    key = {"cell": cell.name, "sources": sources}
    if not any(probes.find(**key)):
        probes.add(**key, **cell.run(cell.pieces[0][:_PROBED]))


def _run_alone(cell: Cell, log: Log, sources: str) -> None:
    """The cost of a data set that runs alone; in a batch all data sets wait for the slowest."""
    for number in range(_ALONE):
        key = {"alone": cell.name, "first": number, "sources": sources}
        if not any(log.find(**key)):
            result = draws(cell.exact, [number], chains=cell.chains)
            log.add(**key, **_cost(result))


def _run_rivals(cell: Cell, log: Log, sources: str) -> None:
    """The whole grid, with the gradients that this package took; nothing if it has not run."""
    import exact_rivals

    found = log.find(cell=cell.name, sources=sources)
    lines = [line for line in found if line["first"] not in _FURTHER]
    if not lines:
        return
    gradients = round(_mean(lines, "gradients"))
    for rival in exact_rivals.RIVALS:
        for how in exact_rivals.settings(rival, gradients):
            key = {"rival": rival, "against": cell.name, "budget": gradients, "how": how}
            if not any(log.find(**key)):
                found = exact_rivals.run(rival, cell.exact, cell.chains, gradients, how)
                log.add(**key, **found)
                print(f"{cell.name} {rival} {how}: {found['energy']:.3g}", flush=True)


# --- the table ------------------------------------------------------------------------------------


def _joined(lines: Sequence[dict[str, Any]], *names: str) -> Tensor:
    """A column of all pieces of a cell, one after the other; NaN for None."""
    rows: list[Any] = []
    for line in lines:
        for name in names:
            line = line[name]
        rows.extend(line)
    return torch.from_numpy(np.array(rows, dtype=np.float64))


def _mean(lines: Sequence[dict[str, Any]], name: str) -> float:
    return sum(line[name] for line in lines) / len(lines)


def _mean_and_error(values: Tensor) -> tuple[float, float]:
    return float(values.mean()), float(values.std()) / math.sqrt(len(values))


@dataclass(frozen=True)
class Covered:
    """How many of the runs that give an error have the truth within two of it."""

    within: int
    given: int
    runs: int

    @classmethod
    def of(cls, off: Tensor, error: Tensor) -> Covered:
        """From distances to the truth, and errors with NaN where there is none."""
        given = error.isfinite()
        return cls(int((off.abs() <= 2.0 * error).sum()), int(given.sum()), len(off))

    @property
    def fails(self) -> bool:
        """Below 90 %, less the binomial error."""
        if self.given == 0:
            return False
        least = _COVERED - math.sqrt(_COVERED * (1.0 - _COVERED) / self.given)
        return self.within < least * self.given

    def __str__(self) -> str:
        share = f"{100.0 * self.within / self.given:.0f} %" if self.given else "-"
        return f"{share} of {100.0 * self.given / self.runs:.0f} %"


@dataclass(frozen=True)
class Part:
    """Some columns of a row, and what fails in them."""

    columns: tuple[str, ...]
    failures: tuple[str, ...] = ()


def _row(*parts: Part) -> str:
    columns = [column for part in parts for column in part.columns]
    failures = [failure for part in parts for failure in part.failures]
    verdict = "**" + ", ".join(failures) + "**" if failures else "pass"
    return "| " + " | ".join([*columns, verdict]) + " |"


def _effort(
    name: str, lines: Sequence[dict[str, Any]], *gradients: Sequence[dict[str, Any]]
) -> Part:
    """``gradients``: the lines whose means are shown, side by side."""
    runs = len(_joined(lines, "log_evidence_off"))
    means = [f"{_mean(each, 'gradients'):.0f}" if each else "-" for each in gradients]
    return Part((name, f"{runs}", " / ".join(means), f"{_mean(lines, 'temperatures'):.0f}"))


def _energy(lines: Sequence[dict[str, Any]]) -> Part:
    off, error = _mean_and_error(_joined(lines, "energy_off"))
    exact = float(_joined(lines, "energy").mean())
    z = off / error
    failures = ("energy",) if abs(z) >= 4.0 else ()
    return Part((f"{exact + off:.2f} ({exact:.2f})", f"{z:+.1f}"), failures)


def _variances(lines: Sequence[dict[str, Any]]) -> Part:
    names = tuple(lines[0]["variances"])
    found = {name: _mean_and_error(_joined(lines, "variances", name)) for name in names}
    failures = (
        f"variance ({name})"
        for name, (ratio, error) in found.items()
        if abs(ratio - 1.0) > max(0.02, 4.0 * error)
    )
    worst = max(names[2:], key=lambda name: abs(found[name][0] - 1.0) / found[name][1])
    shown = (
        f"{ratio:.3f} ± {error:.3f}"
        for ratio, error in (found[name] for name in (*names[:2], worst))
    )
    return Part(tuple(shown), tuple(failures))


def _evidence(off: Tensor, lines: Sequence[dict[str, Any]], each: Tensor | None = None) -> Part:
    """The columns of the log evidence of runs that are ``off`` so far from the exact value.

    The jackknife leaves out one value of ``each`` at a time (None: of ``off``).
    """
    together, _ = log_mean_and_error(off)
    _, error = log_mean_and_error(off if each is None else each)
    covered = Covered.of(off, _joined(lines, "log_evidence_error"))
    wrong = abs(together) > 3.0 * error
    failures = ("log evidence",) * wrong + ("coverage",) * covered.fails
    return Part((f"{together:+.3f} ± {error:.3f}", str(covered)), failures)


def _linear_row(
    cell: Cell, name: str, lines: Sequence[dict[str, Any]], alone: Sequence[dict[str, Any]]
) -> str:
    batched, alone = (lines, alone) if cell.together > 1 else ([], lines)
    off = _joined(lines, "log_evidence_off")
    single = Part((f"{off.mean():+.2f}", f"{off.std():.2f}"))
    return _row(
        _effort(name, lines, batched, alone),
        _energy(lines),
        _variances(lines),
        single,
        _evidence(off, lines),
    )


def _modes_row(cell: ModesCell, lines: Sequence[dict[str, Any]]) -> str:
    log_weights, right = _joined(lines, "log_weights"), _joined(lines, "right")
    off = _joined(lines, "log_evidence_off")
    return _row(
        _effort(cell.name, lines, lines),
        _share(cell.exact.right, right, log_weights),
        Part((f"{log_weights.std():.2f}",)),
        _evidence(off, lines, log_weights.flatten()),
    )


def _share(exact: float, right: Tensor, log_weights: Tensor) -> Part:
    """The mass right of 0: of all populations together, and of each run ``(B, R)``."""
    share, error = share_and_error(right.flatten(), log_weights.flatten())
    runs = torch.tensor([share_and_error(*pair) for pair in zip(right, log_weights, strict=True)])
    whole = float(((right == 0.0) | (right == 1.0)).double().mean())
    covered = Covered.of(runs[:, 0] - exact, runs[:, 1])
    columns = (
        f"{share:.3f} ± {error:.3f} ({exact:.3f})",
        f"{100.0 * whole:.0f} %",
        str(covered),
    )
    wrong = abs(share - exact) > 3.0 * error
    return Part(columns, ("share",) * wrong + ("coverage of the share",) * covered.fails)


_HEAD = (
    "| model, latents, noise, N | runs | gradients, in a batch / alone | temperatures | "
    "energy (exact) | z | "
    "variance, all | stiffest | worst of 4 random | log evidence off, mean | sd of a run | "
    "log of the mean off | covered, of given | verdict |"
)
_MODES_HEAD = (
    "| model, latents, R | runs | gradients | temperatures | right (exact) | populations in one "
    "mode | share covered | sd of a population | log evidence off | covered, of given | verdict |"
)


_RIVALS_HEAD = (
    "| model, latents, noise, N | method | gradients | rms error of energy | its bias | "
    "rms error of log evidence | settings |"
)


def _rivals_rows(cell: Cell, lines: Sequence[dict[str, Any]], log: Log) -> list[str]:
    """Errors of one run, ours first; none where there is no rival's."""
    off = _joined(lines, "energy_at_posterior_off")
    evidence = _root_mean_square(_joined(lines, "log_evidence_off"))
    budget = round(_mean(lines, "gradients"))
    rows = [
        f"| {cell.name} | ours | {budget} | {_root_mean_square(off):.3g} | {off.mean():+.3g} | "
        f"{evidence:.2f} | default |"
    ]
    tried = list(log.find(against=cell.name, budget=budget))
    for best in _best(tried):
        told = f"{best['log_evidence']:.2f}" if "log_evidence" in best else "-"
        how = ", ".join(f"{name} {value}" for name, value in best["how"].items())
        rows.append(
            f"| {cell.name} | {best['rival']} | {best['gradients']:.0f} | {best['energy']:.3g} | "
            f"{best['energy_bias']:+.3g} | {told} | {how}; {best['remark']} |"
        )
    return rows if tried else []


def _best(tried: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The best settings of each rival by the energy, and those by the log evidence."""
    found: list[dict[str, Any]] = []
    for rival in dict.fromkeys(line["rival"] for line in tried):
        of_rival = [line for line in tried if line["rival"] == rival]
        for quantity in ("energy", "log_evidence"):
            told = [line for line in of_rival if math.isfinite(line.get(quantity, math.nan))]
            best = min(told, key=lambda line: line[quantity], default=None)
            if best is not None and best not in found:
                found.append(best)
    return found


def _root_mean_square(values: Tensor) -> float:
    return float((values**2).mean().sqrt())


def _rule(head: str) -> str:
    return "|---" * (head.count("|") - 1) + "|"


def table(log: Log, sources: str) -> str:
    """All cells that are there, as Markdown."""
    linear, modes, rivals = ([head, _rule(head)] for head in (_HEAD, _MODES_HEAD, _RIVALS_HEAD))
    for cell in cells():
        lines = list(log.find(cell=cell.name, sources=sources))
        if not lines:
            continue
        if isinstance(cell, Cell):
            alone = list(log.find(alone=cell.name, sources=sources))
            first, further = (
                [each for each in lines if (each["first"] in _FURTHER) == late]
                for late in (False, True)
            )
            linear.append(_linear_row(cell, cell.name, first, alone))
            if further:
                linear.append(_linear_row(cell, f"{cell.name}, others", further, alone))
            rivals.extend(_rivals_rows(cell, first, log))
        else:
            modes.append(_modes_row(cell, lines))
    return "\n".join([*linear, "", *modes, "", *rivals])


def main() -> None:
    """Run what is not in the log, then print the table and write it down."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", nargs="+", default=["*"], help="patterns of names (all)")
    parser.add_argument("--quick", action="store_true", help="first pieces of small cells")
    parser.add_argument("--probe", type=Path, help="only write probes of cells to this file")
    parser.add_argument("--again", type=Path, help="take over cells whose probes are the same")
    parser.add_argument("--further", action="store_true", help="800 further data sets of a cell")
    parser.add_argument("--rivals", action="store_true", help="BlackJAX on some of the cells")
    options = parser.parse_args()
    log, sources = Log(_RESULTS / "exact_posteriors.jsonl"), digest_of_method(_MODELS)
    probes = Log(options.probe or options.again) if options.probe or options.again else None
    for cell in _wanted(options.cells, options.quick):
        if probes is not None:
            _run_probe(cell, probes, sources)
        if options.probe is not None:
            continue
        if probes is not None and not any(log.find(cell=cell.name, sources=sources)):
            taken = log.take_over({"cell": cell.name}, sources, probes, {"alone": cell.name})
            print(f"{cell.name}: {taken} lines taken over", flush=True)
        _run(cell, log, sources, cell.pieces[:1] if options.quick else cell.pieces)
        if options.further and isinstance(cell, Cell):
            _run(cell, log, sources, cell.further)
        if isinstance(cell, Cell) and cell.together > 1 and not (cell.kind or options.quick):
            _run_alone(cell, log, sources)
        if options.rivals and cell in _AGAINST:
            _run_rivals(cell, log, sources)
    if options.probe is None:
        _write(table(log, sources))


def _wanted(patterns: Sequence[str], quick: bool) -> list[Cell | ModesCell]:
    named = (cell for cell in cells() if any(fnmatch(cell.name, each) for each in patterns))
    return [cell for cell in named if cell.quick or not quick]


def _write(text: str) -> None:
    print(text)
    (_RESULTS / "exact_posteriors.md").write_text(text + "\n")


if __name__ == "__main__":
    main()
