"""Progressive GANs on a GPU: ``python benchmarks/progressive_gpu.py``.

Each piece of work is a line of the log (``--out``). Pieces that the log has of the same device and
sources are not made again, and no piece is started after ``--seconds``, so that a command ends in
time; the same command, run again, continues. The pieces are

    ceiling      rate of a large matrix product in each type
    bandwidth    rate of a large copy, bytes read and bytes written
    speed        z-gradients per second and memory of a chain, of a masked squared error, by
                 the fast path in each type and folding, by the module (TF32 on, as torch's users
                 have it) and by `torch.compile` of it in bfloat16
    moves        whole moves of the sampler, replayed as CUDA graphs and not, beside their gradients
                 launched one by one: the sampler's own share of the time
    acceptance   the same problem sampled with gradients of each type: acceptance, step, gradients

The gradient of every method is compared with the module's in float32 before it is timed. Weights
are random, except for acceptance on the generator that comes with the package.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from log import Log
from machine import machine
from progressive_speed import Gradient, Task, task
from torch import Tensor

from cogen_fast import Compute, cogenerate
from cogen_fast.generators import ProgressiveGenerator, pretrained
from cogen_fast.ops import dispatch
from cogen_fast.problem.density import gradients
from cogen_fast.problem.problem import prepared
from cogen_fast.sampler import ais

RESULTS = Path(__file__).resolve().parent / "results" / "progressive_gpu.jsonl"
CASES = [
    *((64, batch, base) for base in (8192, 2048) for batch in (1, 16, 128, 512)),
    *((128, batch, base) for base in (8192, 2048) for batch in (1, 16, 64, 256)),
    *((256, batch, 8192) for batch in (1, 4, 16, 64)),
    *((1024, batch, 8192) for batch in (1, 4, 16)),
]
# Compiling takes about a minute for each.
COMPILED = (
    (64, 128, 8192),
    (128, 64, 8192),
    (128, 64, 2048),
    (256, 16, 8192),
    (1024, 4, 8192),
)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CEILINGS = {"float32": 4096, "tf32": 8192, "bfloat16": 8192, "float16": 8192}
CHECKED = 2  # latents of a batch whose gradients are compared with the module's
BOUNDS = {"float32": 0.01, "tf32": 0.2, "bfloat16": 0.5, "float16": 0.2}
MOVED = (
    (64, 16, 8192),
    (64, 128, 8192),
    (128, 1, 8192),
    (128, 64, 8192),
    (128, 64, 2048),
    (256, 16, 8192),
    (1024, 3, 8192),
)
LEAPFROG_STEPS = 8
COPIED = 1 << 30  # bytes
SECONDS = 0.5  # a method is timed at least so long, and at least three times

Run = Callable[[Task], Gradient]


def tf32_allowed(allowed: bool) -> None:
    """For products and convolutions."""
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def fast(dtype: str, folding: str) -> Run:
    """The fast path."""

    def make(t: Task) -> Gradient:
        path = t.generator.fast_path(DTYPES[dtype], folding)
        return lambda z: path.energy_and_grad(z, t.spec, t.index[: len(z)])

    return make


def by_autograd(t: Task, generator: Callable[[Tensor], Tensor], dtype: str) -> Gradient:
    """A module's gradient as most people write it."""
    ops = dispatch.resolve("auto", t.z.device)
    half = dtype in ("bfloat16", "float16")

    def gradient(z: Tensor) -> tuple[Tensor, Tensor]:
        z = z.detach().requires_grad_()
        with torch.autocast(z.device.type, DTYPES.get(dtype), enabled=half):
            image = generator(z)
        image = image.float()
        energy, by_image = ops.misfit(image.detach(), t.spec, t.index[: len(z)])
        return energy, torch.autograd.grad(image, z, by_image)[0]

    return gradient


def eager(dtype: str) -> Run:
    """The module."""
    return lambda t: by_autograd(t, t.generator, dtype)


def compiled(dtype: str) -> Run:
    """The module, compiled for each shape."""
    return lambda t: by_autograd(t, torch.compile(t.generator, dynamic=False), dtype)


