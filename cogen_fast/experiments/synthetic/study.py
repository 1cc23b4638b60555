"""The paper's 2-D study over the stages of a GAN's training: its figures 1 to 3, and a table."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from torch import nn
from tqdm import tqdm

from cogen_fast.experiments.pyplot import pyplot
from cogen_fast.experiments.synthetic import figures, table
from cogen_fast.experiments.synthetic.runs import Effort, run_methods
from cogen_fast.experiments.workers import one_thread
from cogen_fast.generators import load_generator
from cogen_fast.generators.hub import is_hub_name
from cogen_fast.generators.pretrained import STAGES, VARIANCES, pretrained
from cogen_fast.support.arguments import check_choice, check_seed
from cogen_fast.support.files import check_readable, write_atomically

TABLE = "table.csv"
FILES = (TABLE, *figures.FILES)
_DPI = 150


def reproduce(
    out: Path,
    variance: float = VARIANCES[0],
    seed: int = 0,
    generators: Sequence[str | Path] = (),
    *,
    effort: Effort | None = None,
    progress: bool = True,
) -> str:
    """Run the study, write `FILES` to the folder ``out``, and return the table as text.

    ``variance`` is that of the shipped generators' data, 0.002 or 0.02. ``generators`` are files of
    further 2-D generators, here or on the hub, which get a block of the table and a place in the
    figures. Existing files are replaced.

    Raises ImportError without matplotlib (extra ``plots``), and ValueError, TypeError or OSError
    naming a wrong argument, before anything is run.
    """
    plt = pyplot("reproduce")
    effort = effort or Effort()
    check_seed(seed)
    check_seed(seed + effort.repeats - 1)
    cases = [*_stages(variance), *(_read(given) for given in generators)]
    with one_thread():
        bar = tqdm(cases, unit="generator", disable=not progress)
        studies = [run_methods(*case, seed=seed, effort=effort) for case in bar]
        out.mkdir(parents=True, exist_ok=True)
        table.write(out / TABLE, studies)
        for name, figure in figures.draw(plt, studies, effort.loops):
            write_atomically(out / name, partial(figure.savefig, format="png", dpi=_DPI))
            plt.close(figure)
    return "\n".join([table.text(studies), f"wrote {', '.join(FILES)} to {out}"])


def _stages(variance: float) -> list[tuple[str, str, nn.Module]]:
    """The name, title and generator of each shipped stage."""
    check_choice("variance", f"{variance:g}", [f"{known:g}" for known in VARIANCES])
    names = [(f"five-gaussians-{variance:g}-{stage}", f"{stage:,} iterations") for stage in STAGES]
    return [(name, title, pretrained(name)) for name, title in names]


def _read(given: str | Path) -> tuple[str, str, nn.Module]:
    name = Path(given).stem
    if not is_hub_name(given):
        check_readable("generator", Path(given))
    generator = load_generator(given).float()
    shapes = (generator.latent_size, generator.output_shape)
    if shapes != (2, (2,)):
        raise ValueError(
            f"generator: expected one with 2 latents and outputs of shape (2,), got {shapes} in "
            f"{given}"
        )
    return name, name, generator
