"""What is seen of a run while it goes on, and what ends it before its time."""

from __future__ import annotations

import logging
import math
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import assert_same
from torch import Tensor, nn

import cogen_fast
from cogen_fast import Adaptive, Compute, DiagnosisWarning, Paper, Result, Snapshot, cogenerate
from cogen_fast.methods.progress import MOST_ON_PLATEAU
from cogen_fast.support import reporting

SIZE, NOISE = 20, 0.1
STEPWISE = Compute(backend="native")  # no whole runs in C++


def network() -> nn.Module:
    """20 measurements of 20 latents, all of which the generator can reach."""
    net = nn.Linear(SIZE, SIZE, bias=False, dtype=torch.float64)
    nn.init.eye_(net.weight)
    return net


class Bounded(nn.Module):
    """A generator whose outputs lie in (-1, 1)."""

    def forward(self, z: Tensor) -> Tensor:
        return torch.tanh(z)


def run(G: Any = None, x: float = 0.5, **changes: Any) -> Result:
    options: dict[str, Any] = {"noise_std": NOISE, "latent_shape": SIZE, "progress": False}
    observed = x + 0.1 * torch.linspace(-1.0, 1.0, SIZE, dtype=torch.float64)
    return cogenerate(network() if G is None else G, observed, 1, **(options | changes))


# --- snapshots -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"method": Adaptive(evidence="frozen"), "budget": 400},
        {"method": Adaptive(populations=3), "budget": 200},
        {"chains": 2, "budget": 40},
        {"noise_std": "auto", "budget": 300},
        {"method": Paper(ais_steps=12, leapfrog_steps=3), "compute": STEPWISE},
    ],
    ids=["default", "frozen", "populations", "independent", "noise", "paper"],
)
def test_a_snapshot_is_the_run_so_far(how: dict[str, Any]) -> None:
    seen: list[tuple[Snapshot, Result]] = []

    def look(snapshot: Snapshot) -> None:
        seen.append((snapshot, snapshot.result()))

    result = run(on_temperature=look, **how)
    assert result.complete
    assert_same(result, run(**how))  # looking changes nothing
    gradients = [snapshot.gradients for snapshot, _ in seen]
    assert gradients == sorted(gradients) and gradients[-1] == result.gradients
    for snapshot, sofar in seen:
        assert not sofar.complete and "still going on" in sofar.reasons["complete"]
        assert snapshot.beta.shape == (1,) and snapshot.seconds >= 0.0
        if snapshot.misfit is not None:
            expected = (2.0 * sofar.energies.mean() / SIZE).sqrt()
            # Where not all particles are returned, the misfit is that of all.
            if sofar.energies.shape[1] == sofar.settings.get("particles"):
                torch.testing.assert_close(snapshot.misfit[0], expected)
    last, samples = seen[-1]
    assert last.beta.item() == 1.0 and torch.equal(samples.latents, result.latents)
    assert (last.misfit is None) == (how.get("noise_std") == "auto")


def test_time_left_shrinks_to_nothing() -> None:
    left: list[float | None] = []
    run(on_temperature=lambda snapshot: left.append(snapshot.seconds_left))
    known = [value for value in left if value is not None]
    assert len(known) > len(left) / 2 and known[-1] == 0.0
    assert all(value >= 0.0 for value in known)


@pytest.mark.parametrize(
    "callback, message",
    [(3, "a callable or None, got 3"), (lambda: None, "that takes one argument")],
)
def test_a_callback_takes_a_snapshot(callback: Any, message: str) -> None:
    with pytest.raises(TypeError, match=f"^on_temperature: expected .*{message}"):
        run(on_temperature=callback)


def test_what_a_callback_raises_ends_the_call() -> None:
    def broken(snapshot: Snapshot) -> None:
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        run(on_temperature=broken)


# --- ends ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "how",
    [{}, {"method": Paper(ais_steps=30, leapfrog_steps=2), "compute": STEPWISE}],
    ids=["adaptive", "paper"],
)
def test_a_callback_ends_the_run(how: dict[str, Any], tmp_path: Path) -> None:
    """The work is kept: the same call goes on from a checkpoint, bit for bit."""
    path, count = tmp_path / "run.safetensors", 0

    def third(snapshot: Snapshot) -> bool:
        nonlocal count
        count += 1
        return count == 3

    with pytest.warns(DiagnosisWarning, match="unfinished, .*on_temperature ended the run"):
        result = run(on_temperature=third, checkpoint=path, **how)
    assert not result.complete and len(result.betas[result.acceptance[:, 0].isfinite()]) == 3
    assert "on_temperature" in result.reasons["complete"]
    assert "UNFINISHED at beta" in repr(result) and "on_temperature" in repr(result)
    assert_same(run(checkpoint=path, **how), run(**how))