METHODS: dict[str, tuple[str, Run]] = {
    "fast float32": ("float32", fast("float32", "transposed")),
    "fast bfloat16": ("bfloat16", fast("bfloat16", "transposed")),
    "fast float16": ("float16", fast("float16", "transposed")),
    "fast float32 phases": ("float32", fast("float32", "phases")),
    "fast bfloat16 phases": ("bfloat16", fast("bfloat16", "phases")),
    "fast float16 phases": ("float16", fast("float16", "phases")),
    "fast float32 mixed": ("float32", fast("float32", "mixed")),
    "fast bfloat16 mixed": ("bfloat16", fast("bfloat16", "mixed")),
    "fast float16 mixed": ("float16", fast("float16", "mixed")),
    "eager tf32": ("tf32", eager("tf32")),
    "eager bfloat16": ("bfloat16", eager("bfloat16")),
    "compile bfloat16": ("bfloat16", compiled("bfloat16")),
}


def on_device(t: Task, device: str) -> Task:
    """The task's tensors and weights there."""
    assert t.spec.mask is not None
    spec = replace(
        t.spec,
        target=t.spec.target.to(device),
        mask=t.spec.mask.to(device),
        weight=t.spec.weight.to(device),
    )
    return Task(t.generator.to(device), spec, t.index.to(device), t.z.to(device))


def finish(device: str) -> None:
    """Wait for what was launched."""
    if device != "cpu":
        torch.cuda.synchronize()


