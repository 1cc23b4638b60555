"""The demo: a 2-D generator, one coordinate observed, and the posterior beside the exact one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cogen_fast.experiments.pyplot import pyplot
from cogen_fast.files import write_atomically
from cogen_fast.generators.pretrained import pretrained
from cogen_fast.tasks import cogenerate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = npt.NDArray[np.float64]
_OBSERVED = 0.309  # cos 72 degrees: two of the five Gaussians fit
_NOISE = 0.05
_CHAINS = 400
_BINS = [-1.4 + 0.05 * i for i in range(57)]
_GRID_HALF_WIDTH, _GRID_POINTS = 6.0, 1201
_PRIOR_COLOUR, _SAMPLE_COLOUR, _EXACT_COLOUR = "0.75", "#0072B2", "#D55E00"


def run(out: Path, seed: int = 0, progress: bool = True) -> str:
    """Sample the demo's posterior, write ``demo.png`` and the result to ``out``, and sum it up.

    Needs matplotlib (extra ``plots``); ImportError says so.
    """
    plt = pyplot("demo")
    generator = pretrained("five-gaussians")
    with one_thread():
        result = cogenerate(
            generator,
            np.array([_OBSERVED, np.nan], dtype=np.float32),
            np.array([1, 0]),
            noise_std=_NOISE,
            chains=_CHAINS,
            seed=seed,
            progress=progress,
        )
    outputs = result.images[0].numpy().astype(np.float64)
    weights = result.weights()[0].numpy()
    exact_density, exact_evidence = _exact(generator)
    sampled, _ = np.histogram(outputs[:, 1], _BINS, weights=weights)
    distance = 0.5 * np.abs(sampled - exact_density).sum()
    out.mkdir(parents=True, exist_ok=True)
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.6), layout="constrained")
    _draw_plane(axes[0], generator, outputs, weights)
    _draw_hidden(axes[1], outputs[:, 1], weights, exact_density)
    write_atomically(out / "demo.png", lambda file: figure.savefig(file, format="png", dpi=120))
    plt.close(figure)
    result.save(out, overwrite=True)
    assert result.log_evidence is not None
    return "\n".join(
        [
            repr(result),
            f"  exact log evidence {exact_evidence:.4g}, total variation between the sampled and "
            f"the exact hidden coordinate {distance:.3f} ({_CHAINS} chains, {len(_BINS) - 1} bins)",
            f"  picture: {out / 'demo.png'}",
        ]
    )


@contextmanager
def one_thread() -> Iterator[None]:
    """One torch thread: layers of 20 units are too small to share, a second one only waits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _exact(generator: torch.nn.Module) -> tuple[Array, float]:
    """Posterior shares of the hidden coordinate's bins, and the log evidence, by quadrature."""
    line = torch.linspace(-_GRID_HALF_WIDTH, _GRID_HALF_WIDTH, _GRID_POINTS)
    z = torch.cartesian_prod(line, line)
    with torch.no_grad():
        x = generator(z).double()
    z = z.double()
    cell = float(line[1] - line[0])
    log_prior = -0.5 * (z * z).sum(-1) - np.log(2.0 * np.pi)
    log_likelihood = -0.5 * ((x[:, 0] - _OBSERVED) / _NOISE) ** 2 - np.log(
        _NOISE * np.sqrt(2.0 * np.pi)
    )
    log_joint = (log_prior + log_likelihood).numpy()
    mass = np.exp(log_joint) * cell**2
    shares, _ = np.histogram(x[:, 1].numpy(), _BINS, weights=mass / mass.sum())
    return shares, float(np.log(mass.sum()))


def _draw_plane(axes: Axes, generator: torch.nn.Module, outputs: Array, weights: Array) -> None:
    """Draws from the prior, what is observed, and the completions."""
    z: Tensor = torch.randn(2000, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        prior = generator(z).numpy()
    axes.scatter(prior[:, 0], prior[:, 1], s=4, color=_PRIOR_COLOUR, label="G(z), z from the prior")
    axes.axvline(_OBSERVED, color=_EXACT_COLOUR, linestyle="--", label=f"observed x1 = {_OBSERVED}")
    axes.scatter(
        outputs[:, 0],
        outputs[:, 1],
        s=24.0 * weights / weights.mean(),
        color=_SAMPLE_COLOUR,
        alpha=0.5,
        linewidths=0,
        label="completions, area by weight",
    )
    axes.set(title="The plane", xlabel="x1 (observed)", ylabel="x2 (hidden)", aspect="equal")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3, fontsize=8)


def _draw_hidden(axes: Axes, hidden: Array, weights: Array, exact: Array) -> None:
    """The hidden coordinate: weighted samples against quadrature."""
    axes.hist(
        hidden, _BINS, weights=weights, color=_SAMPLE_COLOUR, alpha=0.6, label="samples, weighted"
    )
    axes.stairs(exact, _BINS, color=_EXACT_COLOUR, linewidth=1.8, label="exact (quadrature)")
    axes.set(title="The hidden coordinate", xlabel="x2", ylabel="share")
    axes.legend(fontsize=8)
