"""The result of a run: completions, their energies and weights, evidence, and a diagnosis."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from cogen_fast.results import plots, result_layout, showing
from cogen_fast.results.diagnostics import DiagnosticInputs, diagnose, failures, misfit_in_noise
from cogen_fast.sampler.tuning import POPULATION
from cogen_fast.sampler.weights import effective_sample_size, log_mean_weight, normalised_weights
from cogen_fast.support.archives import array_of, opened_npz
from cogen_fast.support.arguments import (
    abbreviated,
    check_file,
    check_folder,
    check_number,
    check_path,
    check_whole,
)
from cogen_fast.support.digests import digest_of
from cogen_fast.support.extras import imported
from cogen_fast.support.files import open_regular, parse_json, read_text, write_atomically

_ARRAYS, _SUMMARY, _GRID = "result.npz", "result.json", "grid.png"
_FORMAT = "cogen-fast result 11"
GRADIENT_COST = 2
"""The cost of a gradient with respect to z, in forward passes."""
ANNEALED = ("adaptive", "paper")
"""The methods that anneal; all others are in `cogen_fast.methods.baselines`."""
NOISE_GIVEN = "the noise was given"
"""The reason why most results have no ``noise_std`` and ``noise_bounds``."""
_TILES = 8
_ANIMATIONS = {".gif": "GIF", ".webp": "WEBP", ".png": "PNG"}
_EXACT = 1e-4  # a fit is exact below this share of the samples' mean energy
_AT_BOUND, _OF_RANGE = 0.05, 0.1  # distance to a bound, in log noise and as a share of its range
_LEAST_DRAWS = 4  # draws of an island: R-hat splits these in halves


@dataclass(frozen=True, repr=False)
class Result:
    """Samples of B observations x N chains, all on the CPU.

    Attributes:
        images: the outputs ``G(z)`` of the samples, ``(B, N, *output_shape)``.
        completed: ``images`` with the observed entries pasted back, for masks; else None.
        fit_images, fit_latents, fit_energies: best fits, found by optimising the misfit from the K
            samples of lowest energy, in that order. Their shapes are those of ``images``,
            ``latents`` and ``energies`` with K in place of N; None without ``polish``. They are not
            samples: each fits ``x_obs`` at least as well as the sample from which it started.
        latents: the samples, ``(B, N, d)``.
        energies: their misfit energies ``E(z)``, ``(B, N)`` float64; where the noise was inferred,
            those at its mean precision.
        noise_std: the standard deviation of the noise that belongs to each sample, ``(B, N)``
            float64, where it was inferred; else None.
        noise_bounds: the bounds of an inferred ``noise_std``, ``(B, 2)`` float64; else None.
        log_weights: AIS log weights ``(B, N)`` float64, or None.
        log_normaliser: ``log mean w``, the estimate of ``log E_prior[exp(-beta E)]`` at the last
            inverse temperature, ``(B,)`` float64, or None. With inferred noise it is NaN where a
            budget left a single step for all noise levels.
        log_normaliser_error: the standard error of the log normaliser and of the log evidence,
            ``(B,)`` float64; NaN where it is not known, None where it is not known anywhere.
        log_evidence: the log evidence of the measurements, ``(B,)`` float64, NaN or None as above.
        reasons: the reason for each None (and NaN) above, by attribute name; and of "complete".
        roots: the index of the prior draw from which each chain descends, ``(B, N)`` int64.
        surviving_roots: the number of prior draws that have descendants on an island, ``(B S,)``
            int64. Here and below, the S islands of an observation are side by side. With the
            adaptive method they are the R populations, or the two halves of a single one
            (``settings["islands"]``); with other methods S is 1.
        betas: inverse temperatures, ``(T, B S)`` float64. With inferred noise they are relative to
            its mean precision, so that before the last rounds they exceed 1, where noise is less.
        acceptance, step_size, energy_history, energy_std: records of each temperature, ``(T, B S)``
            float64, NaN where it was not reached or the island had finished. ``step_size`` is the
            mean where each chain has its own. The last two are mean and standard deviation of the
            energies of all particles that ran.
        leapfrog_steps, hmc_steps: L and M of each temperature, ``(T,)`` int64; with the adaptive
            method the largest M of any observation.
        oversized_steps: whether a short budget forced steps of the inverse temperature that were
            too large, ``(B S,)`` bool.
        rounds: the number of temperatures spent at beta = 1, ``(B S,)`` int64.
        gradients: the number of gradient evaluations of each particle that ran. A budget counts
            these; all observations of a call share it, as one gradient counts for each of them.
        forwards: the number of its forward passes apart from gradients: its share of the scored
            prior draws, and energies in another float type than the gradients.
        non_finite: the number of each chain's proposals that were not finite, ``(B, N)`` int64.
        x_obs: the measurements ``(B, ...)``, 0 where hidden. ``observed`` is bool, of the same
            shape, or None where everything is observed.
        complete: False where the run was stopped, at ``beta_reached``, before its end;
            ``reasons["complete"]`` says why.
        settings: all settings of the run, as plain values.
        notes: decisions that were made for the user, in words.
        trace: the latents of every particle that ran, beginning at the prior,
            ``(T + 1, B, R N, d)``, where asked for; else None.
        frames: the outputs of a few of these particles at some steps of the trace, ``frame_steps``
            ``(F,)`` int64, for `animate`: ``(F, B, G, *output_shape)``. None without a trace.
    """

    images: Tensor
    completed: Tensor | None
    fit_images: Tensor | None
    fit_latents: Tensor | None
    fit_energies: Tensor | None
    latents: Tensor
    energies: Tensor
    noise_std: Tensor | None
    noise_bounds: Tensor | None
    log_weights: Tensor | None
    log_normaliser: Tensor | None
    log_normaliser_error: Tensor | None
    log_evidence: Tensor | None
    roots: Tensor
    surviving_roots: Tensor
    betas: Tensor
    acceptance: Tensor
    step_size: Tensor
    energy_history: Tensor
    energy_std: Tensor
    leapfrog_steps: Tensor
    hmc_steps: Tensor
    non_finite: Tensor
    oversized_steps: Tensor
    rounds: Tensor
    x_obs: Tensor
    observed: Tensor | None
    trace: Tensor | None
    frames: Tensor | None
    frame_steps: Tensor | None
    complete: bool
    beta_reached: float
    gradients: int
    forwards: int
    reasons: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def effective_sample_size(self) -> Tensor | None:
        """Effective sample size of the weights, ``(B,)`` from 1 to N; None without weights."""
        return None if self.log_weights is None else effective_sample_size(self.log_weights)

    @property
    def cost(self) -> int:
        """The cost of each observation in forward passes; a gradient of z counts as 2.

        It includes all particles that ran and the optimisation of fits, but not the final forward
        passes that give ``images`` and ``fit_images``.
        """
        populations, chains = self.settings.get("populations", 1), self.settings["chains"]
        particles = populations * self.settings.get("particles", chains)
        spent = particles * (self.forwards + GRADIENT_COST * self.gradients)
        if self.fit_images is None:
            return int(spent)
        fits = self.settings["fits"] * self.settings["polish"]
        return int(spent + GRADIENT_COST * fits + self.settings["fit_draws"])

    @property
    def best(self) -> Tensor:
        """The index of the chain of lowest energy, ``(B,)``."""
        return self.energies.argmin(-1)

    @property
    def best_images(self) -> Tensor:
        """``G(z)`` of the chain of lowest energy, ``(B, *output_shape)``."""
        return self.images[torch.arange(len(self.images), device="cpu"), self.best]

    @property
    def fit(self) -> Tensor:
        """The image that fits ``x_obs`` best, ``(B, *output_shape)``: of the fits, or the samples.

        Only the misfit counts, not the prior; where many images fit, this is one of them.
        """
        if self.fit_images is None or self.fit_energies is None:
            return self.best_images
        return self.fit_images[
            torch.arange(len(self.images), device="cpu"), self.fit_energies.argmin(-1)
        ]

    @property
    def estimate(self) -> Tensor:
        """The one image to show if only one can be shown, ``(B, *output_shape)``.

        It is the mean of the fits with their `fit_weights` or, without ``polish``, the mean of the
        samples. Where several images are possible, their mean has a lower expected squared error
        than any of them.
        """
        if self.fit_images is None:
            return self.mean()
        shares = self.fit_weights.to(self.fit_images.dtype)
        shape = (*shares.shape, *[1] * (self.fit_images.ndim - 2))
        return (shares.reshape(shape) * self.fit_images).sum(1)

    @property
    def fit_weights(self) -> Tensor:
        """The weight of each fit in `estimate`, ``(B, K)`` float64; raises ValueError without fits.

        A weight is proportional to one over the square of the fit's misfit, because a fit that is
        far better has found a mode that the others missed. With a misfit of the user's own all
        weights are equal.
        """
        if self.fit_energies is None:
            raise ValueError(f"fit_weights: {self.reasons['fit_energies']}")
        energies = self.fit_energies
        if self.settings["noise"].startswith("user misfit"):
            # The zero of a user's misfit has no meaning.
            return torch.full_like(energies, 1.0 / energies.shape[1])
        # Fits far below the samples' misfit are all exact, and their weights are alike.
        exact = (_EXACT * self.energies.mean(-1, keepdim=True)).clamp(min=1e-300)
        misfit = energies + exact
        shares = (misfit / misfit.amin(-1, keepdim=True)) ** -2
        weights: Tensor = shares / shares.sum(-1, keepdim=True)
        return weights

    def pasted(self, images: Tensor) -> Tensor:
        """``images`` ``(B, *output_shape)`` with the observed entries pasted in, for masks.

        With other operators ``images`` are returned unchanged.
        """
        if self.completed is None or self.observed is None:
            return images
        return torch.where(self.observed, self.x_obs, images)

    @property
    def weights(self) -> Tensor:
        """Weights ``(B, N)`` that sum to 1; raises ValueError with the reason if there are none."""
        if self.log_weights is None:
            raise ValueError(f"weighted: this run has no weights: {self.reasons['log_weights']}")
        return normalised_weights(self.log_weights)

    def mean(self, *, weighted: bool = False) -> Tensor:
        """The mean output over chains, ``(B, *output_shape)``."""
        return (self._shares(weighted) * self.images).sum(1)

    def std(self, *, weighted: bool = False) -> Tensor:
        """The standard deviation over chains, ``(B, *output_shape)``.

        The sum of squares is divided by the sum of weights.
        """
        deviation = self.images - self.mean(weighted=weighted)[:, None]
        return (self._shares(weighted) * deviation**2).sum(1).sqrt()

    def _shares(self, weighted: bool) -> Tensor:
        """The weight of each chain in a mean, broadcastable to ``images``."""
        batch, chains = self.energies.shape
        shares = (
            self.weights if weighted else torch.full((batch, chains), 1.0 / chains, device="cpu")
        )
        shape = (batch, chains) + (1,) * (self.images.ndim - 2)
        return shares.to(self.images.dtype).reshape(shape)

    def grid(
        self,
        path: str | Path | None = None,
        *,
        tiles: int = _TILES,
        truth: Tensor | None = None,
    ) -> Image.Image:
        """A picture with a row for each observation.

        A row shows what was observed, up to ``tiles`` chains in order of energy, the `estimate`
        (with ``polish``), the mean and the standard deviation. Where ``truth`` is given, it comes
        first; its shape is ``(B, C, H, W)``, or ``(C, H, W)`` for one observation. The picture is
        written to ``path`` as PNG where that is given. Any `failures` are written below the rows.
        Raises ValueError for outputs that are not images of 1 or 3 channels, and for a ``truth`` of
        another shape. With masks, the observed pixels are pasted into chains and estimate, while
        mean and standard deviation are of ``G(z)``; a line below the rows says so.
        """
        target = None if path is None else check_file("path", path)
        image = showing.grid(self, tiles, truth)
        if target is not None:
            write_atomically(target, lambda file: image.save(file, format="PNG"))
        return image

    def animate(
        self, path: str | Path, *, observation: int = 0, seconds: float = 6.0, pause: float = 2.0
    ) -> Path:
        """Write the annealing of an observation as an animation: particles from prior to posterior.

        ``path`` ends in .gif, .webp or .png (animated PNG). It plays for ``seconds`` and stands
        still for ``pause`` seconds at its end, then repeats. Each frame has a few of the particles
        (`frames`) in fixed places; where particles are resampled, the particle in a place is
        replaced by a copy of another. Returns the path. Raises ValueError naming the argument, and
        without ``keep_trace=True`` in `Adaptive` or `Paper`.
        """
        target = check_file("path", path)
        kind = _ANIMATIONS.get(target.suffix.lower())
        if kind is None:
            raise ValueError(f"path: expected a name in {', '.join(_ANIMATIONS)}, got {target}")
        b = self._checked_row(observation)
        seconds = check_number("seconds", seconds, above=0.0)
        pause = check_number("pause", pause, above=0.0, zero=True)
        if self.frames is None or self.frame_steps is None:
            raise ValueError(
                "keep_trace: expected a run with method=Adaptive(keep_trace=True) or "
                "Paper(keep_trace=True), got one without a trace"
            )
        plots.animated(showing.frames(self, b), target, kind, seconds, pause)
        return target

    def _checked_row(self, observation: int) -> int:
        row, count = check_whole("observation", observation, 0), len(self.images)
        if row >= count:
            raise ValueError(f"observation: expected a number below {count}, got {row}")
        return row

    def plot_trace(self, path: str | Path | None = None, *, observation: int = 0) -> Any:
        """Curves over the temperatures of an observation, as a matplotlib Figure (``plots``).

        They are the inverse temperature, the mean misfit energy with its standard deviation over
        the particles, the acceptance and the step size, one curve per island; with given Gaussian
        noise also the energy that the noise alone has on average. The figure is written to ``path``
        where that is given. Raises ValueError for methods that do not anneal, and ImportError
        naming the extra.
        """
        b = self._checked_row(observation)
        if not len(self.betas):
            raise ValueError(
                f"plot_trace: expected a run with temperatures, got {self.settings['method']!r}"
            )
        return _written(showing.trace(self, b), path)

    def plot_uncertainty(self, path: str | Path | None = None, *, observation: int = 0) -> Any:
        """Where completions disagree, as a matplotlib Figure (extra ``plots``).

        The maps are mean, standard deviation, and the 5 % and 95 % quantiles of each pixel with
        their distance; if particles ran on several islands, also the standard deviation of the
        islands' means, which sampling alone makes about the square root of the number of chains
        per island smaller than the standard deviation. Spreads are means over channels, in units of
        the images. The figure is written to ``path`` where that is given. Raises ValueError for
        outputs that are not images, and ImportError naming the extra.
        """
        b = self._checked_row(observation)
        return _written(showing.uncertainty(self, b), path)

    def _repr_html_(self) -> str:
        """The picture and the overview, as Jupyter shows a result."""
        return showing.as_html(self)

    @property
    def pictured(self) -> bool:
        """Whether outputs are images of 1 or 3 channels, which can be shown."""
        return self.images.ndim == 5 and self.images.shape[2] in (1, 3)

    def summary(self) -> dict[str, Any]:
        """The run as plain values, as written to ``result.json``."""
        return {
            "format": _FORMAT,
            "complete": self.complete,
            "beta_reached": self.beta_reached,
            "gradients": self.gradients,
            "forwards": self.forwards,
            "cost": self.cost,
            "observations": self.energies.shape[0],
            "chains": self.energies.shape[1],
            "best": self.best.tolist(),
            "energies": [_listed(row) for row in self.energies],
            "effective_sample_size": _listed(self.effective_sample_size),
            "surviving_roots": self.surviving_roots.tolist(),
            "log_normaliser": _listed(self.log_normaliser),
            "log_normaliser_error": _listed(self.log_normaliser_error),
            "log_evidence": _listed(self.log_evidence),
            "non_finite_proposals": int(self.non_finite.sum()),
            "reasons": self.reasons,
            "diagnosis": self.diagnose(),
            "settings": self.settings,
            "notes": self.notes,
        }

    def save(self, directory: str | Path, *, overwrite: bool = False) -> Path:
        """Write ``result.npz``, ``result.json`` and, for images, ``grid.png`` into ``directory``.

        Each file is written under another name and then renamed. Returns the directory. Raises
        FileExistsError where it holds a result already, unless ``overwrite``.
        """
        folder = check_folder("directory", directory)
        folder.mkdir(parents=True, exist_ok=True)
        if not overwrite and (folder / _SUMMARY).exists():
            raise FileExistsError(f"directory: {folder} holds a result already (overwrite=True?)")
        arrays = {name: t.numpy() for name, t in self._tensors().items()}
        write_atomically(folder / _ARRAYS, _npz_writer(arrays))
        if self.pictured:
            self.grid(folder / _GRID)
        else:
            (folder / _GRID).unlink(missing_ok=True)
        summary = self.summary()
        signed = {**summary, "digest": content_digest(self._tensors(), summary)}
        text = json.dumps(signed, indent=2, allow_nan=False)
        write_atomically(folder / _SUMMARY, lambda file: _write_text(file, text))
        return folder

    def _tensors(self) -> dict[str, Tensor]:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: v for name, v in values.items() if isinstance(v, Tensor)}

    @classmethod
    def load(cls, directory: str | Path) -> Result:
        """The result that `save` wrote into ``directory``.

        Raises FileNotFoundError where there is none, and ValueError where it is damaged or its
        arrays do not fit together, naming the first that does not.
        """
        folder = check_path("directory", directory)
        try:
            arrays = _read_arrays(folder / _ARRAYS)
            summary = _read_summary(folder / _SUMMARY)
            result_layout.check(arrays, summary)
            if summary.get("digest") != content_digest(arrays, summary):
                raise ValueError(f"{_ARRAYS} and {_SUMMARY} are not as they were written")
        except (FileNotFoundError, PermissionError):
            raise
        except Exception as error:  # a damaged archive can raise any exception
            raise ValueError(f"directory: {folder} holds no readable result: {error}") from error
        plain = {key: summary[key] for key in result_layout.PLAIN}
        absent = dict.fromkeys(result_layout.OPTIONAL - set(arrays))
        return cls(**arrays, **absent, **plain)  # type: ignore[arg-type]

    def _error_shown(self) -> str:
        error = self.log_normaliser_error
        known = error is not None and bool(error.isfinite().any())
        return "" if error is None or not known else f" (standard error {_shown(error)})"

    def diagnose(self) -> list[str]:
        """A sentence on each thing that is wrong, with its cause and an action; empty if none is.

        The checks are of interruption, independent chains, the budget, the acceptance, final
        energies, weights, agreement of islands and of their evidence, whether the standard error of
        the evidence is known, the misfit of the best sample, inferred noise at a bound, and
        proposals that were not finite.
        """
        return diagnose(self.diagnostic_inputs())

    def failures(self) -> list[str]:
        """The sentences of `diagnose` by which the chains are not samples of the posterior at all.

        The run was interrupted, the chains never moved, or their acceptance fell to nearly 0. Empty
        where there is no such reason.
        """
        return failures(self.diagnostic_inputs())

    def diagnostic_inputs(self) -> DiagnosticInputs:
        """The plain tensors that `diagnose` looks at."""
        adaptive = self.settings["method"] == "adaptive"
        populations = self.settings.get("populations", 1)
        particles = self.settings.get("particles", self.energies.shape[1])
        islands = self.settings.get("islands", populations)
        unknown = torch.zeros(len(self.energies), dtype=torch.bool, device="cpu")
        if self.log_normaliser is not None:
            error = self.log_normaliser_error
            unknown = ~unknown if error is None else error.isnan()
        compared, latents = self._compared(self.latents)
        return DiagnosticInputs(
            complete=self.complete,
            stopped=self.reasons.get("complete"),
            annealed=self._annealed,
            adaptive=adaptive,
            independent=adaptive and self.settings["particles"] < POPULATION,
            budgeted=self.settings.get("budget") is not None,
            populations=populations,
            islands=islands,
            particles=particles * populations // islands,
            compared=compared,
            latents=latents,
            residual=self._residual(),
            effective_sample_size=self.effective_sample_size,
            error_unknown=unknown,
            evidence_lead=self._evidence_lead(),
            acceptance=self.acceptance,
            energies=self.energies,
            energy_std=self.energy_std,
            energy_history=self.energy_history,
            non_finite=self.non_finite,
            moves=int(self.hmc_steps.sum()),
            oversized_steps=self.oversized_steps,
            rounds=self.rounds,
            rounds_missing=self._rounds_missing(),
            at_low_bound=self._at_bound(0),
            at_high_bound=self._at_bound(1),
        )

    @property
    def _annealed(self) -> bool:
        return self.settings.get("method") in ANNEALED

    @property
    def groups(self) -> int:
        """The number of groups of chains that ran apart, of equal size and side by side."""
        islands: int = self.settings.get("islands", 1)
        populations: int = self.settings.get("populations", 1)
        return islands if self.energies.shape[1] % islands == 0 else populations

    def _compared(self, values: Tensor) -> tuple[int, Tensor]:
        """The number of groups of chains that `diagnose` compares, and ``values`` of these groups.

        The groups have equal sizes: where an odd number of chains comes from two halves, the middle
        chain, which can be of either half, is left out.
        """
        chains = values.shape[1]
        halves = self.settings.get("populations") == 1 and self.settings.get("islands") == 2
        if not halves or chains % 2 == 0 or chains == 1:
            return self.groups, values
        half = chains // 2
        return 2, torch.cat([values[:, :half], values[:, -half:]], 1)

    def _evidence_lead(self) -> Tensor | None:
        """The best island's log evidence minus the median of all islands', ``(B,)``, in nats."""
        if self.log_weights is None:
            return None
        groups, log_weights = self._compared(self.log_weights)
        each = log_mean_weight(log_weights.reshape(len(log_weights), groups, -1))
        return each.amax(-1) - each.median(-1).values

    @property
    def _unit(self) -> str:
        """The unit for which gradients are counted."""
        particles = self.settings.get("particles", 0)
        return "particle" if particles > self.settings["chains"] else "chain"

    def _residual(self) -> Tensor | None:
        """The best sample's root mean square misfit in noise standard deviations, ``(B,)``."""
        if not self.settings["noise"].startswith("noise_std"):
            return None
        return misfit_in_noise(self.energies.min(-1).values, self.measured)

    @property
    def measured(self) -> Tensor:
        """The number of measured values, ``(B,)`` float64."""
        entries = torch.ones_like(self.x_obs) if self.observed is None else self.observed
        return entries.double().flatten(1).sum(-1).clamp(min=1.0)

    def _at_bound(self, which: int) -> Tensor:
        """Whether at least half of the samples have a noise next to a bound, ``(B,)`` bool.

        ``which`` is 0 for the lower bound and 1 for the upper. Next to it means within 5 %, or
        within a tenth of the range of the logarithm if that is less. False where no noise was
        drawn.
        """
        if self.noise_std is None or self.noise_bounds is None:
            return torch.zeros(len(self.energies), dtype=torch.bool, device="cpu")
        bounds = self.noise_bounds.log()
        near = (_OF_RANGE * bounds.diff()).clamp(max=_AT_BOUND)
        at = (self.noise_std.log() - bounds[:, which, None]).abs() < near
        drawn = self.rounds.reshape(len(at), -1).amin(-1) > 0
        return drawn & (at.double().mean(-1) >= 0.5)

    def _rounds_missing(self) -> Tensor:
        """The rounds at beta = 1 that a budget cut off, ``(B S,)``; 0 if a quarter were made."""
        planned: int = self.settings.get("final_rounds", 0)
        return torch.where(4 * self.rounds < planned, planned - self.rounds, 0)

    def to_arviz(self, *, outputs: bool = False) -> Any:
        """The samples as an ArviZ data tree (extra ``arviz``): chain = island, draw = sample.

        Islands are the populations or, of a single one with an even number of chains, its halves;
        the chains of the published method are one island. The group ``posterior`` has ``latent``
        ``(S, n, B, d)``, with the dimensions chain, draw, observation and dimension, and with
        ``outputs`` also ``output``. The group ``sample_stats`` has ``misfit_energy`` and, where
        there are weights, ``log_weight``. With one observation there is no such dimension. Related
        particles of a population are side by side, so that an effective sample size from
        autocorrelations takes them into account. Raises ImportError naming the extra.
        """
        groups = {
            "posterior": {"latent": self.latents},
            "sample_stats": {"misfit_energy": self.energies},
        }
        if outputs:
            groups["posterior"]["output"] = self.images
        if self.log_weights is not None:
            groups["sample_stats"]["log_weight"] = self.log_weights
        plain = {
            group: {name: _by_island(t, self.groups) for name, t in values.items()}
            for group, values in groups.items()
        }
        observation = ["observation"] if len(self.energies) > 1 else []
        dims = {name: observation for group in groups.values() for name in group}
        dims["latent"] = [*observation, "dimension"]
        return _arviz("arviz_base", "to_arviz").from_dict(plain, dims=dims)

    def convergence(self) -> dict[str, npt.NDArray[np.float64]]:
        """Rank-normalised R-hat and bulk ESS over islands (Vehtari et al. 2021).

        The keys are ``rhat_latent`` and ``ess_latent`` ``(B, d)``, and ``rhat_energy`` and
        ``ess_energy`` ``(B,)``, computed by ArviZ (extra ``arviz``). Islands are the populations
        or, of a single one, its halves. With few draws these numbers are noisy. Raises ValueError
        where there is only one island, or where an island has fewer than 4 chains.
        """
        islands = self.groups
        draws = self.energies.shape[1] // islands
        if islands < 2:
            raise ValueError(
                "convergence: expected chains from two islands, of method='adaptive' with an even "
                "number of chains or populations=2, got one"
            )
        if draws < _LEAST_DRAWS:
            raise ValueError(
                f"convergence: expected {_LEAST_DRAWS} chains or more of an island, got {draws}"
            )
        stats, tree = _arviz("arviz_stats", "convergence"), self.to_arviz()
        latents = tree["posterior"].to_dataset()[["latent"]]
        energies = tree["sample_stats"].to_dataset()[["misfit_energy"]]
        shape = (len(self.energies), *self.latents.shape[2:])
        found = {}
        for label in ("rhat", "ess"):
            statistic = getattr(stats, label)
            of_latents, of_energies = statistic(latents), statistic(energies)
            found[f"{label}_latent"] = np.asarray(of_latents["latent"], np.float64).reshape(shape)
            found[f"{label}_energy"] = np.asarray(of_energies["misfit_energy"], np.float64).ravel()
        return found

    def __repr__(self) -> str:
        return "\n".join([self.overview(), *(f"  wrong: {line}" for line in self.diagnose())])

    def overview(self) -> str:
        """The run in words: what was made, at what cost, and notes; without the diagnosis."""
        b, n = self.energies.shape
        state = "complete" if self.complete else f"UNFINISHED at beta {self.beta_reached:.4g}"
        facts = {
            "outputs": f"{tuple(self.images.shape[2:])}, latents ({self.latents.shape[-1]},)",
            "best energy": _shown(self.energies.min(-1).values),
        }
        if self.observed is not None:
            shares = [f"{each.double().mean():.1%}" for each in self.observed]
            facts["observed"] = ", ".join(shares[:4]) + (", ..." if b > 4 else "")
        reached = self.acceptance[self.acceptance.isfinite().any(-1)]
        if not self._annealed:
            facts["run"] = (
                f"{self.settings['method']}, {self.gradients:,} gradients and {self.forwards:,} "
                f"forwards per {self._unit}"
            )
        elif len(reached):
            forwards = f" and {self.forwards:,} forwards" if self.forwards else ""
            facts["run"] = (
                f"{len(reached)} temperatures, {self.gradients:,} gradients{forwards} per "
                f"{self._unit}, acceptance {reached.nanmean():.2f} ({_last(reached)} at the end)"
            )
        ess = self.effective_sample_size
        if self.settings.get("method") != "adaptive" and ess is not None:
            facts["effective sample size"] = f"{_shown(ess)} of {n}"
        for name in ("log_evidence", "log_normaliser"):
            if (value := getattr(self, name)) is not None:
                facts[name.replace("_", " ")] = _shown(value) + self._error_shown()
        for reason in dict.fromkeys(self.reasons.values()):
            if reason in (NOISE_GIVEN, self.reasons.get("complete")):
                continue  # the usual case; what is wrong says the other
            names = [name.replace("_", " ") for name, why in self.reasons.items() if why == reason]
            facts["no " + ", ".join(names)] = reason
        return "\n".join(
            [f"Result: {b} observation{'s' * (b > 1)} x {n} chain{'s' * (n > 1)}, {state}"]
            + [f"  {label}: {fact}" for label, fact in facts.items()]
            + [f"  note: {note}" for note in self.notes]
        )


