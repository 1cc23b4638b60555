"""Runs that several processes share: equal to those of one process, and ended together."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from confined import needs_linux
from PIL import Image
from runs import assert_same, network, saved_generator
from shared_runs import (
    FILL,
    LONG,
    POPULATIONS,
    SEEN,
    SHARED,
    Counted,
    fail,
    garments,
    interrupt,
    kill,
    vectors,
    work_baselines,
    work_batch,
    work_command,
    work_counted,
    work_different,
    work_ended,
    work_failing,
    work_failing_oddly,
    work_garments,
    work_long,
    work_whole,
)
from teams import Came, Crew, crew

from cogen_fast import (
    Compute,
    Result,
    bound_evidence,
)
from cogen_fast.problem.processes import LEAST_ROWS, shares

pytestmark = [pytest.mark.usefixtures("one_thread"), needs_linux]

SLOW = {"frozen", "trace", "bfloat16", "inferred noise"}


@cache
def alone(case: str) -> Result:
    return garments(case, Compute())


@pytest.fixture(scope="module")
def one() -> Iterator[Crew]:
    with crew(1) as found:
        yield found


@pytest.fixture(scope="module")
def two() -> Iterator[Crew]:
    with crew(2) as found:
        yield found


@pytest.fixture(scope="module")
def three() -> Iterator[Crew]:
    with crew(3) as found:
        yield found


def values(came: list[Came]) -> list[Any]:
    """The values of all processes; fails where one has an error."""
    assert [each.error for each in came] == [None] * len(came)
    assert [each.exitcode for each in came] == [None] * len(came)
    return [each.value for each in came]


# --- shares ---------------------------------------------------------------------------------------


def test_shares_are_all_rows_in_order() -> None:
    for rows, size in itertools.product(range(1, 60), range(1, 6)):
        for most in (None, 1, 3, 7, 100):
            found = shares(rows, size, most)
            bounds = [0, *(stop for _, stop in found)]
            assert [start for start, _ in found] == bounds[:-1] and bounds[-1] == rows
            assert 1 <= len(found) <= size
            sizes = [stop - start for start, stop in found]
            assert min(sizes) >= 1 and sizes[0] == max(sizes)
            if most is not None and (most <= LEAST_ROWS or most * size <= rows):
                assert all(start % most == 0 for start, _ in found)
                assert len(found) == min(size, -(-rows // most))
            elif len(found) > 1:
                assert min(sizes) >= LEAST_ROWS and max(sizes) - min(sizes) <= 1


def test_a_few_rows_stay_together() -> None:
    assert shares(LEAST_ROWS, 3) == [(0, LEAST_ROWS)]
    assert shares(2 * LEAST_ROWS, 3) == [(0, LEAST_ROWS), (LEAST_ROWS, 2 * LEAST_ROWS)]
    assert shares(4, 4, 1) == [(0, 1), (1, 2), (2, 3), (3, 4)]


# --- equal to one process -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "size"),
    [
        ("populations", 3),
        pytest.param("populations", 2, marks=pytest.mark.slow),
        ("not divisible", 3),
        ("fewer chains than processes", 3),
        ("published", 3),
        *(pytest.param(case, 2, marks=pytest.mark.slow) for case in sorted(SLOW)),
    ],
)
def test_several_processes_give_the_result_of_one(
    case: str, size: int, two: Crew, three: Crew
) -> None:
    together = {2: two, 3: three}[size]
    for each in values(together(work_garments, case)):
        assert_same(each, alone(case), but=("notes",))
        note = f"processes: {size} processes share the evaluations of G"
        assert [n for n in each.notes if n not in alone(case).notes] == [note]


@pytest.mark.parametrize("most", [None, 5])
def test_each_process_evaluates_its_share(most: int | None, three: Crew) -> None:
    """With ``max_batch`` whole calls are shared, so that any generator gives the same bits."""
    compute = Compute(processes=True, max_batch=most, backend="reference")
    options = {"compute": compute, "method": POPULATIONS}
    (first, mine), *others = values(three(work_counted, options))
    one = vectors(Counted(), **options | {"compute": replace(compute, processes=False)})
    rows = [sum(mine), *(sum(each) for _, each in others)]
    assert min(rows) > 0.8 * max(rows)
    for each, _ in others:
        assert_same(each, first)
    if most is not None:
        assert_same(first, one, but=("notes",))
    else:  # matrix products of other sizes may round differently
        assert torch.allclose(first.energies, one.energies, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_a_batch_of_observations_is_shared_by_chains(three: Crew) -> None:
    one = work_batch(-1)
    for each in values(three(work_batch)):
        assert_same(each, one, but=("notes",))


def test_a_whole_run_in_one_call_is_made_by_one(two: Crew) -> None:
    one = work_whole(-1)
    assert one.settings["backend"] == "fused"
    for each in values(two(work_whole)):
        assert_same(each, one, but=("notes",))
        assert "processes: one of 2 made the run, in one call in C++" in each.notes


def test_baselines_are_shared(two: Crew) -> None:
    descent, resampled, rates = work_baselines(-1)
    for each in values(two(work_baselines)):
        assert_same(each[0], descent, but=("notes",))
        assert_same(each[1], resampled, but=("notes",))
        assert each[2] == rates


def test_one_process_needs_no_others() -> None:
    assert_same(garments("populations"), alone("populations"))


def test_what_cannot_be_shared_is_refused() -> None:
    with pytest.raises(ValueError, match="processes: expected False, as this function runs in one"):
        bound_evidence(network(), SEEN, noise_std=0.3, compute=SHARED)
    with pytest.raises((TypeError, ValueError), match="processes: expected True or False"):
        Compute(processes=2)  # type: ignore[arg-type]


# --- one decision ---------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["time", "callback"])
def test_the_first_process_ends_the_run_for_all(how: str, tmp_path: Path, two: Crew) -> None:
    (first, seen), *others = values(two(work_ended, how, tmp_path))
    reason = {"time": "The time limit of 1e-09 s", "callback": "on_temperature ended"}[how]
    assert not first.complete and first.reasons["complete"].startswith(reason)
    assert [calls for _, calls in others] == [0] and seen == 2 * (how == "callback")
    for each, _ in others:
        assert_same(each, first)
    assert [path.name for path in tmp_path.iterdir()] == ["run.safetensors"]


# --- errors and other arguments -------------------------------------------------------------------


@pytest.mark.parametrize("at", [1, 25])  # where the generator is probed, and in the run
@pytest.mark.parametrize("failing", [0, 2])
def test_an_error_of_one_process_ends_all(failing: int, at: int, three: Crew) -> None:
    came = three(work_failing, failing, at, fail)
    for each in came:
        assert isinstance(each.error, ValueError)
        assert "the generator has had enough" in str(each.error)


def test_an_error_that_cannot_be_sent_is_told_in_words(two: Crew) -> None:
    first, second = two(work_failing_oddly)
    assert type(first.error) is RuntimeError
    assert str(first.error) == "OwnError: 1 and 2"
    assert second.value == "1 and 2"


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("seed", "got seed '0' in process 0 and '1' in process 1"),
        ("method", "got target_cess '0.97' in process 0 and '0.9' in process 1"),
        ("observation", "got observation '"),
        ("generator", "got generator '"),
        ("function", "got a generator, operator or misfit with other values in process 1"),
        ("chains", "chains: expected a whole number of at least 1, got 'many'"),
    ],
)
def test_arguments_that_differ_are_an_error_everywhere(what: str, told: str, three: Crew) -> None:
    came = three(work_different, what)
    for each in came:
        assert isinstance(each.error, ValueError)
        assert told in str(each.error)


# --- processes that end ---------------------------------------------------------------------------


@pytest.mark.parametrize("dying", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_killed_process_ends_the_others_and_the_run_goes_on(
    dying: int, tmp_path: Path, two: Crew
) -> None:
    path = tmp_path / "run.safetensors"
    with crew(3) as together:
        came = together(work_long, 200, kill, [dying], path)
    assert came[dying].exitcode == -signal.SIGKILL
    for each in (came[rank] for rank in range(3) if rank != dying):
        assert isinstance(each.error, ConnectionError)
        assert str(each.error).startswith("another process ended before its work was done; run")
    assert [each.name for each in tmp_path.iterdir() if each.name[0] != "."] == [path.name]
    begun = path.read_bytes()
    whole = vectors(network(), Compute(max_batch=4), **LONG)
    again = vectors(Counted(), Compute(max_batch=4), checkpoint=path, **LONG)
    path.write_bytes(begun)
    first, second = values(two(work_long, None, None, [], path))
    for each in (again, first, second):
        assert_same(each, first, but=("notes",))
        assert_same(each, whole, but=("notes",))


def test_ctrl_c_saves_the_run_and_ends_all(tmp_path: Path, two: Crew) -> None:
    """The processes of a terminal get Ctrl-C at the same time, and from torchrun once more."""
    path = tmp_path / "run.safetensors"
    came = two(work_long, 200, interrupt, [0, 1], path)
    assert [type(each.error) for each in came] == [KeyboardInterrupt] * 2
    whole = vectors(network(), Compute(max_batch=4), **LONG)
    again = vectors(Counted(), Compute(max_batch=4), checkpoint=path, **LONG)
    assert_same(again, whole)


def test_ctrl_c_without_a_checkpoint_returns_the_run(two: Crew) -> None:
    first, second = values(two(work_long, 200, interrupt, [0, 1], None))
    assert not first.complete and first.reasons["complete"].startswith("Ctrl-C ended the run")
    assert_same(first, second)


# --- the command line -----------------------------------------------------------------------------

SIDE = 16


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder with a generator and pictures, of which one cannot be read."""
    saved_generator(tmp_path, SIDE)
    (tmp_path / "photos").mkdir()
    for number, name in enumerate(("a", "b", "d")):
        random = np.random.default_rng(number)
        pixels = random.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{name}.png")
    (tmp_path / "photos" / "c.png").write_text("no picture")
    return tmp_path