def median_seconds(call: Callable[[], Any], device: str) -> float:
    """The median seconds of a call, after three calls to warm up."""
    for _ in range(3):
        call()
    finish(device)
    times: list[float] = []
    while len(times) < 3 or sum(times) < SECONDS:
        start = time.perf_counter()
        call()
        finish(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def peak_bytes(call: Callable[[], Any], device: str) -> int:
    """Memory that a call takes beside what is there already; 0 on a CPU, where nobody counts."""
    if device == "cpu":
        return 0
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    return torch.cuda.max_memory_allocated() - before


def ceiling(dtype: str, device: str, size: int | None = None) -> dict[str, Any]:
    """Multiply-adds per second of a square matrix product."""
    size = size or CEILINGS[dtype]
    tf32_allowed(dtype == "tf32")
    a, b = torch.randn(2, size, size, device=device, dtype=DTYPES.get(dtype, torch.float32))
    seconds = median_seconds(lambda: a @ b, device)
    return {"size": size, "multiply_adds_per_second": size**3 / seconds}


def bandwidth(device: str, size: int = COPIED) -> dict[str, Any]:
    """Bytes per second of a copy within the device's memory."""
    there, here = torch.zeros(2, size, dtype=torch.uint8, device=device)
    seconds = median_seconds(lambda: there.copy_(here), device)
    return {"size": size, "bytes_per_second": 2 * size / seconds}


def bytes_moved(t: Task, itemsize: int) -> int:
    """Activations and gradients that the fast path reads and writes, all of a batch.

    Counted: each operation reads its inputs and writes its output once. Forward a convolution, then
    bias, activation and norm in one pass; the misfit takes the last activation and leaves its
    gradient; back a convolution, then the pass before it. Weights, and one number per pixel, are
    left out.
    """
    side, before, found = 4, 0, 0
    for i, (weight, _) in enumerate(t.generator.network().convolutions):
        outputs, inputs = weight.shape[:2]
        before = inputs * side**2
        side *= 2 if i % 2 else 1
        after = outputs * side**2
        found += (before + after) + 2 * after + (after + before) + 3 * before
    return (found + 2 * after) * itemsize * len(t.z)


def speed(case: tuple[int, int, int], method: str, device: str) -> dict[str, Any]:
    """One method's figures in one case, or that memory is too small for it."""
    dtype, run = METHODS[method]
    t = on_device(task(*case), device)
    tf32_allowed(False)
    few = t.z[:CHECKED]
    _, expected = by_autograd(t, t.generator, "float32")(few)
    tf32_allowed(dtype == "tf32")
    try:
        gradient = run(t)
        _, found = gradient(few)
        error = float((found - expected).norm() / expected.norm())
        assert error < BOUNDS[dtype], f"{method}: another gradient, by {error:.1g} of its length"
        call = partial(gradient, t.z)
        call()
        bytes_of_chain = peak_bytes(call, device) / len(t.z)
        seconds = median_seconds(call, device)
    except torch.OutOfMemoryError:
        return {"out_of_memory": True}
    return {
        "dtype": dtype,
        "gradient_error": error,
        "seconds": seconds,
        "z_gradients_per_second": len(t.z) / seconds,
        "bytes_per_chain": bytes_of_chain,
        # Forward, and back with respect to the input, as the module counts them.
        "multiply_adds": 2 * len(t.z) * t.generator.multiply_adds(),
        # Only known for the fast path.
        "bytes_moved": bytes_moved(t, DTYPES[dtype].itemsize) if "fast" in method else None,
    }


def moves(case: tuple[int, int, int], dtype: str, replayed: bool, device: str) -> dict[str, Any]:
    """Seconds of a temperature of one transition, and of its gradients launched one by one."""
    t = on_device(task(*case), device)
    how = Compute(cuda_graphs=replayed, gradient_dtype=dtype)
    shape = t.generator.output_shape
    x, mask = torch.zeros(1, *shape), t.spec.mask.reshape(shape)
    with prepared(t.generator, x, mask, noise_std=1.0, compute=how, records=True) as problem:
        rule = ais.Moves(leapfrog_steps=LEAPFROG_STEPS)
        state = ais.init(problem.target, rule, chains=len(t.z), **problem.how())
        field, latents = problem.target, state.hmc.latents

        def move() -> None:
            nonlocal state
            state, _ = ais.step(state, field, 0.01, rule, backend=problem.backend)

        def by_gradients() -> None:
            for _ in range(LEAPFROG_STEPS - 1):
                gradients(field, latents)
            field.energy_and_grad(latents)

        alone = median_seconds(by_gradients, device)
        for _ in range(3):
            move()
        seconds = median_seconds(move, device)
        note = "" if problem.graphs is None else problem.graphs.note
    return {
        "seconds": seconds,
        "seconds_of_gradients": alone,
        "z_gradients_per_second": len(t.z) * LEAPFROG_STEPS / seconds,
        "note": note,
    }


PROBLEMS: dict[str, tuple[Callable[[], ProgressiveGenerator], float, dict[str, Any]]] = {
    "fashion-32, noise 0.3": (lambda: pretrained("fashion-32"), 0.3, {"chains": 16}),
    "fashion-32, noise 0.1": (lambda: pretrained("fashion-32"), 0.1, {"chains": 16}),
    "128 px, noise 0.5": (
        lambda: task(128, 1, 2048).generator,
        0.5,
        {"chains": 16, "budget": 400},
    ),
}


def acceptance(problem: str, dtype: str, device: str, **options: Any) -> dict[str, Any]:
    """The adaptive method's run on an image of the generator's own, its middle hidden."""
    make, noise, usual = PROBLEMS[problem]
    generator = make().to(device)
    z = torch.randn(1, generator.latent_size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        x = generator(z.to(device))
    side = generator.resolution
    mask = torch.ones(side, side)
    mask[side // 4 : -side // 4, side // 4 : -side // 4] = 0
    start = time.perf_counter()
    result = cogenerate(
        generator,
        x,
        mask,
        noise_std=noise,
        compute=Compute(gradient_dtype=dtype),
        progress=False,
        **usual | options,
    )
    late = result.betas[:, 0] >= 1.0
    last = late if bool(late.any()) else torch.ones_like(late)
    return {
        "seconds": time.perf_counter() - start,
        "acceptance": float(result.acceptance[last].mean()),
        "step_size": float(result.step_size[last].mean()),
        "leapfrog_steps": float(result.leapfrog_steps[last].double().mean()),
        "gradients": result.gradients,
        "forwards": result.forwards,
        "energy": float(result.energies.mean()),
        "notes": result.notes,
    }


def pieces(device: str) -> list[tuple[dict[str, Any], Callable[[], dict[str, Any]]]]:
    """Everything there is to do: what it is called in the log, and how to do it."""
    found: list[tuple[dict[str, Any], Callable[[], dict[str, Any]]]] = [
        ({"piece": "ceiling", "dtype": dtype}, partial(ceiling, dtype, device))
        for dtype in CEILINGS
    ]
    found.append(({"piece": "bandwidth"}, partial(bandwidth, device)))
    found += [
        (
            {"piece": "speed", "case": list(case), "method": method},
            partial(speed, case, method, device),
        )
        for case in CASES
        for method in METHODS
        if case in COMPILED or not method.startswith("compile")
    ]
    found += [
        (
            {"piece": "moves", "case": list(case), "gradient_dtype": dtype, "replayed": replayed},
            partial(moves, case, dtype, replayed, device),
        )
        for case in MOVED
        for dtype in ("float32", "float16")
        for replayed in (True, False)
    ]
    found += [
        (
            {"piece": "acceptance", "problem": problem, "gradient_dtype": dtype},
            partial(acceptance, problem, dtype, device),
        )
        for problem in PROBLEMS
        for dtype in DTYPES
    ]
    return found


def table(lines: list[dict[str, Any]]) -> str:
    """Z-gradients per second, shares of the measured ceilings, and MiB of a chain.

    Of the peak of products in that type, and of the bandwidth of a copy. The first counts the
    module's own multiply-adds, of which the fast path makes about half. A sampler's own share is
    negative where replays save more than the sampler takes.
    """
    rates = {
        line["dtype"]: line["multiply_adds_per_second"]
        for line in lines
        if line["piece"] == "ceiling"
    }
    rates["copy"] = next((x["bytes_per_second"] for x in lines if x["piece"] == "bandwidth"), 0.0)
    head = f"{'1/s':>10}{'of peak':>9}{'of copy':>9}{'MiB':>9}{'error':>9}"
    rows = [f"{'case':<18}{'method':<24}{head}"]
    for line in lines:
        if line["piece"] == "speed":
            resolution, batch, base = line["case"]
            rows.append(f"{f'{resolution}px x{batch} {base}':<18}" + _speed_cells(line, rates))
    rows.append(f"{'case':<18}{'moves, gradients in':<24}{'1/s':>10}{'own share':>11}")
    rows += [_moves_row(line) for line in lines if line["piece"] == "moves"]
    rows.append(
        f"{'problem':<24}{'type':<10}{'accept':>8}{'step':>8}{'gradients':>10}{'energy':>9}"
    )
    for line in lines:
        if line["piece"] == "acceptance":
            rows.append(
                f"{line['problem']:<24}{line['gradient_dtype']:<10}{line['acceptance']:>8.2f}"
                f"{line['step_size']:>8.3f}{line['gradients']:>10}{line['energy']:>9.1f}"
            )
    return "\n".join(rows)


def _moves_row(line: dict[str, Any]) -> str:
    resolution, batch, base = line["case"]
    share = 1.0 - line["seconds_of_gradients"] / line["seconds"]
    how = f"{line['gradient_dtype']}{', replayed' if line['replayed'] else ''}"
    return (
        f"{f'{resolution}px x{batch} {base}':<18}{how:<24}{line['z_gradients_per_second']:>10.1f}"
        f"{100 * share:>9.1f} %"
    )


def _speed_cells(line: dict[str, Any], rates: dict[str, float]) -> str:
    if line.get("out_of_memory"):
        return f"{line['method']:<24}{'out of memory':>46}"
    share = line["multiply_adds"] / line["seconds"] / rates[line["dtype"]]
    copied = ""
    if line["bytes_moved"] is not None and rates["copy"] > 0.0:
        copied = f"{100 * line['bytes_moved'] / line['seconds'] / rates['copy']:.1f} %"
    return (
        f"{line['method']:<24}{line['z_gradients_per_second']:>10.1f}{100 * share:>7.1f} %"
        f"{copied:>9}{line['bytes_per_chain'] / 2**20:>9.1f}{line['gradient_error']:>9.1g}"
    )


def main() -> None:
    """Make the pieces that the log does not have yet, for a while, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--seconds", type=float, default=420.0)
    options = parser.parse_args()
    start, log = time.monotonic(), Log(options.out)
    known = machine("benchmarks/progressive_gpu.py")
    failed = 0
    for key, work in pieces("cuda"):
        if next(log.find(**key, **known), None) is not None:
            continue
        if time.monotonic() - start > options.seconds:
            print("more is left to do: run the same command again")
            break
        try:
            log.add(**key, **known, **work())
        except Exception as error:  # a failed piece must not prevent the others
            failed += 1
            print(f"{key} failed: {type(error).__name__}: {error}", flush=True)
            continue
        finally:
            torch.cuda.empty_cache()
        print(log.lines[-1], flush=True)
    print(table(list(log.find(**known))))
    if failed:
        raise SystemExit(f"{failed} pieces failed")


if __name__ == "__main__":
    main()
