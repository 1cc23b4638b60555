"""Share of chains at the answer of the 2-D study: ``python benchmarks/five_gaussians.py G.npz``.

Prints a table, and writes it with the settings of each method to ``benchmarks/results``.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

import cogen_fast
from cogen_fast.experiments.synthetic.five_gaussians import Line, compare

_OUT = Path(__file__).parent / "results" / "five_gaussians.json"
_HEADER = f"{'method':<22}{'chains':>7}{'< 0.01':>8}{'< 0.05':>8}{'weighted':>10}{'cost':>9}"


def _row(line: Line) -> str:
    weighted = "" if line.within_0_01_weighted is None else f"{line.within_0_01_weighted:.4f}"
    return (
        f"{line.method:<22}{line.chains:>7}{line.within_0_01:>8.4f}{line.within_0_05:>8.4f}"
        f"{weighted:>10}{line.cost_per_chain:>9}"
    )


def main() -> None:
    """Run the comparison and write it down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("generator", type=Path, help="npz or safetensors of a 2-D MLP generator")
    parser.add_argument("--seeds", type=int, default=5, help="runs of 100 chains (default 5)")
    parser.add_argument("--out", type=Path, default=_OUT)
    options = parser.parse_args()
    generator = cogen_fast.load_generator(options.generator)
    torch.set_num_threads(1)  # matrices of 100 x 20 are too small to share among threads
    print(_HEADER, flush=True)
    lines, start = [], time.monotonic()
    for line in compare(generator, range(options.seeds), progress=False):
        print(_row(line), flush=True)
        lines.append(line.as_dict() | {"seconds": round(time.monotonic() - start, 1)})
        start = time.monotonic()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    record = {"generator": options.generator.name, "seeds": options.seeds, "lines": lines}
    options.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
