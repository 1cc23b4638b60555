"""`cogen-fast evaluate` as users run it: one process, several, killed ones, and mistakes."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from discs import discs
from PIL import Image

from cogen_fast.cli import evaluate as cli_evaluate
from cogen_fast.cli.generator import find_generator
from cogen_fast.cli.main import main
from cogen_fast.experiments.evaluate.data import open_data
from cogen_fast.experiments.evaluate.evaluate import gather
from cogen_fast.experiments.evaluate.methods import METHODS, method_named
from cogen_fast.experiments.evaluate.tasks import Block, pose
from cogen_fast.experiments.evaluate.tuning import Grid
from cogen_fast.generators.pretrained import pretrained
from cogen_fast.methods.baselines import STARTS, STEPS, tune
from cogen_fast.support import files
from cogen_fast.training.distributed import Processes

pytest.importorskip("pytorch_msssim")
pytestmark = pytest.mark.usefixtures("one_thread")

# If told to, this generator kills or interrupts its own process in the middle of a group.
USER_CODE = """
import os, signal
from pathlib import Path
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.dense = nn.Linear(5, 256)
    def forward(self, z):
        how, rank, out = (os.environ.get(f"TEST_{name}") for name in ("SIGNAL", "RANK", "OUT"))
        if how and os.environ.get("RANK", "0") == rank:
            if len(list(Path(out).glob("*/group-*.jsonl"))) >= 3:
                if int(how) == signal.SIGINT:  # a shell's background jobs ignore it
                    signal.signal(signal.SIGINT, signal.default_int_handler)
                os.kill(os.getpid(), int(how))
        return torch.tanh(self.dense(z)).reshape(-1, 1, 16, 16)

net = Net()
wide = lambda z: net(z).repeat(1, 1, 1, 2)
wide.latent_size = 5
"""
STUDY = (
    *("--task=block-4-6", "--methods=paper,gd,gd-multi,sir", "--images=6", "--group=2"),
    *("--noise-std=0.3", "--chains=2", "--budget=20", "--starts=10", "--tuning-images=2"),
)
RATE = ["--learning-rates=gd=0.01", "--budget=3"]
RATES = ("--learning-rates=gd=0.01,gd-multi=0.01",)
METHOD_NAMES = ("paper", "gd", "gd-multi", "sir")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the user's code and data."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "evaluated_code.py").write_text(USER_CODE)
    np.savez(folder / "discs.npz", discs(8).pixels)
    return folder


@pytest.fixture(autouse=True)
def at_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))


def command(out: Path, *more: str) -> list[str]:
    start = ["evaluate", "--generator=evaluated_code:net", "--data=discs.npz", f"--out={out}"]
    return [*start, *STUDY, *more]


def process(
    launcher: tuple[str, ...], arguments: list[str], **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *launcher, "-m", "cogen_fast", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.fixture(scope="module")
def whole(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted study by one process."""
    out = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.setattr(sys, "path", list(sys.path))
        patch.setenv("XDG_CACHE_HOME", str(home / "cache"))
        assert main(command(out)) == 0
    return out


def timeless(text: str) -> str:
    return re.sub(r'"seconds": [0-9.e-]+|"digest": "[0-9a-f]{64}"', "", text)


def assert_same_study(out: Path, other: Path) -> None:
    """Assert that two studies are equal byte for byte, except measured times."""
    names = {str(path.relative_to(other)) for path in other.rglob("*") if path.is_file()}
    assert {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()} == names
    for name in names:
        if name.endswith(".jsonl"):
            assert timeless((out / name).read_text()) == timeless((other / name).read_text()), name
        elif not name.endswith((".npz", "table.txt", "table.csv")):
            assert (out / name).read_bytes() == (other / name).read_bytes(), name
    for shard in other.rglob("*.npz"):
        with np.load(shard) as a, np.load(out / shard.relative_to(other)) as b:
            assert all(np.array_equal(a[name], b[name]) for name in a.files)


def finished(out: Path) -> dict[Path, tuple[int, bytes]]:
    """The files of finished groups: when each was written, and its content."""
    found = [*out.glob("*/group-*.jsonl"), *out.glob("*/tuning.json")]
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in found}


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("cogen-fast: error: ") and told.err.count("\n") == 1
    return told.err


