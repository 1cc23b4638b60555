"""Algorithm 1 of Fang and Schwing (2019), and an adaptive SMC sampler with the same transitions.

- One HMC transition: `leapfrog` (the proposal), `metropolis` (the accept test), and `hmc`, which
  joins them.
- The published method: `schedule` (inverse temperatures), `step_size` (its adaptation), and `ais`,
  the loop of Algorithm 1 with its log weights, which `dense` runs in C++ for small MLPs.
- The adaptive method: `smc`, the loop that weighs, resamples and moves particles. `pool` draws the
  first particles; `annealing_plan` chooses the next inverse temperature and the number of moves
  within a budget; `tuning` adapts step size and trajectory length; `curvature`, with `bases` and
  `sketches`, estimates the mass; `islands` says which particles tune which. `independent_chains`
  serves too few chains for a population, `fallback` refines gradients of reduced precision,
  `noise_level` infers noise, and `reverse` runs the schedule backwards to bound the evidence.
- `weights`: log weights, effective sample sizes and standard errors.

``init`` and ``step`` of `hmc`, `ais` and `smc`, and ``run`` of the last two, take any batched
potential ``energy(z)`` with a standard normal prior, so that you can build loops of your own.
"""

from cogen_fast.sampler import ais, hmc, reverse, schedule, smc, step_size

__all__ = ["ais", "hmc", "reverse", "schedule", "smc", "step_size"]
