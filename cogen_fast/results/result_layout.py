"""The types and shapes of a result's arrays, and the check of a result that comes from a file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cogen_fast.support.arguments import abbreviated, check_count

_TYPES = {
    "real": (torch.float32, torch.float64),
    "float64": (torch.float64,),
    "int64": (torch.int64,),
    "bool": (torch.bool,),
}
# Sizes: B observations, N samples, K fits, d latents, T temperatures, I islands of all
# observations, P states of a trace, R particles; G particles of F frames. A star stands for the
# rest of a shape: that of an output (*O) or of measurements (*M).
LAYOUT = {
    "images": ("real", "B N *O"),
    "completed": ("real", "B N *O"),
    "fit_images": ("real", "B K *O"),
    "fit_latents": ("real", "B K d"),
    "fit_energies": ("float64", "B K"),
    "latents": ("real", "B N d"),
    "energies": ("float64", "B N"),
    "noise_std": ("float64", "B N"),
    "noise_bounds": ("float64", "B 2"),
    "log_weights": ("float64", "B N"),
    "log_normaliser": ("float64", "B"),
    "log_normaliser_error": ("float64", "B"),
    "log_evidence": ("float64", "B"),
    "roots": ("int64", "B N"),
    "surviving_roots": ("int64", "I"),
    "betas": ("float64", "T I"),
    "acceptance": ("float64", "T I"),
    "step_size": ("float64", "T I"),
    "energy_history": ("float64", "T I"),
    "energy_std": ("float64", "T I"),
    "leapfrog_steps": ("int64", "T"),
    "hmc_steps": ("int64", "T"),
    "non_finite": ("int64", "B N"),
    "oversized_steps": ("bool", "I"),
    "rounds": ("int64", "I"),
    "x_obs": ("real", "B *M"),
    "observed": ("bool", "B *M"),
    "trace": ("real", "P B R d"),
    "frames": ("real", "F B G *O"),
    "frame_steps": ("int64", "F"),
}
"""The type and shape of every array of a `Result`, by name."""
OPTIONAL = frozenset(
    {
        "completed",
        "fit_images",
        "fit_latents",
        "fit_energies",
        "noise_std",
        "noise_bounds",
        "log_weights",
        "log_normaliser",
        "log_normaliser_error",
        "log_evidence",
        "observed",
        "trace",
        "frames",
        "frame_steps",
    }
)
"""The arrays that may be None."""
_TOGETHER = ("fit_images", "fit_latents", "fit_energies")
# The types of the plain values.
PLAIN: dict[str, type | tuple[type, ...]] = {
    "complete": bool,
    "beta_reached": (float, int),
    "gradients": int,
    "forwards": int,
    "reasons": dict,
    "settings": dict,
    "notes": list,
}
_COUNTS = ("chains", "populations", "particles", "islands")  # at least 1, where they are present

_Sizes = dict[str, tuple[int, ...]]


def check(arrays: Mapping[str, Tensor], summary: Mapping[str, Any]) -> None:
    """Raise ValueError naming the first of a result's arrays or plain values that does not fit."""
    _check_plain(summary)
    for name in arrays:
        if name not in LAYOUT:
            raise ValueError(f"expected arrays of a result, got {abbreviated(name)}")
    sizes = _sizes_from(summary["settings"])
    for name, (kind, dimensions) in LAYOUT.items():
        if name in arrays:
            _check_array(name, arrays[name], kind, dimensions.split(), sizes)
        elif name not in OPTIONAL:
            raise ValueError(f"{name}: expected an array, found none")
    if len({name in arrays for name in _TOGETHER}) > 1:
        raise ValueError(
            f"fit_images: expected all of {', '.join(_TOGETHER)}, or none of them, got some"
        )
    for name in ("log_weights", "fit_energies"):
        if name not in arrays and name not in summary["reasons"]:
            raise ValueError(f"reasons: expected the reason why there is no {name}, found none")
    observations, islands = sizes["B"][0], summary["settings"].get("islands", 1)
    if sizes["I"] != (observations * islands,):
        raise ValueError(
            f"rounds: expected shape {(observations * islands,)} of {islands} islands for each of "
            f"{observations} observations, got {sizes['I']}"
        )
    if "completed" in arrays and ("observed" not in arrays or sizes["*M"] != sizes["*O"]):
        raise ValueError(
            "completed: expected measurements of the outputs' shape, got another shape"
        )


def _check_plain(summary: Mapping[str, Any]) -> None:
    for name, kinds in PLAIN.items():
        value = summary.get(name)
        if not isinstance(value, kinds) or (kinds is not bool and isinstance(value, bool)):
            raise ValueError(f"{name}: expected a value of its type, got {abbreviated(value)}")
    for name in ("reasons", "notes"):
        texts = summary[name].values() if name == "reasons" else summary[name]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{name}: expected text, got {abbreviated(summary[name])}")
    settings = summary["settings"]
    for name in ("method", "noise"):
        if not isinstance(settings.get(name), str):
            got = abbreviated(settings.get(name))
            raise ValueError(f"settings: expected text as {name}, got {got}")
    for name in _COUNTS:
        if name in settings or name == "chains":
            check_count(f"settings: {name}", settings.get(name))


def _sizes_from(settings: Mapping[str, Any]) -> _Sizes:
    """The sizes that follow from the settings."""
    return {"N": (settings["chains"] * settings.get("populations", 1),), "2": (2,)}


def _check_array(name: str, array: Tensor, kind: str, dimensions: list[str], sizes: _Sizes) -> None:
    """Check one array; ``sizes`` that are still unknown are set to those of this array."""
    if array.dtype not in _TYPES[kind]:
        raise ValueError(f"{name}: expected values of type {kind}, got {array.dtype}")
    starred = dimensions[-1].startswith("*")
    plain = len(dimensions) - starred
    shape = tuple(array.shape)
    sizable = array.ndim >= plain if starred else array.ndim == plain
    parts = [(size,) for size in shape[:plain]] + ([shape[plain:]] if starred else [])
    if not sizable or any(
        sizes.setdefault(dimension, part) != part
        for dimension, part in zip(dimensions, parts, strict=True)
    ):
        known = " ".join(str(sizes.get(each, each)) for each in dimensions)
        raise ValueError(f"{name}: expected shape {' '.join(dimensions)}, {known}, got {shape}")
    if name != "trace" and array.numel() == 0 and "T" not in dimensions:
        raise ValueError(f"{name}: expected entries, got none of shape {shape}")
