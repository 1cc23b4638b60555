"""Moves recorded and replayed: the same runs, and what happens where this is impossible.

On the CPU a tape stands in for CUDA's graphs (`tape`); the tests that need a GPU take those.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import captures
import pretended
import pytest
import torch
from implementations import INTERPRETED
from processes import in_a_process
from runs import assert_same, network, seeded
from tape import Tape
from torch import Tensor, nn

from cogen_fast import Compute, Result, cogenerate
from cogen_fast.generators.fast_progressive import FastProgressive
from cogen_fast.methods.settings import keywords
from cogen_fast.ops import dispatch
from cogen_fast.ops.progressive.folded import FoldedLayers, TorchNorms
from cogen_fast.problem import cuda_graphs, graphs, problem, tf32
from cogen_fast.problem.density import GeneratorPotential
from cogen_fast.problem.graphs import Graphs
from cogen_fast.problem.observation import Mask, observe
from cogen_fast.problem.precision import full_precision
from cogen_fast.sampler import ais, fallback
from cogen_fast.support import memory

pytestmark = pytest.mark.usefixtures("one_thread")

# The native ops are not calls that torch sees, so a tape cannot hold them.
BACKEND = "triton" if INTERPRETED else "reference"
SHOWN = ("settings", "notes")
RUNS: dict[str, dict[str, Any]] = {
    "adaptive": {},
    "identity": {"mass": "identity"},
    "populations": {"populations": 3, "hmc_steps": 3},
    "alone": {"chains": 2, "budget": 60},
    "frozen": {"evidence": "frozen", "budget": 120},
    "paper": {"method": "paper", "ais_steps": 9, "leapfrog_steps": 3},
    "two-moves": {"method": "paper", "ais_steps": 5, "leapfrog_steps": 3, "hmc_steps": 2},
    "fixed-step": {"method": "paper", "ais_steps": 6, "adaptation": None, "leapfrog_steps": 2},
    "per-chain": {"method": "paper", "ais_steps": 6, "adaptation": "per-chain"},
}
# The interpreter of Triton takes milliseconds for each launch.
FEW = ("paper", "fixed-step", "alone") if INTERPRETED else tuple(RUNS)
REPLAYED = "CUDA graphs: moves were replayed from"


def observed(rows: int = 2, size: int = 5) -> Tensor:
    return torch.linspace(-1.0, 1.0, rows * size).reshape(rows, size)


def run(generator: Any, **options: Any) -> Result:
    how = {"noise_std": 0.3, "backend": BACKEND, "progress": False} | options
    x = how.pop("x_obs", observed())
    return cogenerate(generator, x, how.pop("mask", torch.tensor([1, 1, 0, 1, 0])), **keywords(how))


@pytest.fixture
def tape(monkeypatch: pytest.MonkeyPatch) -> Tape:
    """The tape in place of the recorder of CUDA graphs."""
    made = Tape()
    monkeypatch.setattr(problem, "recorder", lambda _: made)
    monkeypatch.setattr("cogen_fast.problem.density.is_capturing", lambda: made.recording)
    return made


# --- the same runs ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", FEW, ids=lambda name: f"{BACKEND}-{name}")
def test_replays_make_the_same_run(name: str, tape: Tape) -> None:
    options = RUNS[name]
    replayed = run(network(), **options)
    assert tape.made >= 1
    assert tape.played > 2
    assert any(note.startswith(REPLAYED) for note in replayed.notes)
    played = tape.played
    plain = run(network(), **options, cuda_graphs=False)
    assert tape.played == played
    assert not any("CUDA" in note for note in plain.notes)
    assert_same(replayed, plain, but=SHOWN)


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="the ops are the same ones")
@pytest.mark.parametrize("gradient", ["tf32", "bfloat16", "float16"])
def test_gradients_of_another_type_are_replayed(gradient: str, tape: Tape) -> None:
    options = {"gradient_dtype": gradient, "energy_dtype": "float64"}
    replayed = run(network(), **options)
    assert tape.played > 2
    assert_same(replayed, run(network(), **options, cuda_graphs=False), but=SHOWN)


@pytest.mark.skipif(INTERPRETED, reason="the ops are the same ones")
def test_finer_gradients_are_replayed_too(tape: Tape, monkeypatch: pytest.MonkeyPatch) -> None:
    # Gradients become finer as soon as this is allowed.
    monkeypatch.setattr(fallback, "LEAST_ACCEPTANCE", 1.1)
    options = {"gradient_dtype": "bfloat16", "method": "paper", "ais_steps": 14}
    replayed = run(network(), **options)
    assert tape.made == 2
    assert tape.played == 14 - 2  # all but the first call of each
    assert_same(replayed, run(network(), **options, cuda_graphs=False), but=SHOWN)


@pytest.mark.skipif(INTERPRETED, reason="the ops are the same ones")
def test_the_folded_layers_are_replayed(tape: Tape) -> None:
    generator = seeded(8, latent_size=6, feature_maps=[6, 4])
    fast = FastProgressive(generator.network(), FoldedLayers(torch.float64, TorchNorms()))
    x = torch.zeros(1, 3, 8, 8, dtype=torch.float64)
    how = {"chains": 3, "latent_size": 6, "dtype": torch.float64, "backend": "reference"}
    found = []
    with problem.prepared(
        generator, x, torch.ones(8, 8), noise_std=1.0, compute=Compute(backend="reference")
    ) as p:
        for recorded in (Graphs(tape, lambda: 0), None):
            potential = p.potential.of(fast, p.observation)
            potential.graphs = recorded
            found.append(ais.run(potential, "linear", 6, ais.Moves(leapfrog_steps=3), **how))
    assert tape.played == 6 - 1
    assert torch.equal(found[0].state.hmc.latents, found[1].state.hmc.latents)
    assert torch.equal(found[0].state.log_weights, found[1].state.log_weights)


def test_outputs_are_the_caller_s_own(tape: Tape) -> None:
    doubled = Graphs(tape, lambda: 0)
    found = [doubled("key", lambda x: (2.0 * x, x), torch.full((3,), float(i))) for i in range(6)]
    assert tape.made == 1
    for i, (twice, once) in enumerate(found):
        assert twice.tolist() == [2.0 * i] * 3
        assert once.tolist() == [1.0 * i] * 3


def test_shapes_types_plain_values_and_keys_are_told_apart(tape: Tape) -> None:
    call = Graphs(tape, lambda: 0)
    x = torch.arange(3.0)
    cases: list[tuple[str, tuple[Any, ...]]] = [
        ("a", (x, 1, None)),
        ("a", (x, 2, None)),
        ("a", (x, 1, x)),
        ("a", (torch.arange(4.0), 1, None)),
        ("a", (x.double(), 1, None)),
        ("b", (x, 1, None)),
    ]

    def function(key: str, x: Tensor, times: int, more: Tensor | None) -> Tensor:
        scaled = (10.0 if key == "b" else 1.0) * times * x
        return scaled if more is None else scaled + more

    for number in range(4):
        for key, args in cases:
            found = call(key, partial(function, key), *args)
            assert torch.equal(found, function(key, *args))
            assert found.dtype == args[0].dtype
        assert tape.made == (len(cases) if number else 0)
    assert tape.played == (1 + 2) * len(cases)


def test_what_is_allocated_otherwise_is_recorded_anew(tape: Tape) -> None:
    versions = iter([1] * 6 + [2] * 20)
    call = Graphs(tape, lambda: next(versions))
    for i in range(8):
        assert call("key", lambda x: x + 1.0, torch.tensor(float(i))).item() == i + 1.0
    assert tape.made == 2


# --- where it cannot be -------------------------------------------------------------------------


class Waiting(nn.Module):
    """A network that reads a number from its latents."""

    def __init__(self, look: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.net, self.look = network(), look

    def forward(self, z: Tensor) -> Tensor:
        x: Tensor = self.net(z)
        return x + 0.0 * float(self.look(z.detach()))


LOOKS: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "a-number": (lambda z: z[0, 0].item(), "_local_scalar_dense"),
    "a-truth": (lambda z: bool((z > 0).any()), "_local_scalar_dense"),
    "places": (lambda z: len(z.nonzero()), "nonzero"),
    "flags": (lambda z: len(z[z > 0.0]), "index.Tensor"),
    "chosen": (lambda z: len(z.masked_select(z > 0.0)), "masked_select"),
    "equal": (lambda z: torch.equal(z, z), "equal"),
    "unique": (lambda z: len(z.unique()), "_unique2"),
    "elsewhere": (lambda z: z.to("meta").ndim, "_to_copy"),
}


@pytest.mark.skipif(INTERPRETED, reason="the ops are the same ones")
@pytest.mark.parametrize(("look", "name"), LOOKS.values(), ids=LOOKS)
def test_a_generator_that_waits_is_noticed(
    look: Callable[[Tensor], Any], name: str, tape: Tape
) -> None:
    found = run(Waiting(look), **RUNS["paper"])
    assert tape.made == 0
    (note,) = [note for note in found.notes if note.startswith("CUDA")]
    assert note.startswith("CUDA graphs: not used: G, the operator or the misfit waits for the")
    assert name in note
    assert_same(found, run(Waiting(look), **RUNS["paper"], cuda_graphs=False), but=SHOWN)


class Baking(nn.Module):
    """A network with a shift that Python computes from the latents without torch noticing."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, z: Tensor) -> Tensor:
        x: Tensor = self.net(z)
        return x + torch.tensor(z.detach().sin().numpy()[:, :1].copy())


