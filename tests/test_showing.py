"""How a result shows itself: in notebooks, as an animation, as curves and as maps."""

from __future__ import annotations

import base64
import html
import io
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from runs import assert_same
from torch import nn

import cogen_fast
from cogen_fast import Adaptive, Paper, Result, cogenerate, inpaint

SHORT: dict[str, Any] = {"noise_std": 0.3, "budget": 60, "progress": False}


def generator(channels: int = 3) -> nn.Module:
    torch.manual_seed(0)
    size = channels * 25
    return nn.Sequential(nn.Linear(4, size), nn.Tanh(), nn.Unflatten(1, (channels, 5, 5)))


@cache
def kept(channels: int = 3) -> Result:
    G, mask = generator(channels), torch.ones(5, 5)
    mask[1:3] = 0
    with torch.no_grad():
        x = G(torch.tensor([[0.3, -1.0, 0.5, 0.1], [1.0, 0.0, -0.5, 2.0]]))
    return inpaint(G, x, mask, method=Adaptive(keep_trace=True), polish=0, **SHORT)


def vectors() -> Result:
    return cogenerate(nn.Linear(3, 4), torch.zeros(4), 1, **SHORT)


def test_frames_are_the_outputs_along_the_trace() -> None:
    result = kept()
    assert result.frames is not None and result.frame_steps is not None
    assert result.trace is not None
    assert result.frame_steps[0] == 0 and result.frame_steps[-1] == len(result.trace) - 1
    chosen = torch.linspace(0, result.trace.shape[2] - 1, 6).round().long()
    latents = result.trace[result.frame_steps][:, :, chosen]
    expected = generator()(latents.flatten(0, 2)).reshape(result.frames.shape)
    torch.testing.assert_close(result.frames, expected.detach())


def test_frames_of_an_unfinished_run_end_with_it() -> None:
    G = generator()
    seen = 0

    def third(snapshot: cogen_fast.Snapshot) -> bool:
        nonlocal seen
        seen += 1
        return seen == 3

    method = Paper(ais_steps=30, leapfrog_steps=2, keep_trace=True)
    x, options = torch.zeros(3, 5, 5), {"noise_std": 0.3, "progress": False}
    result = cogenerate(G, x, 1, method=method, on_temperature=third, **options)
    assert result.frames is not None and result.frames.isfinite().all()
    assert result.frame_steps is not None and result.frame_steps.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
@pytest.mark.parametrize("channels", [1, 3])
def test_an_animation_plays_every_frame(suffix: str, channels: int, tmp_path: Path) -> None:
    result = kept(channels)
    assert result.frames is not None
    path = result.animate(tmp_path / f"run{suffix}", observation=1, seconds=2.0, pause=1.0)
    with Image.open(path) as picture:
        frames = []
        for number in range(picture.n_frames):  # type: ignore[attr-defined]
            picture.seek(number)
            frames.append(np.asarray(picture.convert("RGB")).astype(int))
    # A format may join frames that are equal.
    assert 2 <= len(frames) <= len(result.frames)
    assert np.abs(frames[0] - frames[-1]).max() > 50
    assert len({frame.shape for frame in frames}) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": "run.avi"}, "^path: expected a name in .gif"),
        ({"path": "run.gif", "observation": 2}, "^observation: expected a number below 2"),
        ({"path": "run.gif", "observation": -1}, "^observation: expected"),
        ({"path": "run.gif", "seconds": 0.0}, "^seconds: expected"),
        ({"path": "run.gif", "pause": -1.0}, "^pause: expected"),
    ],
)
def test_bad_arguments_of_an_animation_are_named(
    arguments: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        kept().animate(**(arguments | {"path": tmp_path / arguments["path"]}))
    assert not list(tmp_path.iterdir())


def test_an_animation_needs_a_trace_of_images(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^keep_trace: expected a run with"):
        vectors().animate(tmp_path / "run.gif")
    method = Adaptive(keep_trace=True)
    result = cogenerate(nn.Linear(3, 4), torch.zeros(4), 1, method=method, **SHORT)
    with pytest.raises(ValueError, match=r"images: expected images .* to draw"):
        result.animate(tmp_path / "run.gif")


def test_frames_come_back_from_disk(tmp_path: Path) -> None:
    kept().save(tmp_path)
    loaded = Result.load(tmp_path)
    assert_same(loaded, kept())
    ours, theirs = kept().animate(tmp_path / "a.gif"), loaded.animate(tmp_path / "b.gif")
    assert ours.read_bytes() == theirs.read_bytes()


def test_curves_are_those_of_the_history(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    result = kept()
    figure = result.plot_trace(tmp_path / "trace.png", observation=1)
    assert Image.open(tmp_path / "trace.png").width > 500
    islands = result.settings["islands"]
    columns = slice(islands, 2 * islands)  # of the second observation
    drawn = ("betas", "energy_history", "acceptance", "step_size")
    for axes, name in zip(figure.axes, drawn, strict=True):
        for line, column in zip(axes.lines, getattr(result, name)[:, columns].T, strict=False):
            np.testing.assert_array_equal(line.get_ydata(), column.numpy())
    # The energy of the noise alone: half of the number of measured values.
    assert figure.axes[1].lines[-1].get_ydata()[0] == 3 * 15 / 2


def test_maps_are_moments_of_the_samples(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    result = kept()
    figure = result.plot_uncertainty(tmp_path / "maps.pdf", observation=1)
    assert (tmp_path / "maps.pdf").read_bytes().startswith(b"%PDF")
    shown = {axes.get_title(): axes.images[0].get_array() for axes in figure.axes if axes.images}
    samples = result.images[1].double()
    expected = samples.std(0, correction=0).mean(0).numpy()
    np.testing.assert_allclose(shown["standard deviation"], expected)
    mean = (samples.mean(0).numpy().transpose(1, 2, 0) + 1.0) / 2.0
    np.testing.assert_allclose(shown["mean"], mean)
    halves = samples.reshape(2, -1, 3, 5, 5).mean(1)
    between = (halves[0] - halves[1]).abs().mean(0) / 2.0
    np.testing.assert_allclose(shown["between 2 islands"], between)


def test_figures_name_what_is_wrong(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(ValueError, match=r"^path: expected a suffix of"):
        kept().plot_trace(tmp_path / "trace.doc")
    with pytest.raises(ValueError, match=r"expected images"):
        vectors().plot_uncertainty()
    found = cogen_fast.baselines.reconstruct(
        nn.Linear(3, 4), torch.zeros(4), 1, method="sir", noise_std=1.0
    )
    with pytest.raises(ValueError, match=r"^plot_trace: expected a run with temperatures"):
        found.plot_trace()


def test_a_notebook_shows_the_picture_and_the_words() -> None:
    shown = kept()._repr_html_()
    data = re.search(r'src="data:image/png;base64,([^"]+)"', shown)
    assert data is not None
    picture = Image.open(io.BytesIO(base64.b64decode(data[1])))
    assert picture.width > 500
    assert html.escape(kept().overview()) in shown
    assert all(html.escape(line) in shown for line in kept().diagnose())


def test_a_notebook_shows_vectors_in_words() -> None:
    shown = vectors()._repr_html_()
    assert "<img" not in shown and "Result: 1 observation" in shown