def _written(figure: Any, path: str | Path | None) -> Any:
    """The figure itself, written to ``path`` if that is given; its suffix says in which format."""
    if path is not None:
        target = check_file("path", path)
        kind = target.suffix.lower().removeprefix(".")
        if kind not in (known := figure.canvas.get_supported_filetypes()):
            raise ValueError(f"path: expected a suffix of {', '.join(known)}, got {target}")
        write_atomically(target, lambda file: figure.savefig(file, format=kind, dpi=120))
    return figure


def _by_island(values: Tensor, islands: int) -> npt.NDArray[Any]:
    """``(B, T n, ...)`` to ``(T, n, B, ...)``, or to ``(T, n, ...)`` of one observation."""
    split = values.reshape(values.shape[0], islands, -1, *values.shape[2:]).movedim(0, 2)
    return (split[:, :, 0] if len(values) == 1 else split).numpy()


def _arviz(name: str, what: str) -> Any:
    return imported(name, what=what, package=name.replace("_", "-"), extra="arviz")


def _last(columns: Tensor) -> str:
    """The last finite value of each column, as text."""
    ends = [column[column.isfinite()][-1:] for column in columns.T]
    return _shown(torch.cat(ends))


def _shown(values: Tensor) -> str:
    numbers = [f"{v:.4g}" for v in values[:4].tolist()]
    return ", ".join(numbers) + (", ..." if len(values) > 4 else "")


