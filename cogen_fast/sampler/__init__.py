"""Algorithm 1 in the order in which it runs: schedule, leapfrog, metropolis, step size, hmc, ais.

``init / step / run`` of `hmc` and `ais` take any batched potential ``energy(z)`` with a standard
normal prior, so loops of your own can be built from them.
"""

from cogen_fast.sampler import ais, hmc, schedule, step_size

__all__ = ["ais", "hmc", "schedule", "step_size"]
