"""Algorithm 1 in the order in which it runs: schedule, leapfrog, metropolis, step size, hmc, ais.

And `smc`, the adaptive loop, which finds its own temperatures and is tuned by `tuning` and `pace`;
`reverse` runs its schedule backwards, to bound the evidence.
``init / step / run`` of `hmc`, `ais` and `smc` take any batched potential ``energy(z)`` with a
standard normal prior, so loops of your own can be built from them.
"""

from cogen_fast.sampler import ais, hmc, reverse, schedule, smc, step_size

__all__ = ["ais", "hmc", "reverse", "schedule", "smc", "step_size"]