def _listed(value: Tensor | None) -> list[float | None] | None:
    """Plain numbers, with None for NaN and infinities, which JSON lacks."""
    if value is None:
        return None
    return [v if math.isfinite(v) else None for v in value.tolist()]


def _read_arrays(path: Path) -> dict[str, Tensor]:
    with open_regular("directory", path) as file, opened_npz(_ARRAYS, file) as content:
        return {name: torch.from_numpy(array_of(_ARRAYS, content, name)) for name in content.files}


def _read_summary(path: Path) -> dict[str, Any]:
    summary = parse_json(_SUMMARY, read_text("directory", path))
    if not isinstance(summary, dict) or summary.get("format") != _FORMAT:
        found = summary.get("format") if isinstance(summary, dict) else summary
        raise ValueError(f"expected {_FORMAT!r}, got {abbreviated(found)}")
    return summary


def content_digest(arrays: Mapping[str, Tensor], summary: Mapping[str, Any]) -> str:
    """A digest over both files, which shows a change of either, or files of different runs."""
    plain = {name: value for name, value in summary.items() if name != "digest"}
    read = json.loads(json.dumps(plain))  # as read from a file: numeric keys become strings
    return digest_of(arrays, {_SUMMARY: json.dumps(read, sort_keys=True)})


def _npz_writer(arrays: dict[str, npt.NDArray[Any]]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with path.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]

    return write


def _write_text(path: Path, text: str) -> None:
    path.write_text(text + "\n")
