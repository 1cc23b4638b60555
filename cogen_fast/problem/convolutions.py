"""Finds the convolutions in a recording of a generator, and replaces them by faster code."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from cogen_fast.ops.convolution.layers import ConvolutionSpec, Pair
from cogen_fast.ops.progressive.layers import Layer
from cogen_fast.problem.recording import Place, Recording, Step

_Arguments = dict[str, Any]


def _conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):  # type: ignore[no-untyped-def]
    """The signature of `torch.nn.functional.conv2d`, which is compiled and has none to read."""


def _conv_transpose2d(  # type: ignore[no-untyped-def]
    input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1
):
    """The signature of `torch.nn.functional.conv_transpose2d`."""


_CONVOLUTIONS: dict[Any, Callable[..., None]] = {
    F.conv2d: _conv2d,
    torch.conv2d: _conv2d,
    F.conv_transpose2d: _conv_transpose2d,
    torch.conv_transpose2d: _conv_transpose2d,
}
_TRANSPOSED = (F.conv_transpose2d, torch.conv_transpose2d)
_RELUS = (F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_)
# Functions that take images of any memory layout and return the same layout.
_ANY_LAYOUT = frozenset(
    (
        *(F.relu, F.leaky_relu, F.elu, F.gelu, F.silu, F.tanh, F.sigmoid, F.batch_norm),
        *(torch.relu, torch.tanh, torch.sigmoid, torch.add, torch.mul),
        *(Tensor.relu, Tensor.tanh, Tensor.sigmoid, Tensor.add, Tensor.mul, Tensor.sub),
    )
)


@dataclass(frozen=True)
class Convolution:
    """A convolution in a recording: where its images come from, its last step, and its code.

    ``products`` are the multiply-adds of an image.
    """

    source: Place
    last: int
    layer: Layer
    products: int


def find(
    recording: Recording, layer_of: Callable[[ConvolutionSpec], Layer | None]
) -> list[Convolution]:
    """The convolutions for which ``layer_of`` has code, in order."""
    finder = _Finder(recording, layer_of)
    return [each for number in range(len(recording.steps)) for each in finder.at(number)]


def replaced(
    recording: Recording,
    found: Sequence[Convolution],
    chain_of: Callable[[list[Convolution], bool], nn.Module],
) -> Recording:
    """The recording with the convolutions ``found`` replaced, without steps that nothing reads.

    ``chain_of`` makes one module of neighbouring convolutions; its second argument says whether the
    module's result has to be contiguous.
    """
    steps, users = list(recording.steps), recording.users()
    sources = {each.source for each in found}
    for run in _runs(found, users):
        end = Place(run[-1].last)
        contiguous = any(not _any_layout(recording, user) for user in users[end])
        chain = chain_of(run, contiguous and end not in sources)
        steps[end.step] = Step(chain, (run[0].source,))
    return _without_unread(Recording(steps, recording.output, recording.shapes))


def _runs(found: Sequence[Convolution], users: dict[Place, list[int]]) -> list[list[Convolution]]:
    """Groups of neighbours: each convolution of a group is the only reader of the one before."""
    groups: list[list[Convolution]] = []
    for each in found:
        before = Place(groups[-1][-1].last) if groups else None
        if before is not None and each.source == before and len(users[before]) == 1:
            groups[-1].append(each)
        else:
            groups.append([each])
    return groups


def _any_layout(recording: Recording, user: int) -> bool:
    """Whether step ``user`` takes images of any memory layout, as the output's reader does."""
    return user == len(recording.steps) or recording.steps[user].function in _ANY_LAYOUT


def _without_unread(recording: Recording) -> Recording:
    """The recording without steps whose results nothing reads; the others get new numbers."""
    read = {recording.output.step}
    for number in range(len(recording.steps) - 1, -1, -1):
        if number in read:
            read |= {place.step for place in recording.steps[number].places()}
    kept = [number for number in range(len(recording.steps)) if number in read]
    new = {old: number for number, old in enumerate(kept)}

    def moved(value: Any) -> Any:
        if not isinstance(value, Place):
            return value
        return Place(new.get(value.step, value.step), value.item)

    steps = [recording.steps[number].mapped(moved) for number in kept]
    shapes = {moved(place): shape for place, shape in recording.shapes.items() if place.step in new}
    return Recording(steps, moved(recording.output), shapes)


