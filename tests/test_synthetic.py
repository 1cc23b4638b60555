"""The 2-D study: shipped stages, baselines that it adds, table, figures and command."""

from __future__ import annotations

import csv
import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from studies import QUICK
from torch import Tensor, nn

from cogen_fast import Paper
from cogen_fast.cli.main import main
from cogen_fast.experiments.synthetic import study as synthetic
from cogen_fast.experiments.synthetic import table as synthetic_table
from cogen_fast.experiments.synthetic.baseline_runs import (
    gradient_descent,
    importance_resampling,
    try_learning_rates,
)
from cogen_fast.experiments.synthetic.five_gaussians import (
    ANSWER,
    KNOWN,
    LEARNING_RATES,
    MASK,
    anneal,
    squared_error,
    tuned_rate,
)
from cogen_fast.experiments.synthetic.runs import (
    SMALL_RATE,
    TEXT,
    Effort,
    GeneratorResults,
    adaptive_line,
    exact_shares,
    run_methods,
)
from cogen_fast.generators import MLPGenerator, load_generator, save_generator
from cogen_fast.generators.pretrained import PRETRAINED, STAGES, VARIANCES, pretrained
from cogen_fast.methods.presets import PRESETS
from cogen_fast.problem.compute import gathered
from cogen_fast.results.result import GRADIENT_COST
from cogen_fast.tasks import cogenerate
from cogen_fast.training.five_gaussians import train

pytestmark = pytest.mark.usefixtures("one_thread")

METHODS = [
    "exact posterior",
    "GD, one start",
    "GD, rate 0.03",
    "GD, best rate",
    "GD, best of 20",
    "SIR, one of 20",
    "AIS-HMC, program",
    "AIS-HMC, paper's text",
    "adaptive (the default)",
    "paper form, w = 10,000",
    "paper form, w = 1",
]


def distance_to_means(generator: nn.Module) -> float:
    """Mean distance of samples to the nearest of the data's five means."""
    z = torch.randn(4000, 2, generator=torch.Generator().manual_seed(5))
    angle = 2.0 * math.pi / 5.0 * torch.arange(5)
    means = torch.stack([angle.cos(), angle.sin()], -1)
    with torch.no_grad():
        return float(torch.cdist(generator(z), means).min(1).values.mean())


# The shipped generators


@pytest.mark.parametrize("variance", VARIANCES)
def test_stages_come_nearer_to_the_data(variance: float) -> None:
    distances = [distance_to_means(pretrained(f"five-gaussians-{variance}-{n}")) for n in STAGES]
    # On average, a draw of the data is sqrt(pi / 2) standard deviations from its mean.
    assert distances[-1] < 1.5 * math.sqrt(math.pi / 2.0 * variance)
    assert distances[0] > 1.5 * distances[-1]
    assert max(distances) == distances[0]


def test_the_short_name_is_the_last_stage_of_the_program() -> None:
    short, long = (pretrained(f"five-gaussians{end}") for end in ("", "-0.002-15000"))
    z = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(short(z), long(z))
    of_the_study = [name for name in PRETRAINED if name.startswith("five-gaussians-")]
    assert len(of_the_study) == len(VARIANCES) * len(STAGES)


def test_unknown_names_are_told() -> None:
    with pytest.raises(ValueError, match=r"name: expected one of .*five-gaussians-0.02-500.*got"):
        pretrained("five-gaussians-0.02-600")


@pytest.mark.slow
@pytest.mark.parametrize("variance", VARIANCES)
def test_training_again_gives_the_shipped_weights(variance: float) -> None:
    """The same bits where matrix products round the same; elsewhere training amplifies rounding.

    On other processors weights then differ by up to an eighth of what another seed makes of them.
    """
    (made,) = (weights_of(generator) for _, generator in train([500], variance))
    (other,) = (weights_of(generator) for _, generator in train([500], variance, seed=1))
    shipped = weights_of(pretrained(f"five-gaussians-{variance}-500"))
    assert (made - shipped).square().mean() < (made - other).square().mean() / 4**2


def weights_of(generator: MLPGenerator) -> Tensor:
    return torch.cat([weight.flatten() for weight in generator.state_dict().values()])


# Baselines


