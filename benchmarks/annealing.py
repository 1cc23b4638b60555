"""Quality against gradient evaluations: the adaptive method, the published one, Adam, BlackJAX.

    python benchmarks/annealing.py [--problems 2d faces] [--methods ...] [--budgets ...] [...]

The problem "2d" is the authors' generator with its second output known; it reports the share of
2,000 chains within a mean squared error of 0.01 of the answer. The problem "faces" has eight faces
of the DCGAN's own, a 30 x 30 block hidden, and 16 chains each at noise_std 0.05 and 0.5; it reports
the mean squared error of the hidden pixels per chain. What is observed is exact, so a best fit can
be exact too, while samples spread according to the noise. Every method has the same number of
gradient evaluations per chain; "polished" is the adaptive method with three quarters of them, then
L-BFGS from its samples. Adam starts every chain at a prior draw, with the rate that was best on two
other faces (for 2d, on another observation). BlackJAX (extra ``peers``) is left out if it is not
installed.

Every finished piece of work is a line of ``benchmarks/results/annealing.jsonl``; if the command is
started again, it continues. It ends with a table of all lines. Seconds are those with the line's
number of ``threads``; to use two cores well, start the command twice, each pinned to one core
(``taskset``), with different methods.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dcgan import block_mask, data_folder, load_faces, own_faces
from log import Log
from torch import Tensor, nn

from cogen_fast import Paper, cogenerate, load_generator
from cogen_fast.methods.baselines import reconstruct

_RESULTS = Path(__file__).parent / "results"
_ANSWER = torch.tensor([1.0, 0.0])
_TWO_D_WEIGHT = 1e4
_FACES, _FACE_CHAINS, _TWO_D_CHAINS = 8, 16, 2000
_NOISES = (0.05, 0.5)
_BUDGETS = {"2d": (50, 100, 200, 500), "faces": (2000, 1000, 500)}
_GOOD = {"2d": 0.01, "faces": 0.002}
_RATES = {"2d": (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0), "faces": (0.003, 0.01, 0.03, 0.1, 0.3)}
_TUNING = {"2d": 200, "faces": 1000}
_PAPER_LEAPFROG = 10
_BLACKJAX_SHORT = {"2d": 400, "faces": 1500}  # below these, larger temperature steps are better


@dataclass(frozen=True)
class Problem:
    """A generator, what is observed of it, and the error of a sample."""

    group: str
    name: str
    generator: nn.Module
    x_obs: Any
    mask: Any
    noise: dict[str, float]
    chains: int
    error: Callable[[Tensor], Tensor]

    @property
    def weight(self) -> float:
        """The factor of the squared error."""
        std = self.noise.get("noise_std")
        return self.noise["weight"] if std is None else 0.5 / std**2


@dataclass(frozen=True)
class Outcome:
    """The result of a method: the errors of its chains, and what it spent on each."""

    errors: Tensor
    gradients: int
    seconds: float
    remark: str


def _two_d(known: float = 0.0, answer: Tensor = _ANSWER) -> Problem:
    return Problem(
        "2d",
        "2d",
        load_generator(data_folder() / "five_gaussians_generator_15000.npz"),
        np.array([np.nan, known], dtype=np.float32),
        np.array([0, 1]),
        {"weight": _TWO_D_WEIGHT},
        _TWO_D_CHAINS,
        lambda x: ((x - answer) ** 2).mean(-1),
    )


def _face(generator: nn.Module, number: int, noise_std: float, seed: int = 1) -> Problem:
    """Face ``number`` of those drawn with ``seed``."""
    truth = own_faces(generator, _FACES, seed)[number]
    mask = block_mask()
    return Problem(
        "faces",
        f"face {number}",
        generator,
        truth,
        mask,
        {"noise_std": noise_std},
        _FACE_CHAINS,
        lambda x: ((x - truth) ** 2)[..., mask == 0].mean((-1, -2)),
    )


def _adaptive(problem: Problem, budget: int, log: Log, polish: int = 0) -> Outcome:
    start = time.monotonic()
    result = cogenerate(
        problem.generator,
        problem.x_obs,
        problem.mask,
        chains=problem.chains,
        budget=budget,
        polish=polish,
        progress=False,
        **problem.noise,
    )
    seconds = time.monotonic() - start
    images = result.images if result.fit_images is None else result.fit_images
    ends = result.acceptance[-1].nanmean()  # islands that finished earlier have NaN
    remark = f"{len(result.betas)} temperatures, acceptance {ends:.2f} at the end"
    return Outcome(problem.error(images[0]), result.gradients + polish, seconds, remark)


def _polished(problem: Problem, budget: int, log: Log) -> Outcome:
    return _adaptive(problem, budget, log, polish=budget // 4)


def _paper(problem: Problem, budget: int, log: Log) -> Outcome:
    start = time.monotonic()
    result = cogenerate(
        problem.generator,
        problem.x_obs,
        problem.mask,
        method=Paper(ais_steps=budget // _PAPER_LEAPFROG, leapfrog_steps=_PAPER_LEAPFROG),
        chains=problem.chains,
        progress=False,
        **problem.noise,
    )
    seconds = time.monotonic() - start
    remark = f"acceptance {result.acceptance[-1].mean():.2f} at the end"
    return Outcome(problem.error(result.images[0]), result.gradients, seconds, remark)


def _adam(problem: Problem, budget: int, log: Log) -> Outcome:
    rate = _tuned_rate(problem.group, problem.generator, log)
    start = time.monotonic()
    descent = _descend(problem, budget, rate)
    seconds = time.monotonic() - start
    return Outcome(problem.error(descent), budget, seconds, f"rate {rate:g}")


def _descend(problem: Problem, steps: int, rate: float) -> Tensor:
    found = reconstruct(
        problem.generator,
        problem.x_obs,
        problem.mask,
        method="adam",
        steps=steps,
        learning_rate=rate,
        chains=problem.chains,
        weight=1.0,
    )
    return found.images[0]


def _tuned_rate(group: str, generator: nn.Module, log: Log) -> float:
    """The rate of lowest mean error on other faces, or on another observation."""
    budget = _TUNING[group]
    if group == "faces":
        problems = [_face(generator, number, 0.05, seed=2) for number in (0, 1)]
    else:
        # The second coordinate of the Gaussian at 72 degrees, which no other mean has.
        angle = torch.tensor(2.0 * torch.pi / 5.0)
        problems = [_two_d(float(angle.sin()), torch.stack([angle.cos(), angle.sin()]))]
    errors = {}
    for rate in _RATES[group]:
        key = {"piece": "tuning", "group": group, "rate": rate, "budget": budget}
        if not any(log.find(**key)):
            found = [problem.error(_descend(problem, budget, rate)) for problem in problems]
            log.add(**key, error=torch.cat(found).mean().item())
        errors[rate] = next(log.find(**key))["error"]
    return min(errors, key=errors.__getitem__)


def _blackjax(problem: Problem, budget: int, log: Log) -> Outcome:
    """BlackJAX, tuned for each budget as a user would: few but long moves."""
    from peers import jax_generators
    from peers.tempered_smc import sample

    short = budget < _BLACKJAX_SHORT[problem.group]
    if problem.group == "faces":
        twin, size = jax_generators.dcgan(problem.generator), 100
        how = {"target_ess": 0.1 if short else 0.2, "mcmc_steps": 1, "leapfrog_steps": 40}
        how |= {"step_size": 0.1, "steps_at_one": 100}
    else:
        twin, size = jax_generators.mlp(problem.generator.state_dict()), 2
        how = {"target_ess": 0.5 if short else 0.8, "mcmc_steps": 1 if short else 4}
        how |= {"leapfrog_steps": 8 if short else 10, "step_size": 0.3}
    mask = np.asarray(problem.mask, dtype=np.float32)
    known = np.nan_to_num(np.asarray(problem.x_obs, dtype=np.float32)) * mask
    found = sample(
        twin,
        lambda x: x * mask,
        known,
        problem.weight,
        size,
        problem.chains,
        0,
        max_gradients=budget,
        **how,
    )
    images = torch.tensor(np.asarray(twin(found.latents)))
    remark = f"reached beta {found.temperatures[-1]:.2g}, compiled in {found.seconds_compile:.0f} s"
    return Outcome(problem.error(images), found.gradients_per_chain, found.seconds_run, remark)


METHODS: dict[str, Callable[[Problem, int, Log], Outcome]] = {
    "adaptive": _adaptive,
    "polished": _polished,
    "paper": _paper,
    "adam": _adam,
    "blackjax": _blackjax,
}


def _problems(groups: Iterable[str], noises: Iterable[float]) -> Iterable[Problem]:
    if "2d" in groups:
        yield _two_d()
    if "faces" in groups:
        generator = load_faces()
        for noise_std in noises:
            for number in range(_FACES):
                yield _face(generator, number, noise_std)


def _key(problem: Problem, method: str, budget: int) -> dict[str, object]:
    return {"group": problem.group, "problem": problem.name, "method": method, "budget": budget}


def _run(problem: Problem, method: str, budget: int, log: Log) -> None:
    key = {"piece": "result", **_key(problem, method, budget), **problem.noise}
    if any(log.find(**key)):
        return
    done = next(log.find(piece="result", **_key(problem, method, budget)), None)
    if method == "adam" and done:  # the same run, because Adam does not depend on the noise
        log.add(**done | problem.noise)
        return
    if problem.group == "2d":
        torch.set_num_threads(1)  # layers of 20 units are too small to share among threads
    outcome = METHODS[method](problem, budget, log)
    errors = outcome.errors.double().nan_to_num(nan=torch.inf)
    good = float((errors < _GOOD[problem.group]).double().mean())
    kept = errors.tolist() if problem.group == "faces" else None
    log.add(
        **key,
        gradients=outcome.gradients,
        seconds=round(outcome.seconds, 2),
        good=good,
        median=float(errors.median()),
        mean=float(errors.mean()),
        worst=float(errors.max()),
        threads=torch.get_num_threads(),
        remark=outcome.remark,
        errors=kept,
    )
    print(f"{problem.name} {problem.noise} {method} {budget}: {good:.4f} good", flush=True)


def table(log: Log) -> str:
    """Share of good chains, errors and cost, per group, noise, method and budget."""
    lines = [line for line in log.lines if line["piece"] == "result"]
    keys = {
        (r["group"], r.get("noise_std") or 0.0, list(METHODS).index(r["method"]), r["budget"])
        for r in lines
    }
    rows = [
        f"{'problem':<8}{'noise':>6}  {'method':<10}{'budget':>7}{'spent':>7}{'pieces':>7}"
        f"{'good':>8}{'all good':>9}{'median':>10}{'mean':>9}{'worst':>9}{'s':>8}"
    ]
    for group, noise, index, budget in sorted(keys):
        method = list(METHODS)[index]
        found = [
            r
            for r in lines
            if (r["group"], r.get("noise_std") or 0.0, r["method"], r["budget"])
            == (group, noise, method, budget)
        ]
        every = sum(r["good"] == 1.0 for r in found)
        rows.append(
            f"{group:<8}{noise or '':>6}  {method:<10}{budget:>7}"
            f"{statistics.fmean(r['gradients'] for r in found):>7.0f}{len(found):>7}"
            f"{statistics.fmean(r['good'] for r in found):>8.4f}{every:>6}/{len(found):<2}"
            f"{statistics.median(r['median'] for r in found):>10.5f}"
            f"{statistics.fmean(r['mean'] for r in found):>9.4f}"
            f"{max(r['worst'] for r in found):>9.4f}"
            f"{statistics.median(r['seconds'] for r in found):>8.1f}"
        )
    return "\n".join(rows)


def main() -> None:
    """Run what is not in the log, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", nargs="+", choices=tuple(_BUDGETS), default=list(_BUDGETS))
    parser.add_argument("--methods", nargs="+", choices=tuple(METHODS), default=list(METHODS))
    parser.add_argument("--budgets", nargs="+", type=int, help="gradients a chain (several)")
    parser.add_argument("--faces", type=int, default=_FACES, help="how many of the faces (8)")
    parser.add_argument("--noises", nargs="+", type=float, default=list(_NOISES), help="of faces")
    options = parser.parse_args()
    methods = [
        m for m in options.methods if m != "blackjax" or importlib.util.find_spec("blackjax")
    ]
    if "blackjax" in options.methods and "blackjax" not in methods:
        print("blackjax is not installed (extra peers): left out")
    log = Log(_RESULTS / "annealing.jsonl")
    kept = {f"face {number}" for number in range(options.faces)} | {"2d"}
    problems = [p for p in _problems(options.problems, options.noises) if p.name in kept]
    for group in options.problems:
        for budget in options.budgets or _BUDGETS[group]:
            for problem in problems:
                for method in methods:
                    if problem.group == group:
                        _run(problem, method, budget, log)
    print(table(log))


if __name__ == "__main__":
    main()
