"""What is seen of a run while it goes on, and what ends it: callbacks, time, a plateau."""

from __future__ import annotations

import inspect
import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from cogen_fast.methods.adaptive import AdaptivePlan
from cogen_fast.methods.inferred_noise import InferredNoise
from cogen_fast.methods.loop import Method
from cogen_fast.methods.paper import PaperPlan
from cogen_fast.problem.observation import Observation
from cogen_fast.results.diagnostics import FAR, misfit_in_noise
from cogen_fast.results.result import Result
from cogen_fast.sampler.ais import Run as PublishedRun
from cogen_fast.sampler.noise_level import NoiseRun
from cogen_fast.sampler.smc import Run as AdaptiveRun
from cogen_fast.support.arguments import shown
from cogen_fast.support.warnings import warn_user

AnyRun = AdaptiveRun | NoiseRun | PublishedRun
MOST_ON_PLATEAU = 2_000
"""Gradients of a particle, after which a run without a budget ends on a plateau."""
RUNNING = "The run was still going on."
"""Why the result of a `Snapshot` is unfinished."""
_RECENT = 10  # temperatures from which the time of the next ones is estimated
_LEAST_KNOWN = 3
_ROUND = 1 / 3  # the moves of a round at the posterior, as a share of those of a temperature
_E_FOLDS = 2  # e-folds of beta over which a misfit must have fallen


@dataclass(frozen=True)
class Snapshot:
    """A run after one temperature, as ``on_temperature`` of `cogen_fast.cogenerate` is given it.

    Attributes:
        gradients: gradient evaluations of each particle so far.
        seconds: wall-clock time of this call so far.
        seconds_left: the estimated time to the end, None where it cannot be estimated.
        beta: the inverse temperature, ``(B,)`` float64: the lowest of the islands of each
            observation. It is 1 in the rounds of moves at the posterior.
        misfit: root mean square misfit of all particles in units of ``noise_std``, ``(B,)``
            float64; None where there is no given Gaussian noise.
    """

    gradients: int
    seconds: float
    seconds_left: float | None
    beta: Tensor
    misfit: Tensor | None
    _assembled: Callable[[], Result]

    def result(self) -> Result:
        """The samples as they are now, as an unfinished `Result`; evaluates G at each of them.

        It must be called while ``on_temperature`` runs.
        """
        return self._assembled()


OnTemperature = Callable[[Snapshot], Any]


def checked_callback(on_temperature: Any) -> OnTemperature | None:
    """``on_temperature``; raises TypeError unless it is None or takes one argument."""
    if on_temperature is None:
        return None
    if not callable(on_temperature):
        raise TypeError(f"on_temperature: expected a callable or None, got {shown(on_temperature)}")
    checked: OnTemperature = on_temperature
    try:
        inspect.signature(checked).bind(object())
    except ValueError:  # compiled functions may have no signature
        pass
    except TypeError as error:
        raise TypeError(
            f"on_temperature: expected a callable that takes one argument, a Snapshot: {error}"
        ) from None
    return checked


