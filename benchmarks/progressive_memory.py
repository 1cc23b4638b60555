"""Memory of a z-gradient on the CPU: ``python benchmarks/progressive_memory.py``.

For progressive GANs with random weights: the peak resident memory during one energy and z-gradient,
minus the memory before it (weights, and the fast path's copy of them), divided by the number of
chains. The module with `autograd.grad` and the fast path are measured, each in a process of its
own, on one thread. It needs Linux with glibc.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from pathlib import Path

import torch
from progressive_speed import by_autograd, ours, task
from resident import rise

RESULTS = Path(__file__).resolve().parent / "results" / "progressive_memory.json"
METHODS = {"ours": ours, "eager": lambda each: by_autograd(each, each.generator)}
CASES = [
    (128, 4, 8192, ("ours", "eager")),
    (128, 4, 2048, ("ours", "eager")),
    (1024, 3, 8192, ("ours",)),
]
_MIB = 2.0**20


def peak(method: str, resolution: int, batch: int, fmap_base: int) -> float:
    """Bytes above those before the call."""
    torch.set_num_threads(1)
    found = task(resolution, batch, fmap_base)
    gradient = METHODS[method](found)
    return rise(lambda: gradient(found.z))


def main() -> None:
    """Measure, print the table and keep it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--most-pixels", type=int, default=1024, help="leave larger images out")
    options = parser.parse_args()
    lines = []
    context = multiprocessing.get_context("spawn")
    for resolution, batch, fmap_base, methods in CASES:
        if resolution > options.most_pixels:
            continue
        for method in methods:
            with context.Pool(1) as pool:
                most = pool.apply(peak, (method, resolution, batch, fmap_base))
            case = {"resolution": resolution, "chains": batch, "fmap_base": fmap_base}
            lines.append(case | {"method": method, "bytes": most})
            name = f"{resolution}px x{batch} {fmap_base}, {method}"
            print(f"{name:<28}{most / _MIB:8.0f} MiB{most / batch / _MIB:8.1f} a chain", flush=True)
    options.out.write_text(json.dumps(lines, indent=1) + "\n")


if __name__ == "__main__":
    main()