def test_importance_resampling_draws_from_a_known_posterior() -> None:
    identity = MLPGenerator((2, 2))
    identity.layers[0].weight.data = torch.eye(2)
    identity.layers[0].bias.data = torch.zeros(2)
    x = np.array([np.nan, 1.0], dtype=np.float32)
    ends = importance_resampling(identity, x, MASK, noise_std=1.0, draws=200, runs=2000, seed=3)
    assert ends.cost == 200 and ends.latents.shape == (1, 2000, 2)
    free, seen = ends.latents[0].double().unbind(-1)  # posteriors N(0, 1) and N(1/2, 1/2)
    assert abs(float(free.mean())) < 4 / math.sqrt(2000)
    assert float(seen.mean()) == pytest.approx(0.5, abs=4 * math.sqrt(0.5 / 2000) + 0.01)
    assert float(seen.var()) == pytest.approx(0.5, abs=0.08)
    torch.testing.assert_close(ends.energies[0], 0.5 * (seen - 1.0) ** 2, rtol=1e-5, atol=1e-6)
    again = importance_resampling(identity, x, MASK, noise_std=1.0, draws=200, runs=2000, seed=3)
    assert torch.equal(ends.latents, again.latents)


def test_importance_resampling_leaves_out_what_is_not_finite() -> None:
    def broken(z: Tensor) -> Tensor:
        return torch.where(z[:, :1] > 0.5, torch.nan, z)

    broken_draws = importance_resampling(
        _only_after_the_checks(broken), KNOWN, MASK, weight=1.0, draws=100, runs=50, latent_shape=2
    )
    assert broken_draws.energies.max() < 100.0
    assert (broken_draws.latents[..., 0] <= 0.5).all()