# --- what is written ------------------------------------------------------------------------------


def test_what_a_study_writes(whole: Path) -> None:
    assert {path.name for path in whole.iterdir()} == {
        *METHOD_NAMES,
        *("plan.json", "records.jsonl", "table.txt", "table.csv", "grid-000000.png"),
    }
    records = [json.loads(line) for line in (whole / "records.jsonl").read_text().splitlines()]
    assert records == list(gather(whole))
    assert [record["image"] for record in records] == list(range(6))
    assert all(set(record["methods"]) == set(METHOD_NAMES) for record in records)
    assert all(len(run["energies"]) == 2 for run in records[3]["methods"].values())
    with Image.open(whole / "grid-000000.png") as grid:
        assert grid.size == (6 * (112 + 4) + 4, 6 * (112 + 4 + 18) + 4)


def test_what_is_printed_is_the_table(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(whole)) == 0
    told = capsys.readouterr()
    assert told.out.startswith((whole / "table.txt").read_text())
    assert f"wrote {whole / 'records.jsonl'}" in told.out and told.err == ""
    assert main(command(whole, "--quiet")) == 0
    assert capsys.readouterr() == ("", "")


def test_methods_of_single_chains_have_one_line(tmp_path: Path) -> None:
    assert main(command(tmp_path, "--methods=sir", "--images=2", "--chains=1")) == 0
    text = (tmp_path / "table.txt").read_text()
    assert re.findall(r"^sir +(\w+)", text, re.MULTILINE) == ["single"]


def test_pictures_are_those_asked_for(whole: Path, tmp_path: Path) -> None:
    options = ("--methods=sir", "--data=own", "--images=11")
    assert main(command(tmp_path, *options, "--pictures=10")) == 0
    assert {path.name for path in tmp_path.glob("*.png")} == {"grid-000000.png", "grid-000008.png"}
    assert main(command(tmp_path, *options, "--pictures=0")) == 0
    assert not list(tmp_path.glob("*.png"))


def test_own_images_are_the_generator_s(tmp_path: Path) -> None:
    assert main(command(tmp_path, "--data=own", "--methods=sir", "--images=3")) == 0
    assert [record["name"] for record in gather(tmp_path)] == ["own-0", "own-1", "own-2"]
    # This command has more methods and images than the first one.
    assert main(command(tmp_path, "--data=own", "--methods=sir,paper", "--images=4")) == 0
    assert [set(record["methods"]) for record in gather(tmp_path)] == [{"sir", "paper"}] * 4


def test_noise_and_latent_shape_reach_the_methods(tmp_path: Path) -> None:
    options = ("--methods=sir", "--images=2", "--added-noise=0.2", "--latent-shape=5")
    assert main(command(tmp_path, *options, "--max-batch=7")) == 0
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["added_noise"] == 0.2 and plan["seed"] == 0 and plan["group"] == 2
    assert plan["common"] == {"noise_std": 0.3, "latent_shape": [5], "max_batch": 7}


@pytest.mark.slow
def test_without_a_number_all_images_count_that_are_not_tuned_on(
    home: Path, tmp_path: Path
) -> None:
    start = ["evaluate", "--generator=evaluated_code:net", "--data=discs.npz"]
    for name, more, count in (("sir", [], 8), ("gd", ["--budget=3"], 4), ("gd", RATE, 8)):
        out = tmp_path / f"{name}-{count}"
        assert main([*start, f"--out={out}", f"--methods={name}", "--starts=5", *more]) == 0
        assert len(list(gather(out))) == count


# --- learning rates -------------------------------------------------------------------------------


