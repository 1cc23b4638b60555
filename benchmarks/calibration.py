"""Simulation-based calibration of every method: ``python benchmarks/calibration.py [--quick]``.

Each piece of work is a method on a problem; `cogen_fast.experiments.calibration` says what is
tested. A piece is made in parts, each a line of ``benchmarks/results/calibration.jsonl``; if the
command is started again, it continues. Lines from another state of the sampler's sources are
ignored. After a change of the sources that should change no figure, run ``--probe FILE`` with the
old package, then ``--again FILE`` with the new one, on the same machine: pieces whose probes, of
two simulations, are equal to the last digit are taken over. The command ends with a table and, once
all pieces are done, ``calibration.json``; its exit status is 1 if ranks are not uniform. The
simulations and the bound are fixed here: one false alarm in 1,000 correct runs of all pieces, by
Bonferroni's inequality over pieces, statistics and both tests. Independent chains, which run
without weights and resampling, are shown but not judged: such a chain ends in the mode that it
first reached, so it cannot be calibrated, and `Result.diagnose` says so.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from log import Log
from machine import digest_of_method

from cogen_fast.experiments.calibration import (
    MODELS,
    AdaptiveDraw,
    Design,
    Draw,
    PaperDraw,
    calibrated,
    ranks,
)
from cogen_fast.sampler.annealing_plan import Annealing

_RESULTS = Path(__file__).parent / "results"
_SOURCES = digest_of_method("cogen_fast/experiments/calibration.py")
_FALSE_ALARM = 1e-3
_SEED = 20
_DRAWS = 7
_SIMULATIONS = {
    "linear": 4000,
    "gan-2d": 4000,
    "conv-8": 1000,
    "linear-64": 4000,
    "fashion-32": 40,
    "fashion-32-64": 200,
    "conv-8-noise": 1000,
    "linear-64-noise": 1000,
    "stylegan-8": 400,
    "stylegan-8-w": 400,
}
_QUICK_SIMULATIONS = {"linear": 400, "gan-2d": 400, "conv-8": 80}
METHODS: dict[str, Draw] = {
    "adaptive-16": AdaptiveDraw(),
    "adaptive-16, one a call": AdaptiveDraw(),
    "adaptive-64": AdaptiveDraw(chains=64),
    "kept 0.7": AdaptiveDraw(annealing=Annealing(target_cess=0.7)),
    "frozen": AdaptiveDraw(evidence="frozen"),
    # Fewer than 16 chains and a budget just too small for 16 particles give independent chains.
    "4 alone": AdaptiveDraw(chains=4, budget=199),
    "1 alone": AdaptiveDraw(chains=1, budget=799),
    "paper": PaperDraw(),
}
_ALONE = ("4 alone", "1 alone")
_PROBED = 2  # simulations
_PER_PART = {  # numbers of simulations
    "linear": 400,
    "gan-2d": 400,
    "conv-8": 200,
    "linear-64": 400,
    "fashion-32": 20,
    "fashion-32-64": 5,
    "conv-8-noise": 200,
    "linear-64-noise": 200,
    "stylegan-8": 50,
    "stylegan-8-w": 50,
}
# Data sets in a call: as many as fit in memory. With all latents free a few data sets take many
# times as long as the others, and a call ends with its slowest.
_PER_CALL = {
    "linear-64": 50,
    "fashion-32": 10,
    "fashion-32-64": 1,
    "conv-8-noise": 50,
    "linear-64-noise": 50,
    "stylegan-8": 25,
    "stylegan-8-w": 25,
}
_SMALL = tuple(_QUICK_SIMULATIONS)
_PIECES = [
    (problem, method)
    for problem in _SMALL
    for method in METHODS
    if method != "paper" or problem == "linear"
] + [(problem, "adaptive-16") for problem in _SIMULATIONS if problem not in _SMALL]
_QUICK_PIECES = [(problem, "adaptive-16") for problem in _SMALL]


@dataclass(frozen=True)
class Piece:
    """One method on one problem."""

    problem: str
    method: str
    design: Design

    @property
    def parts(self) -> list[range]:
        """What is done at a time: as much as takes some minutes."""
        size = _PER_PART.get(self.problem, self.design.simulations)
        count = self.design.simulations
        return [range(start, min(start + size, count)) for start in range(0, count, size)]


def _pieces(quick: bool) -> list[Piece]:
    chosen, counts = (_QUICK_PIECES, _QUICK_SIMULATIONS) if quick else (_PIECES, _SIMULATIONS)
    return [
        Piece(problem, method, _design(problem, method, counts[problem]))
        for problem, method in chosen
    ]


def _design(problem: str, method: str, simulations: int) -> Design:
    if problem not in _SMALL:
        return Design(simulations, 3, _PER_CALL[problem])
    return Design(simulations, _DRAWS, 1 if method.endswith("one a call") else 400)


def _work(piece: Piece, part: range) -> dict[str, Any]:
    """A part's line: its ranks."""
    torch.set_num_threads(1)  # for small matrices, a second process is worth more than a thread
    start = time.monotonic()
    model, method = MODELS[piece.problem](), METHODS[piece.method]
    rows = ranks(model, method, piece.design, _SEED, part)
    return {"seconds": round(time.monotonic() - start, 1), "ranks": rows.tolist()}