def _only_after_the_checks(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The function on large batches, and the identity on the few latents that checks look at."""
    return lambda z: function(z) if len(z) > 50 else z


@pytest.mark.parametrize(("argument", "value"), [("draws", 0), ("runs", 0), ("seed", -1)])
def test_importance_resampling_names_what_is_wrong(argument: str, value: int) -> None:
    given = {"draws": 5, "runs": 2, "seed": 0} | {argument: value}
    with pytest.raises(ValueError, match=f"^{argument}: expected"):
        importance_resampling(
            pretrained("five-gaussians"), KNOWN, MASK, **gathered({"weight": 1.0, **given})
        )


@pytest.mark.parametrize("starts", [1, 7])
def test_learning_rates_tried_together_are_those_tried_alone(starts: int) -> None:
    generator = pretrained("five-gaussians").double()
    x = KNOWN.astype(np.float64)
    options = {"weight": 1.0, "steps": 6, "starts": starts, "runs": 5, "seed": 2}
    rates = [0.3, 0.01]
    together = try_learning_rates(
        generator, x, MASK, **gathered({"learning_rates": rates, "keep_trace": True, **options})
    )
    for rate, ends in zip(rates, together, strict=True):
        alone = gradient_descent(
            generator, x, MASK, **gathered({"learning_rate": rate, "keep_trace": True, **options})
        )
        assert ends.cost == alone.cost
        for name in ("images", "latents", "energies", "trace"):
            torch.testing.assert_close(getattr(ends, name), getattr(alone, name))
        assert alone.trace is not None and alone.trace.shape == (7, 1, 5, 2)
        assert torch.equal(alone.trace[-1], alone.latents)


def test_a_trace_is_the_path_of_descent() -> None:
    generator = pretrained("five-gaussians")
    ends = gradient_descent(
        generator, KNOWN, MASK, weight=1.0, steps=3, learning_rate=0.1, runs=4, keep_trace=True
    )
    assert ends.trace is not None
    z = ends.trace[0, 0].clone().requires_grad_()
    (slope,) = torch.autograd.grad(generator(z)[:, 1].square().sum(), z)
    torch.testing.assert_close(ends.trace[1, 0], (z - 0.1 * slope).detach())
    plain = gradient_descent(generator, KNOWN, MASK, weight=1.0, steps=3, learning_rate=0.1)
    assert plain.trace is None


def test_learning_rates_are_checked() -> None:
    with pytest.raises(ValueError, match=r"^learning_rates: expected"):
        try_learning_rates(
            pretrained("five-gaussians"), KNOWN, MASK, learning_rates=[0.1, -1.0], steps=2
        )


# One study


@pytest.fixture(scope="module")
def one() -> GeneratorResults:
    return run_methods("name", "title", pretrained("five-gaussians"), seed=4, effort=QUICK)


@pytest.mark.slow
def test_lines_are_what_a_direct_run_gives(one: GeneratorResults) -> None:
    assert [line.method for line in one.lines] == METHODS
    lines = dict(zip(METHODS, one.lines, strict=True))
    generator = pretrained("five-gaussians")
    runs = [
        anneal(generator, 4 + i, method=Paper(preset=TEXT, ais_steps=50), chains=12)
        for i in range(2)
    ]
    errors = [((r.images[0] - torch.tensor(ANSWER)) ** 2).mean(-1) for r in runs]
    line = lines["AIS-HMC, paper's text"]
    assert line.chains == 24
    assert line.within_0_01 == pytest.approx(float((torch.cat(errors) < 0.01).double().mean()))
    assert line.within_0_05 == pytest.approx(float((torch.cat(errors) < 0.05).double().mean()))
    by_weight = [float(r.weights[0][e < 0.05].sum()) for r, e in zip(runs, errors, strict=True)]
    assert line.within_0_05_weighted == pytest.approx(np.mean(by_weight))
    assert line.cost_per_chain == GRADIENT_COST * (1 + 50 * 10)
    torch.testing.assert_close(one.text_run.latents, runs[0].latents)

    rate, _ = tuned_rate(generator, 1, 10)
    descent = gradient_descent(
        generator, KNOWN, MASK, weight=1.0, steps=40, learning_rate=rate, runs=12, seed=4
    )
    share = float((squared_error(descent.images[0]) < 0.05).double().mean())
    assert lines["GD, one start"].within_0_05 == pytest.approx(share)
    assert lines["GD, one start"].cost_per_chain == GRADIENT_COST * 41
    assert lines["GD, best of 20"].cost_per_chain == 20 + GRADIENT_COST * 41
    assert lines["SIR, one of 20"].cost_per_chain == 20


@pytest.mark.slow
@pytest.mark.parametrize("name", ["five-gaussians-0.002-500", "five-gaussians-0.02-2500"])
def test_adaptive_populations_by_evidence_are_the_posterior(name: str) -> None:
    generator, count = pretrained(name), 200
    (exact, _) = exact_shares(generator, 1001)
    result = cogenerate(
        generator,
        np.repeat(KNOWN[None], count, axis=0),
        MASK,
        weight=PRESETS["five-gaussians"].weight,
        chains=50,
        seed=8,
        progress=False,
    )
    shares = (squared_error(result.images) < 0.01).double().mean(1)
    assert result.log_normaliser is not None
    weights = torch.softmax(result.log_normaliser, 0)
    found = float(weights @ shares)
    error = float((weights * (shares - found)).square().sum().sqrt())
    assert error < 0.03
    assert abs(found - exact) < 4.0 * error
    line = adaptive_line(generator, 8, Effort(chains=50, populations=count))
    assert line.within_0_01_weighted == pytest.approx(found)
    assert line.within_0_01 == pytest.approx(float(shares.mean()))


def test_the_best_rate_is_best(one: GeneratorResults) -> None:
    lines = {line.method: line for line in one.lines}
    best = lines["GD, best rate"].within_0_01
    for rate in LEARNING_RATES:
        ends = gradient_descent(
            one.generator, KNOWN, MASK, weight=1.0, steps=40, learning_rate=rate, runs=12, seed=4
        )
        share = float((squared_error(ends.images[0]) < 0.01).double().mean())
        assert share <= best + 1e-9
        if rate == SMALL_RATE:
            assert share == pytest.approx(lines["GD, rate 0.03"].within_0_01)


def test_the_paper_form_has_no_weights_and_warns(one: GeneratorResults) -> None:
    faded = [line for line in one.lines if line.method.startswith("paper form")]
    assert len(faded) == 2 and all(line.within_0_01_weighted is None for line in faded)
    assert "beta = 1 removes the prior" in one.warning
    norms = [float(line.settings.rpartition(" ")[2]) for line in faded]
    assert max(norms) == pytest.approx(one.largest_norm, rel=1e-2)


def test_exact_shares_of_a_posterior_that_is_known() -> None:
    tilted = MLPGenerator((2, 2))
    tilted.layers[0].weight.data = torch.tensor([[0.3, 0.0], [0.0, 0.02]])
    tilted.layers[0].bias.data = torch.tensor([1.0, 0.0])
    # x1 = 1 + 0.3 z1 does not depend on the observed x2, whose own error is negligible.
    expected = [math.erf(math.sqrt(2.0 * limit) / 0.3 / math.sqrt(2.0)) for limit in (0.01, 0.05)]
    assert exact_shares(tilted, 1001) == pytest.approx(expected, abs=0.01)


def test_effort_names_what_is_wrong() -> None:
    with pytest.raises(ValueError, match=r"^chains: expected"):
        Effort(chains=0)
    with pytest.raises(ValueError, match=r"^loops: expected at most 50, got 100"):
        Effort(text_steps=50)


# Table and figures


def test_table_and_csv_agree(one: GeneratorResults, tmp_path: Path) -> None:
    synthetic_table.write(tmp_path / "table.csv", [one])
    with (tmp_path / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    text = synthetic_table.text([one])
    assert [row["method"] for row in rows] == METHODS
    for row, line in zip(rows, one.lines, strict=True):
        assert row["generator"] == "name"
        assert float(row["within_0_01"]) == line.within_0_01
        assert row["settings"] == line.settings
        (shown,) = (part for part in text.splitlines() if part.startswith(f"{line.method}  "))
        assert f" {line.within_0_01:.3f} " in shown and f" {line.within_0_05:.3f}" in shown
        weighted = row["within_0_05_weighted"]
        assert (weighted == "") == (line.within_0_05_weighted is None)
        assert weighted == "" or f" {float(weighted):.3f} " in shown
        if line.chains:
            assert shown.endswith(f" {line.cost_per_chain:,}")
    assert "The library warns:" in text and f"is {one.largest_norm:.3g}" in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 100


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("matplotlib")
    folder = tmp_path_factory.mktemp("study")
    random = torch.Generator().manual_seed(1)
    extra = MLPGenerator()
    for weight in extra.parameters():
        weight.data = torch.randn(weight.shape, generator=random)
    save_generator(extra, folder / "mine.safetensors")
    effort = Effort(**{**vars(QUICK), "chains": 4, "repeats": 1})
    told = synthetic.reproduce(
        folder / "out", 0.02, 1, [folder / "mine.safetensors"], effort=effort, progress=False
    )
    (folder / "told.txt").write_text(told)
    return folder


@pytest.mark.slow
def test_every_stage_and_file_has_its_part(written: Path) -> None:
    with (written / "out" / "table.csv").open(newline="") as file:
        names = [row["generator"] for row in csv.DictReader(file)]
    expected = [*(f"five-gaussians-0.02-{n}" for n in STAGES), "mine"]
    assert list(dict.fromkeys(names)) == expected
    assert all(names.count(name) == len(METHODS) for name in expected)
    told = (written / "told.txt").read_text()
    assert [line for line in told.splitlines() if line in expected] == expected


@pytest.mark.slow
def test_figures_are_written_and_not_blank(written: Path) -> None:
    assert sorted(p.name for p in (written / "out").iterdir()) == sorted(synthetic.FILES)
    for name in synthetic.FILES[1:]:
        with Image.open(written / "out" / name) as image:
            pixels = np.asarray(image.convert("RGB"))
        height, width, _ = pixels.shape
        assert 900 < height < 3000 and 900 < width < 3000
        # Each ninth of the picture must have content, and the picture must have colours.
        for part in (p for rows in np.array_split(pixels, 3) for p in np.array_split(rows, 3, 1)):
            assert part.std() > 5.0
        assert (np.ptp(pixels.astype(int), axis=2) > 60).mean() > 0.002


# The command


def test_command_gets_its_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []
    monkeypatch.setattr(
        synthetic, "reproduce", lambda *given, **options: calls.append((given, options)) or "table"
    )
    command = ["reproduce", "synthetic", "--out", str(tmp_path), "--variance", "0.02"]
    assert main([*command, "--seed", "3", "--generator", "a.npz", "b.npz"]) == 0
    assert capsys.readouterr().out == "table\n"
    assert calls == [((tmp_path, 0.02, 3, ["a.npz", "b.npz"]), {"progress": False})]


@pytest.mark.parametrize("name", synthetic.FILES)
def test_command_replaces_only_when_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.setattr(synthetic, "reproduce", lambda *_, **__: "table")
    (tmp_path / name).write_text("precious")
    assert main(["reproduce", "synthetic", "--out", str(tmp_path)]) == 2
    assert "holds a result already; give --overwrite" in capsys.readouterr().err
    assert main(["reproduce", "synthetic", "--out", str(tmp_path), "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--variance", "0.01"], "variance: invalid choice"),
        (["--seed", "-1"], "seed: expected a whole number in"),
        (["--generator", "absent.npz"], "generator: expected a file, found none at"),
        (["--generator", "wide.safetensors"], "generator: expected one with 2 latents"),
        (["--generator", "text.npz"], "text.npz"),
    ],
)
def test_wrong_commands(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    told: str,
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    save_generator(MLPGenerator((2, 4, 3)), Path("wide.safetensors"))
    Path("text.npz").write_text("no checkpoint")
    assert main(["reproduce", "synthetic", "--out", "out", *more]) == 2
    error = capsys.readouterr().err
    assert told in error and error.startswith("cogen-fast: error: ") and error.count("\n") == 1
    assert not Path("out").exists()


def test_without_matplotlib_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["reproduce", "synthetic", "--out", str(tmp_path / "out")]) == 2
    assert "reproduce: needs matplotlib; pip install 'cogen-fast[plots]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_training_command_writes_every_shipped_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cogen_fast.training import five_gaussians

    def short(stages: tuple[int, ...], variance: float, seed: int) -> object:
        return ((stage, MLPGenerator()) for stage in stages)

    monkeypatch.setattr(five_gaussians, "train", short)
    monkeypatch.setattr(sys, "argv", ["five_gaussians", str(tmp_path / "new")])
    five_gaussians.main()
    shipped = {file for name, file in PRETRAINED.items() if name.startswith("five-gaussians")}
    assert {p.name for p in (tmp_path / "new").iterdir()} == shipped
    assert all(load_generator(p) for p in (tmp_path / "new").iterdir())