class Standing:
    """How far a run of ``plan`` on ``observation`` has come, and at what rate.

    ``update`` looks at the run after each temperature; ``now`` are times in seconds.
    """

    def __init__(self, plan: Method, observation: Observation) -> None:
        self.plan = plan.base if isinstance(plan, InferredNoise) else plan
        self._count = observation.num_observed.double().expand(observation.count).cpu()
        given = observation.log_noise_constant is not None
        self._scaled = given and not isinstance(plan, InferredNoise)
        self._passed: deque[tuple[float, float]] = deque(maxlen=_RECENT + 1)
        self._rounds_ahead = 0.0
        self._history: list[tuple[list[float], list[float]]] = []

    def update(self, run: AnyRun, now: float) -> None:
        """Take note of the run after one more temperature."""
        self.beta, self.energy = _beta_and_energy(run, len(self._count))
        distance, ahead = self._distance(run)
        if ahead != self._rounds_ahead:  # annealing has ended: what is left is counted in rounds
            self._passed.clear()
        self._rounds_ahead = ahead
        self._passed.append((now, distance))
        if isinstance(run, AdaptiveRun):
            self._note(run)

    @property
    def misfit(self) -> Tensor | None:
        """Root mean square misfit in units of ``noise_std``, ``(B,)``; None without such a unit."""
        return self._misfit_of(self.energy) if self._scaled else None

    def seconds_left(self) -> float | None:
        """The time to the end at the rate of the last temperatures; None where it is not known."""
        (first, far), (last, near) = self._passed[0], self._passed[-1]
        if len(self._passed) < _LEAST_KNOWN or not far > near:
            return None
        rounds = self._rounds_ahead * (last - first) / (len(self._passed) - 1)
        return near * (last - first) / (far - near) + rounds

    def on_plateau(self) -> bool:
        """Whether the misfit of every observation would stay far above the noise.

        It is assumed to go on falling, with each e-fold of beta, as much as in the better of the
        last two, although it usually falls more slowly towards the end.
        """
        if not self._scaled or not self._history:
            return False
        falls = [self._fall(row) for row in range(len(self._count))]
        if any(fall is None for fall in falls):
            return False
        fall = torch.tensor(falls, dtype=torch.float64, device="cpu")
        at_end = self.energy + self.beta.log() * fall
        return bool((self._misfit_of(at_end) > FAR).all())

    def _note(self, run: AdaptiveRun) -> None:
        """Take note of the temperatures which are not known yet; a resumed run brings many."""
        for info in run.infos[len(self._history) :]:
            beta = info.choice.beta.reshape(len(self._count), -1).amin(-1)
            energy = info.energy.reshape(len(self._count), -1).nanmean(-1)
            self._history.append((beta.tolist(), energy.tolist()))

    def _fall(self, row: int) -> float | None:
        """The largest fall of an observation's mean energy in one of the last e-folds of beta."""
        falls: list[float] = []
        last = None
        for betas, energies in reversed(self._history):
            beta, energy = betas[row], energies[row]
            if last is None:
                last = beta, energy
            elif beta <= last[0] / math.e:
                falls.append((energy - last[1]) / math.log(last[0] / beta))
                last = beta, energy
            if len(falls) == _E_FOLDS:
                return max(*falls, 0.0)
        return None

    def _misfit_of(self, energy: Tensor) -> Tensor:
        return misfit_in_noise(energy.clamp(min=0.0), self._count.clamp(min=1.0))

    def _distance(self, run: AnyRun) -> tuple[float, float]:
        """How far the end is, in units in which a run goes at an even rate; NaN if not known.

        The second number is what comes after that, in the time that a temperature takes.
        """
        if isinstance(run, PublishedRun):
            return float(len(run.history.acceptance) - run.done), 0.0
        plan = self.plan
        assert isinstance(plan, AdaptivePlan)
        annealing = run.annealing if isinstance(run, NoiseRun) else run
        if plan.particle_budget is not None:
            whole = plan.particle_budget * (2 if plan.evidence == "frozen" else 1)
            return float(whole - annealing.state.spent), 0.0
        if annealing.repeats is not None:
            return float(len(annealing.repeats) - len(annealing.infos)), 0.0
        if plan.evidence == "frozen" or isinstance(run, NoiseRun):
            return math.nan, 0.0
        rounds = plan.annealing.final_rounds
        if float(self.beta.min()) >= 1.0:
            return float(rounds - int(annealing.state.rounds.min())), 0.0
        return float(-self.beta.min().log()), rounds * _ROUND