def test_a_command_writes_and_tells_once(here: Path, one: Crew, three: Crew) -> None:
    first, *others = three(work_command, here, ("--image", "photos/a.png", "--out", "shared"))
    assert [each.value for each in others] == [first.value] * 2
    assert [each.out + each.err for each in others] == [""] * 2
    assert first.out.count("wrote shared/grid.png") == 1
    (single,) = one(work_command, here, ("--image", "photos/a.png", "--out", "alone"))
    assert (first.value, first.err) == (single.value, single.err)
    both = [Result.load(here / name) for name in ("shared", "alone")]
    assert_same(*both, but=("notes", "settings"))


@pytest.mark.slow
def test_a_command_with_a_folder_shares_each_picture(here: Path, one: Crew, two: Crew) -> None:
    arguments = ("--image", "photos", "--out", "shared")
    first, second = two(work_command, here, arguments)
    assert first.value == second.value == 2 and second.out + second.err == ""
    assert "photos/c.png (3 of 4) is left out" in first.err
    assert "wrote shared/sheet.png of 3 images" in first.out
    (single,) = one(work_command, here, ("--image", "photos", "--out", "alone"))
    assert single.value == 2
    for name in "abd":
        both = [Result.load(here / folder / name) for folder in ("shared", "alone")]
        assert_same(*both, but=("notes", "settings"))
    again, _ = two(work_command, here, arguments)
    assert again.err.count("finished already") == 3


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("--image", "photos/c.png"), "error: image: expected a picture"),
        (("--image", "photos/a.png", "--chains", "0"), "error: chains: expected"),
    ],
)
def test_a_mistake_is_told_once(here: Path, more: tuple[str, ...], told: str, two: Crew) -> None:
    first, second = two(work_command, here, (*more, "--out", "shared"))
    assert first.value == second.value == 2
    assert first.err.startswith(f"cogen-fast: {told}") and second.err == ""
    assert not (here / "shared").exists()


