"""What the page shows of a run, as HTML with the pictures in it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor

from cogen_fast.app.runs import Failure, Moment, Waiting, shown_images
from cogen_fast.results import grids
from cogen_fast.results.result import Result

_LARGEST = 256  # pixels of a picture's longer side, as it is shown; the downloads have all
# What the sentences of a diagnosis say of Python's settings, in words of the page's own settings.
_WORDS = {
    "give chains=16 or a larger budget": "ask for 16 completions or for more gradients",
    "give populations=8, more chains, or more moves (hmc_steps)": "ask for more completions",
    "give more chains or moves (hmc_steps)": "ask for more completions or gradients",
    "give more chains or populations": "ask for more completions",
    "give more moves (hmc_steps)": "ask for more gradients",
    "give more chains": "ask for more completions",
    "give a smaller step_size, or check what G gives for large latents": "check the generator",
    "or give a budget, which is then used up": "or give a number of gradients",
    "so G does not": "so the generator does not",
    " noise_std. Check": " times the noise. Check",
    ", and take means with weighted=True": "",
    " With checkpoint= it can be continued.": "",
    "; with checkpoint= the same call continues it": "",
    "noise_std='auto' or a larger noise_std": "a larger noise",
    " (all observations of a call share it: one gradient counts for all)": "",
    "noise_std (RMS)": "standard deviations of the noise",
    "noise_std (root mean square)": "standard deviations of the noise",
    "the scale of x_obs": "the picture",
    "x_obs": "the picture",
    "noise_std": "noise",
    "give a larger budget": "ask for more gradients",
}
STOP = "Stop, and keep what there is"
STOPPING = "Stopping after this temperature"
INVITATION = (
    "<div class='cf-empty'>The completions will appear here, temperature by temperature.</div>"
)


def waiting(view: Waiting) -> str:
    """How many runs are ahead."""
    runs = "another run" if view.ahead == 1 else f"{view.ahead} other runs"
    return _status("wait", "Waiting", f"This page's run begins after {runs}, one at a time.")


def starting() -> str:
    """Before the first temperature."""
    return _status(
        "run",
        "Starting",
        "Draws of the generator are compared with the picture first.",
        bar="<progress></progress>",
    )


def told(text: str) -> str:
    """What is wrong with what the page was asked for."""
    return _status("bad", "Not yet", text)


def noted(text: str) -> str:
    """What a user should know before a run."""
    return _status("warn", "Note", text)


def failed(view: Failure) -> str:
    """Why a run gave no result."""
    return _status("bad", "No result", in_words(view.text))


def moment(view: Moment) -> str:
    """How far a run has come."""
    facts = f"Inverse temperature {view.beta:.2g} of 1" if view.beta < 1.0 else "At the posterior"
    if view.misfit is not None:
        facts += f", misfit {view.misfit:.2f} standard deviations of the noise"
    facts += f"; {view.gradients:,} gradients, {_seconds(view.seconds)}"
    if view.seconds_left is None:
        return _status("run", "Running", f"{facts}.", bar="<progress></progress>")
    done = view.seconds / (view.seconds + view.seconds_left)
    facts += f", about {_seconds(view.seconds_left)} left."
    return _status("run", "Running", facts, bar=f"<progress value='{done:.3f}'></progress>")


def ended(result: Result) -> str:
    """What a finished or stopped run has spent, and what is wrong with it, in words."""
    wrong = result.diagnose()
    if not result.complete:
        title = f"Stopped at inverse temperature {result.beta_reached:.2g} of 1"
    else:
        title = "Done" if not wrong else "Done, with a warning"
    kind = "good" if result.complete and not wrong else "warn"
    facts = f"{result.gradients:,} gradients for each particle."
    sentences = wrong or ["No check of the run found anything wrong."]
    listed = "".join(f"<li>{escape(in_words(sentence))}</li>" for sentence in sentences)
    return _status(kind, title, facts, bar=f"<ul>{listed}</ul>")


def population(view: Moment) -> str:
    """The samples at one temperature."""
    pictures = [_figure(image, "") for image in view.images.numpy()]
    title = "The samples at this temperature"
    return _section(
        title, "They become completions as the inverse temperature goes to 1.", pictures
    )


def completions(result: Result) -> str:
    """Completions in order of energy, their mean, and their standard deviation."""
    shown, energies = shown_images(result)[0].numpy(), result.energies[0]
    tiles = [_figure(shown[i], _energy(energies[i])) for i in energies.argsort().tolist()]
    spread = result.std()[0].mean(0).numpy()
    top = float(spread.max())
    summary = [
        _figure(result.pasted(result.mean())[0].numpy(), "mean"),
        _tile(grids.heat(spread, top), "standard deviation"),
    ]
    text = f"The standard deviation, from 0 (dark) to {top:.2g} (pale), shows where they differ."
    together = _section("All completions together", text, summary, kind="cf-few")
    what = "Ordered by energy E: the one that agrees best with the picture is first."
    if not result.complete:
        what = "The run did not reach its end, so these are not yet samples of the posterior."
    return together + _section("Completions", what, tiles)


def in_words(sentence: str) -> str:
    """A sentence of a diagnosis for those who see the page and not the Python behind it."""
    for name, words in _WORDS.items():
        sentence = sentence.replace(name, words)
    return f"{sentence[:1].upper()}{sentence[1:].rstrip('.')}."


def _energy(value: Tensor) -> str:
    energy = float(value)
    return f"E = {energy:.1f}" if energy < 1000 else f"E = {energy:,.0f}"


def _status(kind: str, title: str, text: str, bar: str = "") -> str:
    said = f"<b>{escape(title)}.</b> {escape(text)}"
    return f"<div class='cf-status cf-{kind}' role='status'><p>{said}</p>{bar}</div>"


def _section(title: str, text: str, figures: Sequence[str], kind: str = "cf-many") -> str:
    head = f"<h3>{escape(title)}</h3><p class='cf-hint'>{escape(text)}</p>"
    return f"<section>{head}<div class='cf-tiles {kind}'>{''.join(figures)}</div></section>"


def _figure(image: npt.NDArray[np.float32], caption: str) -> str:
    return _tile(grids.to_pixels(image), caption)


def _tile(pixels: grids.Pixels, caption: str) -> str:
    picture = Image.fromarray(pixels)
    picture.thumbnail((_LARGEST, _LARGEST))
    source = grids.data_url(picture)
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f"<figure><img alt='{escape(caption or 'sample')}' src='{source}'>{below}</figure>"


def _seconds(number: float) -> str:
    if number < 90:
        return f"{math.ceil(number)} s"
    return f"{number / 60:.0f} min"