class _Finder:
    """Finds the convolutions in a recording, step by step."""

    def __init__(
        self, recording: Recording, layer_of: Callable[[ConvolutionSpec], Layer | None]
    ) -> None:
        self._steps, self._shapes = recording.steps, recording.shapes
        self._users, self._layer_of = recording.users(), layer_of

    def at(self, number: int) -> Iterator[Convolution]:
        """The convolution at a step, with the norm, activation and upsampling joined to it.

        Nothing where the step is no convolution, or there is no code for it.
        """
        given = _convolution(self._steps[number])
        if given is None:
            return
        given, last = self._with_norm(given, number)
        follower = self._only_reader(last)
        slope = None if follower is None else _slope(self._steps[follower])
        if slope is not None:
            assert follower is not None
            last = follower
        source: Place = given["input"]
        for images, upsampled in ((self._upsampled(source), True), (source, False)):
            if images is None:
                continue
            spec = _spec(given, 1.0 if slope is None else slope, self._shapes[images], upsampled)
            layer = self._layer_of(spec)
            if layer is not None:
                yield Convolution(images, last, layer, spec.products)
                return

    def _with_norm(self, given: _Arguments, number: int) -> tuple[_Arguments, int]:
        """The convolution with the batch norm after it, if there is one, and the last step."""
        weight, bias = given["weight"], given["bias"]
        if bias is None:
            outputs = weight.shape[1] * given["groups"] if given["transposed"] else len(weight)
            bias = weight.new_zeros(outputs)
        follower = self._only_reader(number)
        norm = None if follower is None else _batch_norm(self._steps[follower])
        if norm is None or (given["transposed"] and given["groups"] > 1):
            return given | {"bias": bias, "folded": False}, number
        assert follower is not None
        weight, bias = fuse_conv_bn_weights(
            weight,
            bias,
            norm["running_mean"],
            norm["running_var"],
            norm["eps"],
            norm["weight"],
            norm["bias"],
            given["transposed"],
        )
        return given | {"weight": weight, "bias": bias, "folded": True}, follower

    def _only_reader(self, number: int) -> int | None:
        readers = self._users.get(Place(number), [])
        return readers[0] if len(readers) == 1 and readers[0] < len(self._steps) else None

    def _upsampled(self, place: Place) -> Place | None:
        """What a nearest upsampling by 2 reads, if nothing else reads its output."""
        if place.step < 0 or place.item is not None or len(self._users[place]) != 1:
            return None
        step = self._steps[place.step]
        if step.function is not F.interpolate:
            return None
        how = step.named(F.interpolate)
        twice = how["scale_factor"] in (2, (2, 2), [2, 2])
        nearest = how["size"] is None and how["mode"] in ("nearest", "nearest-exact") and twice
        return how["input"] if nearest else None


def _spec(given: _Arguments, slope: float, shape: torch.Size, upsampled: bool) -> ConvolutionSpec:
    return ConvolutionSpec(
        weight=given["weight"].detach(),
        bias=given["bias"].detach(),
        transposed=given["transposed"],
        stride=_pair(given["stride"]),
        padding=_pair(given["padding"]),
        output_padding=_pair(given["output_padding"]),
        dilation=_pair(given["dilation"]),
        groups=given["groups"],
        slope=slope,
        folded=given["folded"],
        upsampled=upsampled,
        side=(shape[2], shape[3]),
    )


def _convolution(step: Step) -> _Arguments | None:
    """The arguments of a convolution of images with constant weights; None for another step."""
    if step.function not in _CONVOLUTIONS:
        return None
    given = {"output_padding": 0, **step.named(_CONVOLUTIONS[step.function])}
    given["transposed"] = step.function in _TRANSPOSED
    constant = isinstance(given["weight"], Tensor) and isinstance(given["bias"], Tensor | None)
    images = isinstance(given["input"], Place) and not isinstance(given["padding"], str)
    return given if constant and images else None


def _batch_norm(step: Step) -> _Arguments | None:
    """Statistics and weights of a batch norm by running statistics; None for another step."""
    if step.function is not F.batch_norm:
        return None
    given = step.named(F.batch_norm)
    constants = [given[name] for name in ("running_mean", "running_var", "weight", "bias")]
    if given["training"] or not all(isinstance(each, Tensor | None) for each in constants):
        return None
    return None if given["running_mean"] is None else given


def _slope(step: Step) -> float | None:
    """The slope of a leaky ReLU, 0 for a ReLU; None for another step, or a negative slope."""
    if step.function in _RELUS:
        return 0.0
    if step.function not in (F.leaky_relu, F.leaky_relu_):
        return None
    slope = step.named(F.leaky_relu)["negative_slope"]
    return float(slope) if isinstance(slope, int | float) and slope >= 0 else None


def _pair(value: Any) -> Pair:
    pair = tuple(value) if isinstance(value, tuple | list) else (value, value)
    return (pair[0], pair[1]) if len(pair) == 2 else (pair[0], pair[0])
