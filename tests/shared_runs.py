"""Runs and commands that several processes share, as `teams.together` calls them in each.

The first argument is the rank; a negative one makes the same run in one process.
"""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from runs import network
from torch import Tensor, nn

from cogen_fast import (
    Adaptive,
    AveragePool,
    Checkpoint,
    Compute,
    Mask,
    Paper,
    Result,
    cogenerate,
    held_out_images,
    pretrained,
)
from cogen_fast.cli.main import main
from cogen_fast.methods.baselines import reconstruct, tune

SHARED = Compute(processes=True)


HIDDEN = torch.ones(32, 32)
HIDDEN[3:22, 3:29] = 0


POPULATIONS = Adaptive(populations=3)  # 48 chains, of which three processes have 16 each


TINY: dict[str, Any] = {"noise_std": 0.3, "progress": False, "budget": 12}


# Runs by name.
CASES: dict[str, dict[str, Any]] = {
    "populations": {"method": POPULATIONS, "polish": 3},
    "not divisible": {"chains": 19, "method": Adaptive(populations=1)},
    "fewer chains than processes": {"chains": 1, "budget": 40},
    "frozen": {"method": Adaptive(evidence="frozen"), "budget": 40},
    "trace": {"method": Adaptive(keep_trace=True)},
    "published": {"method": Paper(ais_steps=3, leapfrog_steps=3), "chains": 10, "budget": None},
    "bfloat16": {"gradient_dtype": "bfloat16", "chains": 6},
    "inferred noise": {"noise_std": "auto", "budget": 30},
}


# The network of `runs` has vectors, of which the last two numbers are hidden.
SEEN, VECTOR = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0]), torch.linspace(-0.5, 0.5, 5)


def garments(case: str, compute: Compute = SHARED) -> Result:
    """A run of one of the `CASES` with the shipped generator."""
    given = TINY | CASES[case]
    half = given.pop("gradient_dtype", None)
    given["compute"] = replace(compute, gradient_dtype=half)
    x = held_out_images("fashion-32")["boot"]
    return cogenerate(pretrained("fashion-32"), x, HIDDEN, **given)


def work_garments(rank: int, case: str) -> Result:
    return garments(case)


class Counted(nn.Module):
    """The network, counting the rows that it is given while it samples; ``at`` calls ``event``."""

    def __init__(self, at: int | None = None, event: Any = None) -> None:
        super().__init__()
        self.net, self.at, self.event = network(), at, event
        self.rows: list[int] = []

    def forward(self, z: Tensor) -> Tensor:
        self.rows.append(len(z))
        if len(self.rows) == self.at:
            self.event()
        x: Tensor = self.net(z)
        return x


def vectors(net: Any, compute: Compute = SHARED, **options: Any) -> Result:
    return cogenerate(net, VECTOR, SEEN, **(TINY | {"compute": compute} | options))


def work_counted(rank: int, options: dict[str, Any]) -> tuple[Result, list[int]]:
    net = Counted()
    return vectors(net, **options), net.rows


def work_batch(rank: int) -> Result:
    images = held_out_images("fashion-32")
    x = torch.stack([images[name] for name in ("boot", "dress")])
    low = torch.nn.functional.avg_pool2d(x, 4)
    given = TINY | {"compute": SHARED if rank >= 0 else Compute()}
    given["noise_std"] = torch.tensor([0.2, 0.4])[:, None, None, None]
    return cogenerate(pretrained("fashion-32"), low, AveragePool(4), **given)


def work_whole(rank: int) -> Result:
    how = SHARED if rank >= 0 else Compute()
    return vectors(network(), how, method=Paper(ais_steps=20), budget=None)


def work_baselines(rank: int) -> tuple[Result, Result, Any]:
    images = held_out_images("fashion-32")
    G, x, given = pretrained("fashion-32"), images["boot"], {"noise_std": 0.3, "chains": 3}
    given |= {"compute": SHARED if rank >= 0 else Compute()}
    descent = {"method": "gd-multi", "starts": 7, "steps": 3}
    rates = tune(G, x, HIDDEN, learning_rates=[1e-3, 1e-4], **given, **descent)
    found = reconstruct(G, x, HIDDEN, learning_rate=rates.learning_rate, **given, **descent)
    return found, reconstruct(G, x, HIDDEN, method="sir", starts=50, **given), rates


def work_ended(rank: int, how: str, folder: Path) -> tuple[Result, int]:
    """Only the first process has a time limit or a callback that ends the run."""
    seen: list[int] = []

    def look(snapshot: Any) -> bool:
        seen.append(len(snapshot.result().energies))
        return how == "callback" and len(seen) == 2

    limit = 1e-9 if how == "time" and rank == 0 else None
    result = vectors(
        network(),
        Compute(processes=True, time_limit=limit),
        budget=None,
        on_temperature=look if how == "callback" else None,
        checkpoint=folder / "run.safetensors" if rank == 0 else None,
    )
    return result, len(seen)


class OwnError(Exception):
    """An error that cannot be sent, as it is made of two arguments."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def fail() -> None:
    raise ValueError("the generator has had enough")


def fail_oddly() -> None:
    raise OwnError(1, 2)


def work_failing(rank: int, failing: int, at: int, event: Any) -> Result:
    net = Counted(at if rank == failing else None, event)
    return vectors(net, Compute(processes=True, max_batch=2))


def work_failing_oddly(rank: int) -> Any:
    try:
        return work_failing(rank, 1, 25, fail_oddly)
    except OwnError as error:
        return str(error)


def work_different(rank: int, what: str) -> Result:
    odd = rank == 1
    net: Any = network(int(odd and what == "generator"))
    if what == "function":
        factor = 1.0 + 0.1 * odd
        whole = network()
        net = lambda z: factor * whole(z)  # noqa: E731
    x = VECTOR + 0.1 * (odd and what == "observation")
    more: dict[str, Any] = {"seed": int(odd and what == "seed")}
    if what == "method":
        more["method"] = Adaptive(target_cess=0.9 if odd else 0.97)
    if what == "chains":
        more["chains"] = "many" if odd else 16
    return cogenerate(net, x, Mask(SEEN), **(TINY | {"compute": SHARED} | more), latent_shape=4)


LONG: dict[str, Any] = {"budget": 60, "method": POPULATIONS}


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def work_long(rank: int, at: int | None, event: Any, who: list[int], path: Path | None) -> Result:
    net = Counted(at if rank in who else None, event)
    saving = None if path is None else Checkpoint(path, 0.0)
    compute = Compute(processes=True, max_batch=4)
    return vectors(net, compute, checkpoint=saving, **LONG)


FILL = ("--chains", "6", "--budget", "20", "--box", "3", "5", "6", "4", "--resize")


def work_command(rank: int, folder: Path, arguments: tuple[str, ...]) -> int:
    os.chdir(folder)
    return main(["inpaint", "--generator", "g.safetensors", *FILL, *arguments])
