"""Bad arguments to the fast ops raise, naming the argument, what was expected and what came."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
import torch
from implementations import FAST, implementation

from cogen_fast.ops import native
from cogen_fast.ops.philox import NoiseStream, Purpose
from cogen_fast.ops.reference import Proposal
from cogen_fast.ops.spec import AdaptationRule, MisfitKind, MisfitSpec, TransitionSettings

B, N, D = 2, 3, 5
F64 = torch.float64


def _state() -> dict[str, Any]:
    """Valid arguments of `accept_select`, by name."""
    ones = torch.ones(B, dtype=F64)
    return {
        "latents": torch.zeros(B, N, D),
        "energy": torch.zeros(B, N, dtype=F64),
        "grad": torch.zeros(B, N, D),
        "proposal": Proposal(
            torch.zeros(B, N, D), torch.zeros(B, N, D), torch.zeros(B, N, dtype=F64)
        ),
        "proposed_energy": torch.zeros(B, N, dtype=F64),
        "proposed_grad": torch.zeros(B, N, D),
        "settings": TransitionSettings(ones, ones, ones, torch.ones(B, D), torch.ones(B) > 0),
        "stream": NoiseStream(0, torch.zeros(B, dtype=torch.int64), torch.arange(B)),
    }


def _replaced(arguments: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """The arguments with the one at ``path`` ("settings.beta") replaced."""
    name, _, part = path.partition(".")
    if not part:
        return {**arguments, name: value}
    whole = arguments[name]
    if isinstance(whole, Proposal):
        return {**arguments, name: whole._replace(**{part: value})}
    return {**arguments, name: dataclasses.replace(whole, **{part: value})}


def _message(name: str, expected: str, got: str) -> str:
    return rf"^{re.escape(name)}: expected {re.escape(expected)}.*got .*{re.escape(got)}"


def test_the_valid_arguments_pass(fast: Any) -> None:
    assert fast.accept_select(**_state()).accepted.shape == (B, N)


@pytest.mark.parametrize(
    "path",
    [
        "energy",
        "grad",
        "proposal.position",
        "proposal.momentum",
        "proposal.hamiltonian",
        "proposed_energy",
        "proposed_grad",
        "settings.beta",
        "settings.prior_weight",
        "settings.step_size",
        "settings.inverse_mass",
        "settings.active",
        "stream.transition",
        "stream.observation",
    ],
)
def test_wrong_shape_dtype_device_or_kind(fast: Any, path: str) -> None:
    arguments = _state()
    name, _, part = path.partition(".")
    good = getattr(arguments[name], part) if part else arguments[name]
    long = torch.zeros(7, *good.shape[1:], dtype=good.dtype)
    with pytest.raises(ValueError, match=_message(path, "shape", str(tuple(long.shape)))):
        fast.accept_select(**_replaced(arguments, path, long))
    half = good.to(torch.float16)
    with pytest.raises(TypeError, match=_message(path, "dtype", "torch.float16")):
        fast.accept_select(**_replaced(arguments, path, half))
    away = good.to("meta")
    with pytest.raises(ValueError, match=_message(path, "a tensor on", "meta")):
        fast.accept_select(**_replaced(arguments, path, away))
    array = good.numpy()
    with pytest.raises(TypeError, match=_message(path, "a torch.Tensor", "ndarray")):
        fast.accept_select(**_replaced(arguments, path, array))


@pytest.mark.parametrize("shape", [(B, N), (B, N, 0), (B, N, D, 1)])
def test_latents_have_three_dimensions(fast: Any, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=_message("latents", "shape (B, N, d)", str(shape))):
        fast.accept_select(**_replaced(_state(), "latents", torch.zeros(shape)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64])
def test_latents_are_float32_or_float64(fast: Any, dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=_message("latents", "dtype torch.float32", str(dtype))):
        fast.accept_select(**_replaced(_state(), "latents", torch.zeros(B, N, D, dtype=dtype)))
    with pytest.raises(TypeError, match=_message("dtype", "dtype torch.float32", str(dtype))):
        fast.initial_latents(_state()["stream"], N, D, dtype)


@pytest.mark.parametrize("seed", [-1, 1 << 64])
def test_seed_fits_in_64_bits(fast: Any, seed: int) -> None:
    with pytest.raises(ValueError, match=_message("stream.seed", "an integer in", str(seed))):
        fast.accept_select(**_replaced(_state(), "stream.seed", seed))


@pytest.mark.parametrize("name", ["transition", "observation"])
@pytest.mark.parametrize("value", [-1, 1 << 32])
def test_native_counters_fit_in_32_bits(name: str, value: int) -> None:
    words = torch.tensor([0, value])
    with pytest.raises(ValueError, match=rf"^{name}: expected values in \[0, 2\^32\)"):
        native.accept_select(**_replaced(_state(), f"stream.{name}", words))


@pytest.mark.parametrize("chains, size", [(-1, 2), (3, 0)])
def test_initial_latents_sizes(fast: Any, chains: int, size: int) -> None:
    with pytest.raises(ValueError, match=rf"^chains, size: expected .*got {chains} and {size}"):
        fast.initial_latents(_state()["stream"], chains, size, torch.float32)


def test_too_many_dimensions_for_the_counter(fast: Any) -> None:
    with pytest.raises(ValueError, match="size: expected between 1 and 2\\^26"):
        fast.initial_latents(_state()["stream"], 0, (1 << 26) + 1, torch.float32)


@pytest.mark.parametrize("name", ["position", "momentum"])
def test_what_changes_in_place_must_be_contiguous(fast: Any, name: str) -> None:
    arguments = _state()
    strided = torch.zeros(B, D, N).transpose(1, 2)
    proposal = arguments["proposal"]._replace(**{name: strided})
    with pytest.raises(
        ValueError, match=_message(f"proposal.{name}", "a contiguous", "(15, 1, 3)")
    ):
        fast.continue_trajectory(proposal, arguments["grad"], arguments["settings"])


def test_no_observations_and_no_chains(fast: Any) -> None:
    none = torch.zeros(0, dtype=torch.int64)
    assert fast.initial_latents(NoiseStream(0, none, none), N, D, torch.float32).shape == (
        0,
        N,
        D,
    )
    latents = fast.initial_latents(_state()["stream"], 0, D, torch.float32)
    assert latents.shape == (B, 0, D)


def test_adaptation_arguments(fast: Any) -> None:
    each, table = torch.ones(B, dtype=F64), torch.ones(B, N, dtype=F64)
    rule = AdaptationRule()
    with pytest.raises(
        ValueError, match=_message("acceptance_probability", "shape (B, N)", "(2,)")
    ):
        fast.adapt_step_size(each, each, each, None, rule)
    with pytest.raises(ValueError, match=r"^acceptance_probability: .* N > 0, got \(2, 0\)"):
        fast.adapt_step_size(each, each, table[:, :0], None, rule)
    with pytest.raises(TypeError, match=_message("step_size", "dtype torch.float64", "float32")):
        fast.adapt_step_size(each.float(), each, table, None, rule)
    with pytest.raises(ValueError, match=_message("running_acceptance", "shape (2,)", "(3,)")):
        fast.adapt_step_size(each, torch.ones(3, dtype=F64), table, None, rule)
    with pytest.raises(TypeError, match=_message("active", "dtype torch.bool", "float64")):
        fast.adapt_step_size(each, each, table, each, rule)
    with pytest.raises(ValueError, match=_message("step_size", "shape (2,)", str((B, N)))):
        fast.adapt_step_size(table, table, table, None, rule)
    with pytest.raises(ValueError, match=_message("step_size", f"shape {(B, N)}", "(2,)")):
        fast.adapt_step_size(each, each, table, None, AdaptationRule(per_chain=True))


def test_step_sizes_are_one_or_all_of_an_observation(fast: Any) -> None:
    for shape in ((B, N + 1), (B, 1), (N, B)):
        wrong = _replaced(_state(), "settings.step_size", torch.full(shape, 0.1, dtype=F64))
        with pytest.raises(ValueError, match=_message("settings.step_size", "", str(shape))):
            fast.accept_select(**wrong)


SPEC = MisfitSpec(
    "pool", (3, 4, 6), 2, torch.zeros(B, 18), torch.ones(1, 18, dtype=torch.uint8), torch.ones(1, 1)
)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"kind": "median"}, "spec.kind: expected one of mask, pool, stride, got median"),
        ({"factor": 0}, "spec.factor: expected at least 1, got 0"),
        ({"factor": 4}, "spec.factor: expected a divisor of 4 and 6, got 4"),
        ({"output_shape": (72,)}, r"spec.output_shape: expected \(C, H, W\), got \(72,\)"),
        ({"target": torch.zeros(B, 17)}, r"spec.target: expected shape \(2, 18\), got \(2, 17\)"),
        ({"target": torch.zeros(B, 18, dtype=F64)}, "spec.target: expected dtype torch.float32"),
        (
            {"mask": torch.ones(3, 18, dtype=torch.uint8)},
            r"spec.mask: expected shape \(1 or 2, 18\)",
        ),
        ({"mask": torch.ones(1, 18)}, "spec.mask: expected dtype torch.uint8, got torch.float32"),
        ({"mask": torch.ones(18, dtype=torch.uint8)}, r"spec.mask: .* got \(18,\)"),
        ({"weight": torch.ones(1, 2)}, r"spec.weight: expected shape \(1 or 2, 1 or 18\)"),
        ({"weight": torch.ones(1, 1, dtype=F64)}, "spec.weight: expected dtype torch.float32"),
    ],
)
def test_misfit_specs(fast: Any, changes: dict[str, Any], message: str) -> None:
    spec = dataclasses.replace(SPEC, **changes)
    with pytest.raises((ValueError, TypeError), match="^" + message):
        fast.misfit(torch.zeros(2, *spec.output_shape), spec, torch.zeros(2, dtype=torch.int64))


def test_misfit_outputs_and_observations(fast: Any) -> None:
    index = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match=_message("x", "shape (2, 3, 4, 6)", "(2, 3, 6, 4)")):
        fast.misfit(torch.zeros(2, 3, 6, 4), SPEC, index)
    with pytest.raises(TypeError, match=_message("x", "dtype torch.float32 or", "float16")):
        fast.misfit(torch.zeros(2, 3, 4, 6, dtype=torch.float16), SPEC, index)
    with pytest.raises(ValueError, match=_message("observation", "shape (2,)", "(3,)")):
        fast.misfit(torch.zeros(2, 3, 4, 6), SPEC, torch.zeros(3, dtype=torch.int64))


def test_native_misfit_refuses_an_unknown_observation() -> None:
    index = torch.zeros(2, dtype=torch.int64)
    for outside in (-1, B):
        with pytest.raises(ValueError, match=r"^observation: expected values in \[0, B\)"):
            native.misfit(torch.zeros(2, 3, 4, 6), SPEC, index + outside)


@pytest.mark.skipif("triton" not in FAST, reason="needs Triton's interpreter or a CUDA device")
def test_triton_misfit_of_an_unknown_observation_is_nan() -> None:
    x, index = torch.ones(3, 3, 4, 6), torch.tensor([-1, 1, B])
    kinds: tuple[MisfitKind, ...] = ("mask", "stride", "pool")
    for kind in kinds:
        target = torch.zeros(B, 72 if kind == "mask" else 18)
        spec = MisfitSpec(kind, (3, 4, 6), 2, target, None, torch.ones(1, 1))
        with implementation("triton") as ops:
            energy, _ = ops.misfit(x, spec, index)
        assert energy.isnan().tolist() == [True, False, True]


def test_other_instruction_sets_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="isa: abacus was not built"):
        native.extension().set_isa("abacus")


def test_a_failed_load_is_remembered_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "loaded", None)
    monkeypatch.setattr(native, "load_error", ImportError("libmissing.so: cannot open"))
    for _ in range(2):
        with pytest.raises(ImportError, match=r"cogen_fast\.ops\._native.*libmissing\.so"):
            native.extension()


# --- what the adaptive loop asks for between moves ------------------------------------------------

TABLE, EACH = torch.zeros(B, N, dtype=F64), torch.full((B,), 0.5, dtype=F64)
BETWEEN_MOVES: dict[str, dict[str, Any]] = {
    "systematic_ancestors": {"log_weights": TABLE, "uniform": EACH, "wanted": EACH > 0},
    "observation_uniforms": {"stream": _state()["stream"], "purpose": Purpose.RESAMPLE},
}
PATHS = [("systematic_ancestors", name) for name in BETWEEN_MOVES["systematic_ancestors"]] + [
    ("observation_uniforms", f"stream.{part}") for part in ("transition", "observation")
]


@pytest.mark.parametrize("op", BETWEEN_MOVES)
def test_the_valid_arguments_between_moves_pass(fast: Any, op: str) -> None:
    assert getattr(fast, op)(**BETWEEN_MOVES[op]).shape[0] == B


@pytest.mark.parametrize(("op", "path"), PATHS, ids=[f"{o}-{p}" for o, p in PATHS])
def test_wrong_arguments_between_moves(fast: Any, op: str, path: str) -> None:
    function, arguments = getattr(fast, op), BETWEEN_MOVES[op]
    name, _, part = path.partition(".")
    good = getattr(arguments[name], part) if part else arguments[name]

    def call(value: Any) -> None:
        function(**_replaced(arguments, path, value))

    # The first argument determines the sizes, so that with a longer one the next argument is at
    # fault.
    next_ones = {"log_weights": "uniform", "stream.transition": "stream.observation"}
    blamed = next_ones.get(path, path)
    with pytest.raises(ValueError, match=_message(blamed, "shape", "")):
        call(torch.zeros(7, *good.shape[1:], dtype=good.dtype))
    with pytest.raises(TypeError, match=_message(path, "dtype", "torch.float16")):
        call(good.to(torch.float16))
    with pytest.raises(ValueError, match=_message(path, "a tensor on", "meta")):
        call(good.to("meta"))


@pytest.mark.parametrize("shape", [(), (B,), (B, 0), (B, N, 1)], ids=str)
def test_populations_have_two_dimensions(fast: Any, shape: tuple[int, ...]) -> None:
    good, table = BETWEEN_MOVES["systematic_ancestors"], torch.zeros(shape, dtype=F64)
    expected = _message("log_weights", "shape (B, N) with N > 0", str(shape))
    with pytest.raises(ValueError, match=expected):
        fast.systematic_ancestors(**_replaced(good, "log_weights", table))


def test_seeds_of_observation_uniforms(fast: Any) -> None:
    for seed in (-1, 1 << 64):
        wrong = dataclasses.replace(_state()["stream"], seed=seed)
        with pytest.raises(ValueError, match=_message("stream.seed", "an integer in", str(seed))):
            fast.observation_uniforms(wrong, Purpose.JITTER)


def test_native_refuses_counters_of_more_than_32_bits_for_observation_uniforms() -> None:
    for name in ("transition", "observation"):
        for value in (-1, 1 << 32):
            words = torch.tensor([0, value])
            wrong = dataclasses.replace(_state()["stream"], **{name: words})
            with pytest.raises(ValueError, match=rf"^{name}: expected values in \[0, 2\^32\)"):
                native.observation_uniforms(wrong, Purpose.JITTER)


def test_no_observations_between_moves(fast: Any) -> None:
    table, each = TABLE[:0], EACH[:0]
    assert fast.systematic_ancestors(table, each, None).shape == (0, N)
    none = torch.zeros(0, dtype=torch.int64)
    stream = NoiseStream(0, none, none)
    assert fast.observation_uniforms(stream, Purpose.RESAMPLE).shape == (0,)