class Watch:
    """The `Observer` of a run: calls ``on_temperature``, and ends a run that has taken enough.

    ``assembled`` makes an unfinished result of a run. A run ends after ``time_limit`` seconds, or
    where ``on_temperature`` returns True, or on a plateau (then ``plateaued`` is True), if it is an
    adaptive run without a budget that has spent `MOST_ON_PLATEAU` gradients.
    """

    def __init__(
        self,
        plan: Method,
        observation: Observation,
        assembled: Callable[[AnyRun], Result],
        on_temperature: OnTemperature | None,
        time_limit: float | None,
    ) -> None:
        self.plan, self.assembled = plan, assembled
        self.on_temperature, self.time_limit = on_temperature, time_limit
        self.standing = Standing(plan, observation)
        base = self.standing.plan
        self.adaptive = isinstance(base, AdaptivePlan)
        self.unlimited = isinstance(base, AdaptivePlan) and base.budget is None
        self.warned = self.plateaued = False

    def start(self) -> None:
        """Start the clock."""
        self.began = time.monotonic()

    def after_step(self, run: AnyRun) -> str | None:
        """Look at the run; a reason ends it there."""
        now = time.monotonic()
        # Looking makes the host wait for the device.
        if self.adaptive or self.on_temperature is not None:
            self.standing.update(run, now)
        reason = self._plateau(run) if self.unlimited else None
        if (
            self.on_temperature is not None
            and self.on_temperature(self._snapshot(run, now)) is True
        ):
            return "on_temperature ended the run. With checkpoint= it can be continued."
        if reason is None and self.time_limit is not None and now - self.began >= self.time_limit:
            return (
                f"The time limit of {self.time_limit:g} s ended the run. Give more time; with "
                "checkpoint= the same call continues it."
            )
        return reason

    def facts(self) -> Mapping[str, str]:
        """The misfit, and the time left, of an adaptive run."""
        if not self.adaptive:
            return {}
        misfit, left = self.standing.misfit, self.standing.seconds_left()
        shown = {} if misfit is None else {"misfit": f"{misfit.max():.3g} noise_std"}
        return shown | {"left": "unknown" if left is None else tqdm.format_interval(left)}

    def _snapshot(self, run: AnyRun, now: float) -> Snapshot:
        return Snapshot(
            gradients=_gradients(self.plan, run),
            seconds=now - self.began,
            seconds_left=self.standing.seconds_left(),
            beta=self.standing.beta,
            misfit=self.standing.misfit,
            _assembled=partial(self.assembled, run),
        )

    def _plateau(self, run: AnyRun) -> str | None:
        """Warn once where the misfit stays far above the noise; the reason to end there."""
        if not self.standing.on_plateau():
            return None
        misfit, beta = self.standing.misfit, self.standing.beta
        assert misfit is not None
        spent = _gradients(self.plan, run)
        found = (
            f"the misfit hardly falls any more and is still {misfit.min():.3g} noise_std (root "
            f"mean square) after {spent:,} gradients, so G does not come near x_obs"
        )
        if spent >= MOST_ON_PLATEAU:
            self.plateaued = True
            return (
                f"A plateau ended the run: {found}. The samples are those of the posterior for "
                f"{_noise_in_words(beta)}. Check the scale of x_obs, give noise_std='auto' or a "
                "larger noise_std, or give a budget, which is then used up."
            )
        if not self.warned:
            self.warned = True
            warn_user(
                f"{found}; without a budget the run ends after {MOST_ON_PLATEAU:,} gradients if "
                "this does not change. noise_std='auto' infers a noise level that fits."
            )
        return None


def _noise_in_words(beta: Tensor) -> str:
    factors = beta.rsqrt()
    low, high = f"{factors.min():.3g}", f"{factors.max():.3g}"
    return f"{low} noise_std" if low == high else f"{low} to {high} noise_std"


def _gradients(plan: Method, run: AnyRun) -> int:
    """Gradient evaluations of each particle so far."""
    if isinstance(run, PublishedRun):
        assert isinstance(plan, PaperPlan)
        each = plan.moves.hmc_steps * plan.moves.leapfrog_steps
        return 1 + run.done * each + (run.refined is not None)
    return (run.annealing if isinstance(run, NoiseRun) else run).state.spent


def _beta_and_energy(run: AnyRun, count: int) -> tuple[Tensor, Tensor]:
    """The lowest inverse temperature and the mean energy of each observation, ``(B,)``."""
    state = run.annealing.state if isinstance(run, NoiseRun) else run.state
    beta = state.beta.double().reshape(count, -1).amin(-1)
    energy = state.hmc.energy.double().reshape(count, -1).mean(-1)
    return beta.cpu(), energy.cpu()
