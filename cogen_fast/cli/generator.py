"""The generator which `--generator` names: a file here or on the hub, a shipped one, or code."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import stat
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from cogen_fast.generators import load_generator
from cogen_fast.generators.hub import is_hub_name
from cogen_fast.generators.pretrained import PRETRAINED, pretrained
from cogen_fast.problem.adapter import GeneratorAdapter, frozen
from cogen_fast.problem.devices import generator_device
from cogen_fast.support.arguments import path_mode
from cogen_fast.support.files import check_readable

Generator = Callable[[Tensor], Tensor]
_CODE = re.compile(r"(?P<module>[^\W\d]\w*(?:\.[^\W\d]\w*)*):(?P<name>[^\W\d]\w*)(?P<call>\(\))?")


def find_generator(text: str, device: str | None, argument: str = "generator") -> Generator:
    """The generator which ``text`` names, on ``device``. ValueError, TypeError or OSError if none.

    Errors of files name the ``argument``. By default a generator from a file and a shipped one are
    put on the GPU, if there is one; a generator from code stays on its device.
    """
    home = None if device is None else generator_device(device)
    if is_hub_name(text):
        return _placed(load_generator(text), home)
    path, code = Path(text), _CODE.fullmatch(text)
    mode = path_mode(argument, path)
    script = Path(text.partition(":")[0])
    if script.suffix == ".py" and script.is_file():
        raise ValueError(
            f"generator: expected package.module:name for code, got {text}; run in the script's "
            f"folder, and write {script.stem}:{text.partition(':')[2] or 'name'}"
        )
    is_file = mode is not None and not stat.S_ISDIR(mode)
    if is_file or text in PRETRAINED:
        if is_file:
            check_readable(argument, path)
        found = load_generator(path) if is_file else pretrained(text)
        return _placed(found, home)
    if code is None:
        raise FileNotFoundError(
            f"{argument}: expected a file, the name of a shipped generator, package.module:name or "
            f"hf://owner/name/file.safetensors, got {text}, which is none of these"
        )
    generator = _from_code(text, code)
    if home is not None and isinstance(generator, nn.Module):
        return generator.to(home)
    return generator


def probe(generator: Generator, latent_shape: Any, device: str | None) -> Tensor:
    """A few outputs of the generator, ``(n, C, H, W)``. ValueError if they are not images."""
    return adapter_of_images(generator, latent_shape, device).probe_output


def adapter_of_images(
    generator: Generator, latent_shape: Any, device: str | None, argument: str = "generator"
) -> GeneratorAdapter:
    """The generator as the library calls it. ValueError if its outputs are not images."""
    with frozen(generator):
        adapter = GeneratorAdapter(generator, latent_shape, device)
    output = adapter.probe_output
    if output.ndim != 4 or output.shape[1] not in (1, 3):
        raise ValueError(
            f"{argument}: expected images (1 or 3, H, W), got outputs {tuple(output.shape[1:])}; "
            "for anything else use cogen_fast.cogenerate in Python"
        )
    return adapter


def _placed(generator: nn.Module, home: torch.device | None) -> nn.Module:
    return generator.to(home or ("cuda" if torch.cuda.is_available() else "cpu"))


def _from_code(text: str, code: re.Match[str]) -> Generator:
    module, name = _import(code["module"]), code["name"]
    if not hasattr(module, name):
        raise ValueError(f"generator: {code['module']} ({module.__file__}) has no {name!r}")
    value = getattr(module, name)
    if code["call"]:
        return _checked(text, _called(text, value))
    if _is_factory(value):
        raise TypeError(
            f"generator: expected an nn.Module or a function of latents, got {text}, which must be "
            f"called first: write '{text}()'"
        )
    if isinstance(value, type):
        raise TypeError(
            f"generator: expected an nn.Module or a function of latents, got the class {text}, "
            f"which needs arguments: write def build(): return {code['name']}(...) there, and give "
            f"'{code['module']}:build()'"
        )
    return _checked(text, value)


def _import(name: str) -> ModuleType:
    here = os.getcwd()
    if here not in sys.path:  # a console script has its own folder there instead
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        missing = isinstance(error, ModuleNotFoundError) and error.name
        if missing and f"{name}.".startswith(f"{missing}."):
            raise ValueError(
                f"generator: there is no module {name!r}, neither in {here} nor installed"
            ) from error
        raise _failed(f"importing {name}", error) from error


def _called(text: str, factory: Any) -> Any:
    if isinstance(factory, nn.Module):
        raise TypeError(
            f"generator: expected a function before (), got {text}, which is a generator already; "
            "write it without ()"
        )
    if not callable(factory):
        raise TypeError(f"generator: expected a function before (), got {text}")
    try:
        return factory()
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise _failed(f"calling {text}", error) from error


def _failed(doing: str, error: BaseException) -> ValueError:
    place = traceback.extract_tb(error.__traceback__)[-1]
    where = f" ({place.filename}, line {place.lineno})"
    if place.filename.startswith("<") or place.filename == __file__:  # not in the user's code
        where = ""
    return ValueError(f"generator: {doing} failed: {type(error).__name__}: {error}{where}")


def _is_factory(value: Any) -> bool:
    """Whether ``value`` can be called without arguments, according to its signature."""
    if isinstance(value, nn.Module) or not callable(value):
        return False
    try:
        parameters = inspect.signature(value).parameters.values()
    except ValueError:  # compiled functions may have no signature
        return False
    return all(p.default is not p.empty for p in parameters if p.kind is not p.VAR_KEYWORD)


def _checked(text: str, value: Any) -> Generator:
    if not callable(value):
        raise TypeError(
            f"generator: expected an nn.Module or a function of latents, got {text}, which is of "
            f"type {type(value).__name__}{_of_weights(value)}"
        )
    generator: Generator = value
    return generator


def _of_weights(value: Any) -> str:
    """What to do with a state dict."""
    if not isinstance(value, Mapping) or not all(isinstance(v, Tensor) for v in value.values()):
        return ""
    return (
        ", a state dict: write a function that builds the network, calls "
        "network.load_state_dict(...) and returns it, and give its name with ()"
    )
