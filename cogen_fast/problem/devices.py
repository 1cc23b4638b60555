"""The device of a generator, and the one on which the rest of a run is computed.

The sampler needs float64, which some devices lack, and kernels, which exist for CPUs and CUDA only.
A generator on any other device runs there, and everything else on the CPU: for each gradient the
latents and the gradient by the outputs are copied to the device, outputs and gradients back.
"""

from __future__ import annotations

import torch

from cogen_fast.ops.dispatch import DEVICES
from cogen_fast.support.arguments import shown

_ANY = "cpu, cuda or another device of torch's, such as mps or xpu"


def checked_device(device: torch.device | str) -> torch.device:
    """A device that serves all of the package; ValueError unless it is cpu or cuda and present."""
    wanted = _parsed(device, "cpu or cuda")
    if wanted.type not in DEVICES:
        raise ValueError(f"device: expected cpu or cuda, got {wanted}")
    return _present(wanted)


def generator_device(device: torch.device | str) -> torch.device:
    """A device on which a generator can run; ValueError where it is unknown or not present."""
    wanted = _parsed(device, _ANY)
    if wanted.type == "meta":
        raise ValueError(f"device: expected {_ANY}, got meta, which holds no values")
    return _present(wanted)


def sampler_device(generator: torch.device) -> torch.device:
    """Where all is computed but the generator: its own device, or the CPU."""
    return generator if generator.type in DEVICES else torch.device("cpu")


def described(generator: torch.device) -> tuple[str, ...]:
    """A note for the result, empty where one device does all."""
    if generator.type in DEVICES:
        return ()
    return (
        f"generator: runs on {generator}; latents, misfit and sampler are computed on the CPU; "
        "untried on a real device other than cpu and cuda",
    )


def _parsed(device: torch.device | str, expected: str) -> torch.device:
    try:
        return torch.device(device)
    except (RuntimeError, TypeError, ValueError, OverflowError):
        raise ValueError(f"device: expected {expected}, got {shown(device)}") from None


def _present(device: torch.device) -> torch.device:
    if device.type == "cpu":
        return device
    count = getattr(getattr(torch, device.type, None), "device_count", int)()
    if (device.index or 0) >= count:
        name = "CUDA" if device.type == "cuda" else device.type
        raise ValueError(
            f"device: expected one that is present, got {device}; torch {torch.__version__} sees "
            f"{count} {name} devices"
        )
    return device