def test_rates_are_tuned_on_the_last_images(whole: Path, home: Path) -> None:
    log = json.loads((whole / "gd-multi" / "tuning.json").read_text())
    assert log["images"] == [6, 7]
    data = open_data(home / "discs.npz", 16, channels=1)
    truth = torch.stack([data.load(i) for i in (6, 7)])
    case = pose(Block(4, 6), truth, [6, 7])

    def error(result: Any) -> float:
        return float(((result.images.clamp(-1, 1) - truth[:, None]).double() ** 2).mean())

    net = find_generator("evaluated_code:net", None)
    expected = tune(
        net, case.x_obs, case.operator, method="gd-multi", score=error, chains=2, starts=10,
        steps=20, noise_std=0.3, observation_ids=[6, 7],
    )  # fmt: skip
    assert log["learning_rate"] == expected.learning_rate
    assert [score for _, score in log["log"]] == pytest.approx([s for _, s in expected.log])
    plan = json.loads((whole / "gd-multi" / "plan.json").read_text())
    assert plan["options"]["learning_rate"] == expected.learning_rate
    assert not (whole / "sir" / "tuning.json").exists()


def test_given_rates_are_not_tuned(tmp_path: Path) -> None:
    options = ("--methods=gd,adam", "--learning-rates=adam=0.2,gd=0.01", "--images=8")
    assert main(command(tmp_path, *options)) == 0
    for name, rate in (("gd", 0.01), ("adam", 0.2)):
        plan = json.loads((tmp_path / name / "plan.json").read_text())
        assert plan["options"] == {"chains": 2, "steps": 20, "learning_rate": rate}
        assert not (tmp_path / name / "tuning.json").exists()


def test_images_that_rates_were_tuned_on_are_not_evaluated(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last picture is corrupt, so image 4 is the last one that can be read."""
    options = (f"--data={folder}", "--methods=gd", "--tuning-images=1")
    assert main(command(tmp_path / "out", *options, "--images=4")) == 0
    capsys.readouterr()
    assert main(command(tmp_path / "out", *options, "--images=5")) == 2
    assert "images: expected at most 4, because" in error_of(capsys)


def test_trials_have_steps_of_their_own(tmp_path: Path) -> None:
    options = ("--methods=gd", "--images=2", "--budget=20", "--tuning-steps=3")
    assert main(command(tmp_path, *options)) == 0
    found = json.loads((tmp_path / "gd" / "tuning.json").read_text())
    assert found["plan"]["options"] == {"chains": 2, "steps": 20}
    assert found["cost"] == len(found["log"]) * 2 * 2 * (3 + 1)  # two chains; a gradient costs 2
    run = next(gather(tmp_path))["methods"]["gd"]
    assert run["cost"] == 2 * 2 * (20 + 1)


@pytest.mark.parametrize(
    ("damaged", "told"),
    [
        ("{", ": expected JSON, got '{'"),
        ("[]", " is damaged: expected a JSON object, got []"),
        ('{"learning_rate": 1.0}', " is damaged: its content does not match its digest"),
    ],
)
def test_a_damaged_rate_is_told(
    damaged: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "gd" / "tuning.json"
    path.parent.mkdir()
    path.write_text(damaged)
    assert main(command(tmp_path, "--methods=sir,gd")) == 2
    assert f"out: {path}{told}" in error_of(capsys)
    assert list(tmp_path.rglob("*.*")) == [path]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"images": 0}, "tuning_images: expected"),
        ({"chains": 0}, "tuning_chains: expected"),
        ({"steps": 1.5}, "tuning_steps: expected"),
        ({"rates": {"gd-multi": (0.1,)}}, "rates: expected one of"),
    ],
)
def test_grids_name_what_is_wrong(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="^" + message):
        Grid(**settings)


def test_a_rate_at_the_edge_of_the_grid_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a single step the best of Adam's rates is the largest of the grid."""
    assert main(command(tmp_path, "--methods=adam", "--images=2", "--budget=2")) == 0
    found = json.loads((tmp_path / "adam" / "tuning.json").read_text())["learning_rate"]
    assert found == 1.0
    assert "tuning.json: the best learning rate is the grid's largest" in capsys.readouterr().err


# --- methods by name ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "solver", "options"),
    [
        ("paper", "paper", {"chains": 3, "preset": "celeba-128", "ais_steps": 5}),
        ("adaptive", "adaptive", {"chains": 3, "budget": 100}),
        ("adaptive-polish", "adaptive", {"chains": 3, "budget": 100, "polish": 25}),
        ("gd", "gd", {"chains": 3, "steps": 100}),
        ("lbfgs-multi", "lbfgs-multi", {"chains": 3, "steps": 100, "starts": 9}),
        ("sir", "sir", {"chains": 3, "starts": 9}),
    ],
)
def test_methods_get_their_own_options(name: str, solver: str, options: dict[str, Any]) -> None:
    method = method_named(name, preset="celeba-128", chains=3, budget=100, starts=9)
    assert (method.name, method.solver, method.options) == (name, solver, options)
    polish = {"polish": 500} if name == "adaptive-polish" else {}
    assert method_named(name).options == polish