# --- torchrun -------------------------------------------------------------------------------------

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")
# If told to, this generator sends a signal to its own process, or to torchrun, in the middle.
USER_CODE = """
import os
import torch
from torch import nn

class Net(nn.Module):
    latent_size = 5
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.dense = nn.Linear(5, 256)
        self.calls = 0
    def forward(self, z):
        self.calls += 1
        if self.calls == 200 and os.environ.get("RANK", "alone") == os.environ.get("TEST_RANK"):
            to_all = os.environ["TEST_WHOM"] == "torchrun"
            os.kill(os.getppid() if to_all else os.getpid(), int(os.environ["TEST_SIGNAL"]))
        return torch.tanh(self.dense(z)).reshape(-1, 1, 16, 16)

net = Net()
"""
COMMAND = (
    *("-m", "cogen_fast", "inpaint", "--generator=shared_code:net", "--image=photos/a.png"),
    *("--populations=3", "--max-batch=4", "--checkpoint=run.safetensors", *FILL[4:], "--budget=60"),
)


def command(folder: Path, launcher: tuple[str, ...], out: str, **environment: str) -> Any:
    """The command in a new Python process that `TORCHRUN` shares, or alone."""
    (folder / "shared_code.py").write_text(USER_CODE)
    return subprocess.run(
        [sys.executable, *launcher, *COMMAND, f"--out={out}"],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def remade(here: Path, stopped: Any, size: int) -> None:
    """Assert that the command stopped without a result and that a further one completes it."""
    assert stopped.returncode != 0 and stopped.stdout == ""
    assert not (here / "stopped").exists() and (here / "run.safetensors").exists()
    again = command(here, (*TORCHRUN, str(size)), "stopped")
    assert again.stdout.count("wrote stopped/grid.png") == 1, again.stderr
    (here / "run.safetensors").unlink()
    assert command(here, (), "alone").stdout.count("wrote alone/grid.png") == 1
    both = [Result.load(here / name) for name in ("stopped", "alone")]
    assert_same(*both, but=("notes", "settings"))


@pytest.mark.slow
def test_torchrun_ends_where_a_process_is_killed(here: Path) -> None:
    how = {"TEST_RANK": "1", "TEST_WHOM": "itself", "TEST_SIGNAL": str(int(signal.SIGKILL))}
    stopped = command(here, (*TORCHRUN, "2"), "stopped", **how)
    remade(here, stopped, 3)


@pytest.mark.slow
def test_ctrl_c_of_torchrun_saves_the_run(here: Path) -> None:
    how = {"TEST_RANK": "1", "TEST_WHOM": "torchrun", "TEST_SIGNAL": str(int(signal.SIGINT))}
    stopped = command(here, (*TORCHRUN, "3"), "stopped", **how)
    told = "cogen-fast: interrupted; the run is saved in run.safetensors, and the same command"
    assert stopped.stderr.count(told) == 1
    remade(here, stopped, 2)