def _probe(piece: Piece, probes: Log) -> None:
    """A part that is small enough to be made for every change of the sources."""
    key = _of_piece(piece) | {"sources": _SOURCES}
    if not any(probes.find(**key)):
        probes.add(**key, **_work(piece, range(_PROBED)))


def _take_over(pieces: list[Piece], log: Log, probes: Log) -> None:
    for piece in pieces:
        if not any(log.find(**_key(piece, piece.parts[0]))):
            _probe(piece, probes)
            taken = log.take_over(_of_piece(piece), _SOURCES, probes)
            print(f"{piece.problem}, {piece.method}: {taken} parts taken over", flush=True)


def _of_piece(piece: Piece) -> dict[str, Any]:
    return {"problem": piece.problem, "method": piece.method}


def _key(piece: Piece, part: range) -> dict[str, Any]:
    design = asdict(piece.design)
    return {**_of_piece(piece), **design, "start": part.start, "sources": _SOURCES}


def _run(pieces: list[Piece], log: Log, jobs: int) -> list[dict[str, Any]]:
    """Every piece's figures; parts not yet in the log are worked on, ``jobs`` at a time."""
    every = [(piece, part) for piece in pieces for part in piece.parts]
    missing = [(piece, part) for piece, part in every if not any(log.find(**_key(piece, part)))]
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(_work, *each): each for each in missing}
        for future in as_completed(futures):
            piece, part = futures[future]
            log.add(**_key(piece, part), **future.result())
            print(f"{piece.problem}, {piece.method}: {part.start} to {part.stop}", flush=True)
    return [_judged(piece, log) for piece in pieces]


def _judged(piece: Piece, log: Log) -> dict[str, Any]:
    """A piece's line of the table: its statistics' histograms and p-values."""
    lines = [next(log.find(**_key(piece, part))) for part in piece.parts]
    rows = torch.cat([torch.tensor(line["ranks"]) for line in lines])
    found = calibrated(MODELS[piece.problem](), rows, piece.design)
    return {
        "problem": piece.problem,
        "method": piece.method,
        **asdict(piece.design),
        "seconds": sum(line["seconds"] for line in lines),
        "statistics": [asdict(statistic) for statistic in found],
    }


def _worst(line: dict[str, Any]) -> tuple[float, str]:
    """Smallest p-value of a piece and whose it is."""
    return min((min(s["p_chi_square"], s["p_ecdf"]), s["statistic"]) for s in line["statistics"])


def _row(line: dict[str, Any]) -> str:
    p, statistic = _worst(line)
    return (
        f"{line['problem']:<16}{line['method']:<25}{line['simulations']:>6}{line['draws']:>4}"
        f"{p:>10.2g}  {statistic:<8}{line['seconds']:>8.1f} s"
    )


def main() -> int:
    """Calibrate, print, write, and tell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="adaptive method only, under a minute")
    parser.add_argument("--problems", nargs="+", choices=tuple(MODELS), default=list(MODELS))
    parser.add_argument("--probe", type=Path, help="only write probes of pieces to this file")
    parser.add_argument("--again", type=Path, help="take over pieces whose probes are the same")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default 2)")
    parser.add_argument("--out", type=Path, default=_RESULTS)
    options = parser.parse_args()
    name = "calibration-quick" if options.quick else "calibration"
    log = Log(options.out / f"{name}.jsonl")
    every = _pieces(options.quick)
    wanted = [piece for piece in every if piece.problem in options.problems]
    if options.probe:
        for piece in wanted:
            _probe(piece, Log(options.probe))
        return 0
    if options.again:
        _take_over(wanted, log, Log(options.again))
    lines = _run(wanted, log, options.jobs)
    statistics = {name: len(model().statistics) for name, model in MODELS.items()}
    tests = 2 * sum(statistics[piece.problem] for piece in every if piece.method not in _ALONE)
    bound = _FALSE_ALARM / tests
    judged = [line for line in lines if line["method"] not in _ALONE]
    broken = [line for line in judged if _worst(line)[0] < bound]
    print(f"\n{'problem':<16}{'method':<25}{'S':>6}{'K':>4}{'least p':>10}  of")
    print("\n".join(_row(line) for line in lines))
    print(f"\n{tests} tests, bound {bound:.2g} (without independent chains): {len(broken)} broken")
    if len(lines) == len(every):
        record = {"bound": bound, "broken": len(broken), "not judged": _ALONE, "lines": lines}
        (options.out / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