@pytest.mark.slow
def test_every_method_runs(tmp_path: Path) -> None:
    rates = [f"{name}=0.01" for name in METHODS if name.startswith(("gd", "adam", "lbfgs"))]
    options = (f"--methods={','.join(METHODS)}", f"--learning-rates={','.join(rates)}")
    assert main(command(tmp_path, *options, "--images=1", "--budget=60")) == 0
    (record,) = gather(tmp_path)
    assert set(record["methods"]) == set(METHODS)


def test_a_preset_brings_task_settings_and_weight(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = ["evaluate", "--generator=evaluated_code:net", "--data=own", "--images=1"]
    start += [f"--out={tmp_path}", "--preset=celeba-128-program", "--methods=paper,sir"]
    assert main(start) == 2
    message = error_of(capsys)
    assert "preset: celeba-128-program is for images of 128 px, got a generator of 16 x" in message
    assert main([*start, "--task=block-4-6", "--budget=40", "--starts=5"]) == 0
    (record,) = gather(tmp_path)
    assert len(record["methods"]["paper"]["energies"]) == 10
    assert json.loads((tmp_path / "plan.json").read_text())["common"] == {"weight": 1.0}


def test_shipped_generators_have_names() -> None:
    found, expected = find_generator("fashion-32-480000", "cpu"), pretrained("fashion-32-480000")
    z = torch.ones(1, 64)
    assert torch.equal(found(z), expected(z))


# --- several processes, killed or not -------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_give_the_study_of_one(whole: Path, tmp_path: Path) -> None:
    done = process(TORCHRUN, command(tmp_path))
    assert done.returncode == 0, done.stderr
    assert_same_study(tmp_path, whole)
    assert done.stdout.count("records.jsonl") == 1


def apart(monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    """Make this process one of two that never wait for each other, so that they can run in turn."""

    @contextmanager
    def process_group(_: object) -> Iterator[Processes]:
        yield Processes(rank, 2, torch.device("cpu"))

    monkeypatch.setattr(cli_evaluate, "process_group", process_group)
    monkeypatch.setattr(Processes, "wait", lambda _: None)
    monkeypatch.setattr(files, "WAIT_SECONDS", 0.0)


@pytest.mark.slow
def test_the_leading_process_writes_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for rank in (1, 0):
        apart(monkeypatch, rank)
        assert main(command(tmp_path, *RATES)) == 0
        assert (tmp_path / "records.jsonl").exists() == (rank == 0)
        assert ("wrote" in capsys.readouterr().out) == (rank == 0)


@pytest.mark.parametrize(
    ("given", "missing"),
    [((), r"gd-multi/tuning\.json"), (RATES, r"paper/group-000001\.jsonl")],
    ids=["rates", "records"],
)
def test_processes_without_a_common_folder_are_told(
    given: tuple[str, ...],
    missing: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    apart(monkeypatch, 0)
    assert main(command(tmp_path, *given)) == 2
    told = rf"out: expected a common folder of all processes, but another's .*{missing} is missing"
    assert re.search(told, capsys.readouterr().err)
    assert not (tmp_path / "records.jsonl").exists()


def test_files_of_others_may_be_late(tmp_path: Path) -> None:
    looks = iter([tmp_path, tmp_path, None])
    files.wait_for_files(lambda: next(looks))
    assert next(looks, "none left") == "none left"


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_does_not_wait_for_a_dead_one(rank: int, tmp_path: Path) -> None:
    """The two processes run without torchrun, which would end the other one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    how = {
        "TEST_SIGNAL": str(int(signal.SIGKILL)),
        "TEST_RANK": str(rank),
        "TEST_OUT": str(tmp_path),
    }
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    with ThreadPoolExecutor() as pool:
        dead, other = pool.map(
            lambda each: process((), command(tmp_path), RANK=str(each), **place, **how),
            (rank, 1 - rank),
        )
    assert dead.returncode == -signal.SIGKILL
    assert other.returncode == 2, other.stderr
    assert "error: another process ended before its work was done; run the same" in other.stderr
    assert not (tmp_path / "records.jsonl").exists()


@pytest.mark.slow
def test_one_of_two_processes_is_killed(whole: Path, tmp_path: Path) -> None:
    how = {"TEST_SIGNAL": str(int(signal.SIGKILL)), "TEST_RANK": "1", "TEST_OUT": str(tmp_path)}
    killed = process(TORCHRUN, command(tmp_path), **how)
    assert killed.returncode != 0 and not (tmp_path / "records.jsonl").exists()
    before = finished(tmp_path)
    assert 5 <= len(before) < len(finished(whole))
    again = process(TORCHRUN, command(tmp_path))
    assert again.returncode == 0, again.stderr
    assert_same_study(tmp_path, whole)
    after = finished(tmp_path)
    assert {path: after[path] for path in before} == before


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_process_goes_on(how: signal.Signals, whole: Path, tmp_path: Path) -> None:
    killed = process(
        (), command(tmp_path), TEST_SIGNAL=str(int(how)), TEST_RANK="0", TEST_OUT=str(tmp_path)
    )
    assert killed.returncode == (130 if how == signal.SIGINT else -how), killed.stderr
    if how == signal.SIGINT:
        assert killed.stderr == "cogen-fast: interrupted; the same command continues the study\n"
    before = finished(tmp_path)
    assert sum(path.suffix == ".jsonl" for path in before) == 3
    assert main(command(tmp_path)) == 0
    assert_same_study(tmp_path, whole)
    after = finished(tmp_path)
    assert {path: after[path] for path in before} == before


def test_a_whole_study_is_not_done_again(whole: Path) -> None:
    before = finished(whole)
    assert main(command(whole)) == 0
    assert finished(whole) == before


@pytest.mark.slow
def test_what_killed_processes_left_is_removed(whole: Path, tmp_path: Path) -> None:
    assert main(command(tmp_path)) == 0
    (tmp_path / "gd" / ".group-000001.jsonl.x.jsonl").write_text("half")
    (tmp_path / "paper" / "group-000002.checkpoint.safetensors").write_bytes(b"half")
    assert main(command(tmp_path)) == 0
    assert_same_study(tmp_path, whole)


# --- images that cannot be read -------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six files, of which the third and the last are not pictures."""
    pixels = discs(6).pixels
    (tmp_path / "pictures").mkdir()
    for number, image in enumerate(pixels):
        path = tmp_path / "pictures" / f"{number}.png"
        Image.fromarray(image[0]).save(path)
        if number in (2, 5):
            path.write_bytes(path.read_bytes()[:50])
    return tmp_path / "pictures"


def test_a_corrupt_image_is_reported_and_skipped(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = (f"--data={folder}", "--images=4", "--tuning-images=1", "--methods=gd,sir")
    assert main(command(tmp_path / "out", *options)) == 0
    told = capsys.readouterr()
    assert "cogen-fast: warning: image 2 (2.png) is left out" in told.err
    assert "left out: 2.png" in told.out
    records = list(gather(tmp_path / "out"))
    assert ["error" in record for record in records] == [False, False, True, False]
    assert all(set(records[i]["methods"]) == {"gd", "sir"} for i in (0, 1, 3))
    log = json.loads((tmp_path / "out" / "gd" / "tuning.json").read_text())
    assert log["images"] == [4]  # image 5 is corrupt, too
    with Image.open(tmp_path / "out" / "grid-000000.png") as grid:
        assert grid.height == 3 * (112 + 4 + 18) + 4


def test_images_to_tune_on_must_be_readable(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = (f"--data={folder}", "--images=4", "--methods=gd")
    assert main(command(tmp_path / "out", *options)) == 2
    assert "images: expected 2 that can be read from number 4 on" in error_of(capsys)


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--seed=1"], "seed 0, got 1"),
        (["--task=half-left"], "task 'block-4-6', got 'half-left'"),
        (["--noise-std=0.4"], "common {'noise_std': 0.3}, got {'noise_std': 0.4}"),
        (["--budget=40", "--methods=gd,sir"], "holds a learning rate with plan {"),
        (["--tuning-images=1"], "with grid {'images': 2, 'rates': None}, got {'images': 1,"),
        (["--tuning-steps=9"], "'rates': None}, got {'images': 2, 'steps': 9, 'rates': None}"),
        (["--budget=40"], "{'ais_steps': 1, 'chains': 2}, got"),
        (["--starts=11", "--methods=sir"], "'starts': 10}, got {"),
        (["--data=own"], "holds an evaluation with data"),
        (["--data=other.npz"], "holds an evaluation with data"),
        (["--generator=evaluated_code:Net()"], None),
        (["--generator=other_code:net"], "holds an evaluation with generator"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_another_study_is_not_gone_on_with(
    change: list[str],
    message: str | None,
    whole: Path,
    home: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    np.savez(home / "other.npz", discs(8, seed=1).pixels)
    (home / "other_code.py").write_text(USER_CODE.replace("manual_seed(3)", "manual_seed(4)"))
    before = finished(whole)
    assert main(command(whole, *change)) == (0 if message is None else 2)
    if message is not None:
        found = error_of(capsys)
        assert "error: out: " in found and message in found
    assert finished(whole) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--methods=paper,magic"], "methods: expected one of ("),
        (["--methods=gd,gd"], "methods: expected at least one, of different names"),
        (["--methods="], "methods: expected one of ("),
        (["--task=cube"], "task: expected block, block-LOW-HIGH"),
        (["--task=block-10-20"], "block: expected sides below 16 x 16"),
        (["--images=9"], "images: expected at most 8, got 9"),
        (["--images=7"], "images: expected at most 6, which leaves 2 to tune learning rates on"),
        (["--images=0"], "images: expected a whole number of at least 1"),
        (["--chains=0"], "chains: expected"),
        (["--budget=0"], "budget: expected"),
        (["--starts=0"], "starts: expected"),
        (["--group=0"], "group: expected"),
        (["--pictures=-1"], "pictures: expected"),
        (["--tuning-images=0"], "tuning_images: expected"),
        (["--tuning-steps=0"], "tuning_steps: expected"),
        (["--seed=-1"], "seed: expected"),
        (["--added-noise=-1"], "added_noise: expected"),
        (["--preset=five-gaussians"], "preset: expected one of ('celeba-128'"),
        (["--learning-rates=gd"], "--learning-rates: expected METHOD=RATE"),
        (["--learning-rates=adam=0.1"], "learning_rates: expected methods among paper, gd,"),
        (["--learning-rates=sir=0.1"], "learning_rates: expected none for sir"),
        (["--learning-rates=gd=-1"], "learning_rates: expected a finite number above 0"),
        (["--data=own", "--tuning-images=1", "--device=tpu"], "device: expected cpu or cuda"),
        (["--data=nothing.npz"], "source: expected a folder or a file"),
        (["--generator=nothing.pth"], "generator: expected a file"),
        (["--generator=evaluated_code:wide"], "generator: expected square images whose side"),
        (["--noise-std=0", "--methods=sir"], "noise_std: expected"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_told_before_any_work(
    change: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(tmp_path / "out", *change)) == 2
    assert message in error_of(capsys)
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_own_images_have_no_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["evaluate", "--generator=evaluated_code:net", "--data=own", f"--out={tmp_path}"]
    assert main(arguments) == 2
    assert "images: expected a whole number" in error_of(capsys)


def test_a_file_is_no_folder(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(home / "discs.npz")) == 2
    assert "out: expected a folder, got the file" in error_of(capsys)


def test_help_states_the_defaults_in_force(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    flat = " ".join(capsys.readouterr().out.split())
    assert f"draws of sir (default: {STARTS})" in flat and f"for optimisers {STEPS} steps" in flat
    assert all(name in flat for name in METHODS)