def test_only_true_ends_the_run() -> None:
    assert run(on_temperature=lambda snapshot: 1, budget=60).complete


def test_a_time_limit_ends_the_run(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    with pytest.warns(DiagnosisWarning, match="time limit of 1e-09 s"):
        result = run(compute=Compute(time_limit=1e-9), checkpoint=path, polish=5)
    assert not result.complete and result.fit_images is None
    assert result.acceptance.shape[0] == 1  # ended after one temperature
    assert_same(run(checkpoint=path), run(), but=("settings",))
    assert run(compute=Compute(time_limit=1e9), budget=60).complete


@pytest.mark.parametrize("limit", [0, -1.0, math.nan, "1", True])
def test_bad_time_limits_are_named(limit: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"^time_limit: expected "):
        Compute(time_limit=limit)


def test_baselines_take_no_time_limit() -> None:
    with pytest.raises(ValueError, match=r"^time_limit: expected none"):
        cogen_fast.baselines.reconstruct(
            network(), torch.zeros(SIZE), 1, method="sir", compute=Compute(time_limit=1.0),
            noise_std=1.0,
        )  # fmt: skip


# --- out of reach --------------------------------------------------------------------------------


def test_a_run_out_of_reach_ends_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """Observed values of 3, where outputs end at 1: a misfit of at least 20 noise_std."""
    monkeypatch.setattr("cogen_fast.methods.progress.MOST_ON_PLATEAU", 300)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = run(Bounded(), x=3.0, polish=3)
    told = [str(each.message) for each in caught if each.category is UserWarning]
    assert len([line for line in told if "hardly falls any more" in line]) == 1
    assert any(each.category is DiagnosisWarning for each in caught)
    reason = result.reasons["complete"]
    assert not result.complete and "noise_std='auto'" in reason and "plateau" in reason
    assert 300 <= result.gradients < 3 * 300
    assert result.fit_images is not None  # what comes closest is still of use
    # The samples are those of the posterior with the noise that belongs to beta.
    factor = result.beta_reached**-0.5
    assert f"{factor:.3g} noise_std" in reason
    with_budget = run(Bounded(), x=3.0, budget=400)
    assert with_budget.complete or with_budget.oversized_steps.any()


def test_the_default_limit_is_in_the_documents() -> None:
    assert f"{MOST_ON_PLATEAU:,} gradients" in (cogenerate.__doc__ or "")


@pytest.mark.slow
def test_runs_within_reach_are_no_plateau() -> None:
    """A shipped generator of 64 latents at a noise level that its own image has, 0.03."""
    G = cogen_fast.pretrained("fashion-32")
    own = torch.Generator().manual_seed(3)
    with torch.no_grad():
        image = G(torch.randn(1, 64, generator=own))[0]
    image = image + 0.03 * torch.randn(image.shape, generator=own)
    mask = torch.ones(32, 32)
    mask[8:24, 8:24] = 0
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "the misfit hardly falls")
        cogenerate(
            G, image, mask, noise_std=0.03, progress=False,
            on_temperature=lambda snapshot: snapshot.gradients > MOST_ON_PLATEAU,
        )  # fmt: skip


# --- what is shown -------------------------------------------------------------------------------


def test_a_diagnosis_is_a_warning() -> None:
    with pytest.warns(DiagnosisWarning) as caught:
        result = run(chains=2, budget=40)
    assert [str(each.message) for each in caught] == result.diagnose()
    assert {each.filename for each in caught} == {__file__}


def test_lines_are_logged_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(reporting, "SECONDS_BETWEEN_LINES", 0.0)
    with caplog.at_level(logging.INFO, "cogen_fast"):
        run(progress=True)
    lines = [record.getMessage() for record in caplog.records if record.name == "cogen_fast"]
    assert len(lines) > 5
    assert all("gradients: beta " in line and "misfit " in line for line in lines)
    assert lines[0].endswith("left unknown") and lines[-1].endswith("left 00:00")


def test_a_terminal_shows_a_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    run(progress=True)
    assert " gradients" in capsys.readouterr().err