@pytest.mark.skipif(INTERPRETED, reason="the ops are the same ones")
def test_a_replay_that_differs_is_noticed(tape: Tape) -> None:
    found = run(Baking(), **RUNS["paper"])
    assert (tape.made, tape.played) == (1, 1)
    assert (
        "CUDA graphs: not used: a replay gave other numbers than the move itself: at least half of "
        "them differ by a share of more than 3e-04, which is allowed for torch.float32"
    ) in found.notes
    assert_same(found, run(Baking(), **RUNS["paper"], cuda_graphs=False), but=SHOWN)


def test_a_recording_that_fails_is_told(tape: Tape, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(function: Callable[[], Any]) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(problem, "recorder", lambda _: fails)
    found = run(network(), **RUNS["paper"])
    assert (
        "CUDA graphs: not used: a move could not be recorded (operation not permitted when stream "
        "is capturing)"
    ) in found.notes
    assert_same(found, run(network(), **RUNS["paper"], cuda_graphs=False), but=SHOWN)


def test_no_call_is_made_beside_a_recording_of_its_own(tape: Tape) -> None:
    """Memory holds a call or the recording of it; two calls, and the one that is recorded."""
    seen: list[bool] = []

    def function(x: Tensor) -> Tensor:
        seen.append(tape.recording)
        return x + 1.0

    call = Graphs(tape, lambda: 0)
    for i in range(6):
        assert call("key", function, torch.tensor(float(i))).item() == i + 1.0
    assert seen == [False, False, True]


def test_tensors_of_each_type_are_copied_together(
    tape: Tape, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied: list[list[torch.dtype]] = []
    copy = torch._foreach_copy_

    def noted(there: list[Tensor], tensors: list[Tensor]) -> None:
        copied.append([tensor.dtype for tensor in there])
        copy(there, tensors)

    monkeypatch.setattr(torch, "_foreach_copy_", noted)
    call = Graphs(tape, lambda: 0)
    for i in range(4):
        copied.clear()
        a, b, c = torch.full((2,), 1.0 + i), torch.full((3,), 2.0 + i).double(), torch.zeros(4)
        found = call("key", lambda *x: tuple(2.0 * each for each in x), a, b, c)
        assert [each.tolist() for each in found] == [
            [2.0 + 2 * i] * 2,
            [4.0 + 2 * i] * 3,
            [0.0] * 4,
        ]
    assert copied == [[torch.float32] * 2, [torch.float64]] * 2  # in, and out


class Noisy:
    """A function in a float type, whose replays differ by a share of its values."""

    def __init__(self, share: float, dtype: str) -> None:
        self.share, self.dtype = share, dtype

    def record(self, function: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        outputs = function()
        return outputs, lambda: outputs.copy_((1.0 + self.share) * self(torch.ones(8)))

    def __call__(self, x: Tensor) -> Tensor:
        if self.dtype == "tf32":
            with full_precision(), tf32.products(torch.device("cuda")):
                return x * 3.0
        return (x.to(getattr(torch, self.dtype)) * 3.0).float()


@pytest.mark.parametrize(
    ("dtype", "share", "fine"),
    [
        ("float32", 1e-4, True),
        ("float32", 1e-3, False),
        ("float16", 1e-2, True),
        ("float16", 1e-1, False),
        ("tf32", 1e-2, True),
        ("tf32", 1e-1, False),
        ("bfloat16", 5e-2, True),
        ("bfloat16", 2e-1, False),
    ],
)
def test_rounding_is_that_of_the_coarsest_type(dtype: str, share: float, fine: bool) -> None:
    """Half of the digits: 3e-4 for float32, 0.03 for float16 and TF32, and 0.09 for bfloat16."""
    function = Noisy(share, dtype)
    call = Graphs(function.record, lambda: 0)
    for _ in range(2):
        call("key", function, torch.ones(8))
    assert (call.failure is None) is fine
    named = "float16" if dtype == "tf32" else dtype
    assert fine or f"which is allowed for torch.{named}" in call.note


# What G may do on a device, with a part of the name of the op that gives it away.
ON_DEVICE: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "tensor": (lambda x: torch.tensor([1.0, 2.0], device=x.device), "lift_fresh"),
    "scalar": (lambda x: torch.tensor(2.0, device=x.device), "lift_fresh"),
    "new": (lambda x: x.new_tensor([1.0]), "lift_fresh"),
    "as": (lambda x: torch.as_tensor([1.0], device=x.device), "lift_fresh"),
    "list": (lambda x: x[[0, 2]], "lift_fresh"),
    "set": (lambda x: x.clone().__setitem__([0, 2], 0.0), "lift_fresh"),
    "index": (lambda x: x[torch.tensor([0, 2])], "index.Tensor"),
    "inverse": (lambda x: torch.linalg.inv(x + 9.0 * torch.eye(4).to(x)), "_to_copy"),
    "inverted": (lambda x: torch.linalg.inv(x), "_linalg_check_errors"),
    "cholesky": (lambda x: torch.linalg.cholesky(x @ x.mT + x @ x.mT), "_linalg_check_errors"),
    "solve": (lambda x: torch.linalg.solve(x, x), "_linalg_check_errors"),
    "eigenvalues": (lambda x: torch.linalg.eigh(x @ x.mT), "_linalg_eigh"),
    "close": (lambda x: torch.allclose(x, x), "allclose"),
    "repeated": (lambda x: x.repeat_interleave((x[0] > 9.0).long(), 0), "repeat_interleave.Tensor"),
}
FREE: dict[str, Callable[[Tensor], Any]] = {
    "numbers": lambda x: 2.0 * x + torch.where(x > 0.0, x, 0.5),
    "filled": lambda x: x + torch.full((4,), 0.5, device=x.device),
    "number on the CPU": lambda x: x * torch.tensor(2.0),
    "one of the places": lambda x: x[0] + x[:, 1:3].sum(),
    "repeats": lambda x: x.repeat_interleave(3, 0),
}


def look_on_a_device() -> None:
    pretended.use()
    x = torch.randn(4, 4, generator=torch.Generator().manual_seed(0)).to(pretended.NAME)

    def on_the_device(look: Callable[[Tensor], Any]) -> str | None:
        """Why ``look`` is not recorded, None where a recording would begin."""

        def begins(function: Callable[[], Any]) -> Any:
            raise RuntimeError("begins")

        call = Graphs(begins, lambda: 0)
        for _ in range(2):
            call("key", lambda x: (look(x), x + 1.0)[1], x)
        assert call.failure is not None
        return None if "(begins)" in call.failure else call.failure

    for case, (look, name) in ON_DEVICE.items():
        failure = on_the_device(look)
        assert failure is not None and name in failure, (case, failure)
    for case, look in FREE.items():
        assert on_the_device(look) is None, case


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="the ops are the same ones")
def test_what_waits_for_a_device_is_noticed_before_recording() -> None:
    in_a_process(__file__, "look_on_a_device")


def strict(monkeypatch: pytest.MonkeyPatch) -> list[int | str]:
    """Pretend that CUDA is in use, and list the modes that torch is asked for."""
    modes: list[int | str] = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    return modes


def test_what_torch_itself_notices_is_told(tape: Tape, monkeypatch: pytest.MonkeyPatch) -> None:
    modes = strict(monkeypatch)
    # Threads that other tests have left behind.
    monkeypatch.setattr(threading, "enumerate", lambda: [threading.current_thread()])

    def waits(x: Tensor) -> Tensor:
        if modes[-1:] == ["error"]:
            raise RuntimeError("called a synchronizing CUDA operation")
        return x

    call = Graphs(tape, lambda: 0)
    for i in range(4):
        assert call("key", waits, torch.tensor(float(i))).item() == i
    assert call.note == "CUDA graphs: not used: G, the operator or the misfit waits for the device"
    assert modes == ["error", 0]
    assert tape.made == 0


def test_torch_s_own_check_is_left_alone_beside_other_threads(
    tape: Tape, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes = strict(monkeypatch)
    leave = threading.Event()
    other = threading.Thread(target=leave.wait)
    other.start()
    call = Graphs(tape, lambda: 0)
    for i in range(3):
        call("key", lambda x: x + 1.0, torch.tensor(float(i)))
    leave.set()
    other.join()
    assert modes == []
    assert tape.made == 1


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="the ops are the same ones")
def test_what_is_compiled_stays_compiled(tape: Tape) -> None:
    """Torch gives up compiling what it meets under a mode that does not ask for it."""
    torch.compiler.reset()
    calls: list[bool] = []

    def backend(module: nn.Module, _: Any) -> Callable[..., Any]:
        def compiled(*args: Tensor) -> Any:
            calls.append(tape.recording)
            return module(*args)

        return compiled

    def function(x: Tensor) -> Tensor:
        return torch.sin(x) + 1.0

    called = torch.compile(function, backend=backend, dynamic=False)
    call = Graphs(tape, lambda: 0)
    for i in range(4):
        x = torch.full((3,), float(i))
        torch.testing.assert_close(call("key", called, x), function(x))
    assert tape.made == 1
    assert calls == [False, False, True]
    called(torch.zeros(3))
    assert len(calls) == 4
    torch.compiler.reset()


# --- failed captures ----------------------------------------------------------------------------

VERSIONS = ("2.4.1", "2.11.0", "2.13.0", "2.14.0")


@pytest.fixture(params=VERSIONS)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> captures.Device:
    """A device of one version of torch, in the place of CUDA's."""
    made = captures.Device(request.param)
    captures.use(made, monkeypatch)
    return made


def record(recorder: graphs.Recorder, function: Callable[[], Any]) -> Any:
    """A recording, of which the outputs are dropped."""
    return recorder(function)[1]


def cuda_recorder() -> graphs.Recorder:
    made = cuda_graphs.recorder(torch.device("cuda"))
    assert made is not None
    return made


def fails() -> None:
    raise ValueError("of G's own")


def test_a_failed_capture_leaves_nothing_behind(device: captures.Device) -> None:
    recorder = cuda_recorder()
    failures: list[tuple[Callable[[], Any], str]] = [
        (device.invalidate, "previous error during capture"),
        (fails, "of G's own"),
    ]
    for function, message in failures:
        with pytest.raises((RuntimeError, ValueError), match=message):
            record(recorder, function)
        assert device.healthy
        assert device.stream == "usual"
        device.empty_cache()
        assert not device.pools
    replay = record(recorder, device.product)
    replay()
    assert list(device.pools.values()) == [1]
    del replay
    device.empty_cache()
    assert not device.pools


def test_a_failed_capture_takes_nothing_from_other_recordings(device: captures.Device) -> None:
    recorder = cuda_recorder()
    replay = record(recorder, device.product)
    with pytest.raises(RuntimeError, match="previous error"):
        record(recorder, device.invalidate)
    device.refuses = True
    with pytest.raises(RuntimeError, match="out of streams"):
        record(recorder, device.product)
    device.refuses = False
    device.empty_cache()
    assert list(device.pools.values()) == [1]
    replay()
    second = record(recorder, device.product)
    assert list(device.pools.values()) == [2]
    del replay, second
    device.empty_cache()
    assert not device.pools


def test_recordings_after_the_last_one_have_memory_of_their_own(device: captures.Device) -> None:
    """Memory that was given up may still be held, by outputs or by libraries."""
    recorder = cuda_recorder()
    streams = []

    def noted() -> None:
        device.product()
        streams.append(device.stream)

    for _ in range(3):
        both = [record(recorder, noted) for _ in range(2)]
        del both
        gc.collect()
    assert device.handles == 3
    assert len(set(map(id, streams))) == 3
    assert not device.workspaces
    device.empty_cache()
    assert not device.pools


def test_a_short_run_needs_none(tape: Tape) -> None:
    found = run(network(), method="paper", ais_steps=1)
    assert tape.made == 0
    assert (
        "CUDA graphs: none were recorded, because too few moves had the same shapes" in found.notes
    )


@pytest.mark.slow
def test_whole_runs_in_one_call_need_none(tape: Tape) -> None:
    found = run(network(), method="paper", ais_steps=6, backend="auto")
    assert found.settings["backend"] == "fused"
    assert tape.made == 0
    assert not any("CUDA" in note for note in found.notes)
    found = run(network(), backend="auto")  # an adaptive run is not made in one call
    assert any("CUDA" in note for note in found.notes)


def test_the_cpu_has_none() -> None:
    assert cuda_graphs.recorder(torch.device("cpu")) is None
    assert not any("CUDA" in note for note in run(network(), **RUNS["paper"]).notes)


def test_cuda_graphs_must_be_a_boolean() -> None:
    with pytest.raises(TypeError, match=r"^cuda_graphs: expected True or False, got 1"):
        run(network(), cuda_graphs=1)


# --- memory -------------------------------------------------------------------------------------


class Small(nn.Module):
    """A generator with memory for ``most()`` rows."""

    def __init__(self, most: Callable[[], int]) -> None:
        super().__init__()
        self.net, self.most = network().double(), most
        self.refused: list[int] = []

    def forward(self, z: Tensor) -> Tensor:
        if len(z) > self.most():
            self.refused.append(len(z))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        x: Tensor = self.net(z)
        return x


def test_moves_are_recorded_anew_after_memory_ran_out_while_recording(tape: Tape) -> None:
    # The memory of the recordings leaves room for three of eight rows.
    G = Small(lambda: 3 if tape.recording else 8)
    found = run(G, **RUNS["paper"], chains=4)
    assert G.refused == [8, 4]
    assert tape.made == 1
    assert "Memory ran out, so max_batch was lowered to 2." in found.notes
    assert "CUDA graphs: moves were replayed from 1 recording" in found.notes
    plain = run(Small(lambda: 8), **RUNS["paper"], chains=4, cuda_graphs=False)
    torch.testing.assert_close(found.latents, plain.latents, rtol=0, atol=1e-9)


def test_memory_that_is_gone_for_something_else_is_told(
    tape: Tape, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(function: Callable[[], Any]) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(problem, "recorder", lambda _: fails)
    notes = run(network(), **RUNS["paper"]).notes
    assert any("a move could not be recorded (CUDA out of memory" in note for note in notes)


def test_what_a_recording_reads_stays_where_it_is() -> None:
    """A graph refers to memory by its address, so calls of other shapes must not free it."""
    seen: list[Tensor] = []

    def indexed(rows: Tensor, spec: Any, index: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(index)  # kept, so that its memory is not reused
        return torch.zeros(len(rows), dtype=torch.float64), torch.zeros_like(rows)

    net = network()
    net.energy_and_grad = indexed
    bound = observe(Mask([1, 1, 0, 1, 0]), observed(), net(torch.zeros(1, 4)), noise_std=0.3)
    potential = GeneratorPotential(net, bound, dispatch.resolve("reference", torch.device("cpu")))
    for chains in (4, 6, 4):
        potential.energy_and_grad(torch.zeros(2, chains, 4))
    assert [index.tolist() for index in seen[:2]] == [[0] * 4 + [1] * 4, [0] * 6 + [1] * 6]
    assert seen[2].data_ptr() == seen[0].data_ptr()


def measured(
    monkeypatch: pytest.MonkeyPatch, peak: Callable[[int], int], free: int, times: int = 1
) -> Callable[[Callable[[int], object]], int | None]:
    """`memory.rows_that_fit` on a device whose calls take ``peak(rows)`` bytes."""

    def called(work: Callable[[int], object], rows: int, device: torch.device) -> int:
        work(rows)
        return peak(rows)

    monkeypatch.setattr(memory, "peak_bytes", called)
    monkeypatch.setattr(memory, "free_bytes", lambda _: free)
    return lambda work: memory.rows_that_fit(work, torch.device("cuda"), times)


@pytest.mark.parametrize(
    ("fixed", "each", "free", "times", "most"),
    [
        (0, 10, 1000, 1, 80),
        (100, 10, 1000, 1, 70),
        (100, 10, 1000, 2, 30),
        (0, 10, 9, 1, 1),
        (5000, 10, 1000, 1, 1),
        (7, 0, 1000, 1, None),
    ],
    ids=[
        "rows",
        "and-a-fixed-part",
        "twice",
        "one-at-least",
        "not-even-the-fixed-part",
        "not-measurable",
    ],
)
def test_rows_that_fit(
    fixed: int, each: int, free: int, times: int, most: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    find = measured(monkeypatch, lambda n: fixed + n * each, free, times)
    assert find(rows.append) == most
    assert rows == [8, 2, 8]


def test_rows_that_fit_where_even_a_few_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(rows: int) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    def broken(rows: int) -> None:
        raise RuntimeError("something else")

    find = measured(monkeypatch, lambda n: n, 100)
    assert find(work) == 1
    with pytest.raises(RuntimeError, match="something else"):
        find(broken)


def test_memory_is_measured_on_cuda_alone() -> None:
    def work(rows: int) -> None:
        raise AssertionError("called")

    assert memory.rows_that_fit(work, torch.device("cpu")) is None


@pytest.mark.skipif(INTERPRETED, reason="the ops are the same ones")
def test_calls_are_as_large_as_measured_memory_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def fit(work: Callable[[int], object], device: torch.device, times: int) -> int:
        work(6)
        asked.append(times)
        return 5

    monkeypatch.setattr("cogen_fast.problem.density.rows_that_fit", fit)
    seen: list[int] = []
    G = network()
    G.register_forward_hook(lambda module, args, x: seen.append(len(args[0])))
    found = run(G, **RUNS["paper"], chains=4)
    assert (
        "one call to G takes at most 5 latents, as many as fit into measured memory" in found.notes
    )
    assert asked == [2]  # a recording keeps the memory of a call, beside which others go on
    assert set(seen[seen.index(6) + 1 :]) == {5, 3}
    seen.clear()
    found = run(G, **RUNS["paper"], chains=4, max_batch=7)  # a max_batch that is given is used
    assert asked == [2]
    assert not any("measured" in note for note in found.notes)
    assert {7, 1} <= set(seen)
    split = run(G, **RUNS["paper"], chains=4, energy_dtype="float64", cuda_graphs=False)
    assert asked == [2, 1, 1]
    assert (
        "one call to G takes at most 5 latents, as many as fit into measured memory" in split.notes
    )


# --- on a GPU -----------------------------------------------------------------------------------

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
ON_CUDA: dict[str, Callable[[], Any]] = {
    "network": lambda: network().double(),
    "images": lambda: seeded(16, latent_size=6, feature_maps=[8, 6, 4]),
    "fading": lambda: seeded(8, latent_size=6, feature_maps=[6, 4], alpha=0.3),
}


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("make", ON_CUDA.values(), ids=ON_CUDA)
def test_replays_on_a_gpu_make_the_same_run(make: Callable[[], Any], name: str) -> None:
    G = make().cuda()
    shape = tuple(G(torch.zeros(1, 4 if name == "network" else 6).cuda()).shape[1:])
    how = {"x_obs": torch.zeros(2, *shape), "mask": torch.ones(shape), "backend": "triton"}
    found = run(G, **RUNS[name], **how)
    assert any(note.startswith(REPLAYED) for note in found.notes)
    assert any("as many as fit into measured memory" in note for note in found.notes)
    plain = run(G, **RUNS[name], **how, cuda_graphs=False)
    torch.testing.assert_close(found.latents, plain.latents, rtol=0, atol=1e-6)


@pytest.mark.gpu
@needs_cuda
def test_a_generator_that_waits_on_a_gpu_is_noticed_and_harms_no_later_run() -> None:
    how: dict[str, Any] = {**RUNS["paper"], "backend": "triton"}
    found = run(Waiting(LOOKS["a-number"][0]).cuda(), **how)
    assert any("waits for the device" in note for note in found.notes)
    found = run(network().cuda(), **how)
    assert any(note.startswith(REPLAYED) for note in found.notes)
