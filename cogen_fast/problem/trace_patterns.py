"""What is looked for in the trace of a generator: convolutions, and what belongs to each.

Modules of `torch.nn` and functions of `torch.nn.functional` are both recognised; whatever else a
trace has is left alone.
"""

from __future__ import annotations

import copy
import inspect
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from cogen_fast.ops.convolution.layers import ConvolutionSpec, Pair
from cogen_fast.ops.progressive.layers import Layer

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
_RELUS = (F.relu, torch.relu, torch.relu_, "relu", "relu_")
# What takes images of any memory layout, and keeps it.
_ANY_LAYOUT = (
    *(nn.Tanh, nn.Sigmoid, nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.BatchNorm2d),
    *(operator.add, operator.sub, operator.mul, operator.truediv, torch.add, torch.mul),
    *(torch.tanh, F.tanh, torch.sigmoid, F.sigmoid, F.relu, F.leaky_relu, F.elu, F.gelu, F.silu),
    *("tanh", "sigmoid", "relu", "add", "mul", "output"),
)
_IDENTITIES = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)


@dataclass(frozen=True)
class Convolution:
    """A convolution in the trace: where its images come from, its last node, and its code."""

    source: fx.Node
    last: fx.Node
    layer: Layer


def remove_identities(module: fx.GraphModule) -> None:
    """Take out modules that do nothing while evaluating."""
    for node in list(module.graph.nodes):
        if type(_module(module, node)) in _IDENTITIES:
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)


def fold_constants(module: fx.GraphModule) -> None:
    """Compute once what depends on weights alone, such as a weight times its He constant."""
    values: dict[fx.Node, Any] = {}
    for node in list(module.graph.nodes):
        if node.op == "get_attr":
            values[node] = _attribute(module, node.target)
        elif _is_arithmetic(node) and all(each in values for each in node.all_input_nodes):
            values[node] = _computed(node, values)
    for node, value in values.items():
        outside = any(user not in values for user in node.users)
        if node.op != "get_attr" and outside and isinstance(value, Tensor):
            module.register_buffer(f"_folded_{node.name}", value)
            with module.graph.inserting_before(node):
                node.replace_all_uses_with(module.graph.get_attr(f"_folded_{node.name}"))
    module.graph.eliminate_dead_code()


def convolutions(
    module: fx.GraphModule,
    shapes: dict[fx.Node, torch.Size],
    layer_of: Callable[[ConvolutionSpec], Layer | None],
) -> list[Convolution]:
    """The convolutions for which ``layer_of`` has code, in order.

    ``shapes`` are those of the nodes' values (see `shapes_of`).
    """
    found: list[Convolution] = []
    for node in module.graph.nodes:
        given = _convolution(module, node)
        if given is None or given["input"] not in shapes:
            continue
        found += _with_code(module, node, given, shapes, layer_of)
    return found


def shapes_of(module: fx.GraphModule, inputs: Sequence[Tensor]) -> dict[fx.Node, torch.Size]:
    """The shapes of all tensors when the module is called with ``inputs``."""
    interpreter = _Shapes(module)
    with torch.no_grad():
        interpreter.run(*inputs)
    return interpreter.shapes


def replace(
    module: fx.GraphModule,
    found: Sequence[Convolution],
    chain_of: Callable[[list[Convolution], bool], nn.Module],
) -> None:
    """Put chains where ``found`` was; the old nodes remain, unused, until `finish`.

    ``chain_of`` makes one of neighbours, given whether its result has to be contiguous.
    """
    sources = {each.source for each in found}
    new: dict[fx.Node, fx.Node] = {}
    for run in _runs(found):
        first, last = run[0].source, run[-1].last
        name = f"_chain_{last.name}"
        module.add_submodule(name, chain_of(run, _needs_contiguous(module, last, sources)))
        with module.graph.inserting_before(last):
            new[last] = module.graph.call_module(name, (new.get(first, first),))
        last.replace_all_uses_with(new[last])


def finish(module: fx.GraphModule) -> None:
    """Take out what is not used any more; activations may no longer overwrite their inputs."""
    module.graph.eliminate_dead_code()
    for node in module.graph.nodes:
        activation = _module(module, node)
        if getattr(activation, "inplace", False):
            other = copy.copy(activation)
            other.inplace = False  # type: ignore[union-attr]
            module.add_submodule(f"_copy_{node.name}", other)  # type: ignore[arg-type]
            node.target = f"_copy_{node.name}"
        elif node.kwargs.get("inplace"):
            node.update_kwarg("inplace", False)
    module.delete_all_unused_submodules()
    module.graph.lint()
    module.recompile()


def _runs(found: Iterable[Convolution]) -> list[list[Convolution]]:
    """Convolutions of which each is all that reads the one before, grouped."""
    groups: list[list[Convolution]] = []
    for each in found:
        before = groups[-1][-1].last if groups else None
        if before is not None and each.source is before and len(before.users) == 1:
            groups[-1].append(each)
        else:
            groups.append([each])
    return groups


def _needs_contiguous(module: fx.GraphModule, node: fx.Node, sources: set[fx.Node]) -> bool:
    """Whether anything that reads ``node`` may depend on the memory layout of images.

    ``sources`` are the nodes that convolutions with code of their own read.
    """
    return node not in sources and any(
        _kind(module, user) not in _ANY_LAYOUT for user in node.users
    )


class _Shapes(fx.Interpreter):
    """Runs a trace and writes down shapes."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.shapes: dict[fx.Node, torch.Size] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.shapes[n] = value.shape
        return value


def _with_code(
    module: fx.GraphModule,
    node: fx.Node,
    given: _Arguments,
    shapes: dict[fx.Node, torch.Size],
    layer_of: Callable[[ConvolutionSpec], Layer | None],
) -> Iterator[Convolution]:
    """The convolution at ``node`` with what belongs to it, if there is code for it."""
    weight, bias, last = given["weight"], given["bias"], node
    if bias is None:
        bias = weight.new_zeros(
            weight.shape[1] * given["groups"] if given["transposed"] else len(weight)
        )
    follower = _only_user(last)
    norm = _batch_norm(module, follower)
    if norm is not None and not (given["transposed"] and given["groups"] > 1):
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
        assert follower is not None
        last, follower = follower, _only_user(follower)
    slope = _slope(module, follower)
    if slope is not None:
        assert follower is not None
        last = follower
    source: fx.Node = given["input"]
    above = _upsampled(module, source)
    for upsampled, images in ((True, above), (False, source)):
        if images is None:
            continue
        high, wide = shapes[images][2:]
        spec = ConvolutionSpec(
            weight=weight.detach(),
            bias=bias.detach(),
            transposed=given["transposed"],
            stride=_pair(given["stride"]),
            padding=_pair(given["padding"]),
            output_padding=_pair(given["output_padding"]),
            dilation=_pair(given["dilation"]),
            groups=given["groups"],
            slope=1.0 if slope is None else slope,
            upsampled=upsampled,
            side=(high, wide),
        )
        layer = layer_of(spec)
        if layer is not None:
            yield Convolution(images, last, layer)
            return


def _convolution(module: fx.GraphModule, node: fx.Node) -> _Arguments | None:
    """The arguments of a convolution whose weights are constants; None for another node."""
    layer = _module(module, node)
    given: _Arguments
    if type(layer) in (nn.Conv2d, nn.ConvTranspose2d):
        assert isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
        names = ("weight", "bias", "stride", "padding", "output_padding", "dilation", "groups")
        given = {name: getattr(layer, name) for name in names} | {"input": node.args[0]}
        if len(node.args) != 1 or node.kwargs or layer.padding_mode != "zeros":
            return None
        given["transposed"] = type(layer) is nn.ConvTranspose2d
    elif node.op == "call_function" and node.target in _CONVOLUTIONS:
        bound = _bound(_CONVOLUTIONS[node.target], node)
        given = {"output_padding": 0, **bound, "transposed": node.target in _TRANSPOSED}
        for name in ("weight", "bias"):
            if isinstance(given[name], fx.Node):
                if given[name].op != "get_attr":
                    return None
                given[name] = _attribute(module, given[name].target)
    else:
        return None
    whole = isinstance(given["weight"], Tensor) and not isinstance(given["padding"], str)
    return given if whole and isinstance(given["input"], fx.Node) else None


def _batch_norm(module: fx.GraphModule, node: fx.Node | None) -> _Arguments | None:
    """Statistics and weights of a batch norm by running statistics; None for another node."""
    layer = _module(module, node)
    if type(layer) is nn.BatchNorm2d:
        names = ("running_mean", "running_var", "eps", "weight", "bias")
        given = {name: getattr(layer, name) for name in names}
    elif node is not None and node.op == "call_function" and node.target is F.batch_norm:
        given = _bound(F.batch_norm, node)
        if given["training"] is not False:
            return None
        for name, value in given.items():
            if isinstance(value, fx.Node) and name != "input":
                if value.op != "get_attr":
                    return None
                given[name] = _attribute(module, value.target)
    else:
        return None
    return None if given["running_mean"] is None else given


def _slope(module: fx.GraphModule, node: fx.Node | None) -> float | None:
    """The slope of a leaky ReLU, 0 for a ReLU; None for another node, or a negative slope."""
    if node is None:
        return None
    layer = _module(module, node)
    if type(layer) is nn.ReLU or node.target in _RELUS:
        return 0.0
    slope: Any = None
    if isinstance(layer, nn.LeakyReLU):
        slope = layer.negative_slope
    elif node.target is F.leaky_relu:
        slope = _bound(F.leaky_relu, node)["negative_slope"]
    return float(slope) if isinstance(slope, int | float) and slope >= 0 else None


def _upsampled(module: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """What a nearest upsampling by 2 reads, if nothing else reads its output."""
    if len(node.users) != 1:
        return None
    layer = _module(module, node)
    if isinstance(layer, nn.Upsample):
        how = {"scale_factor": layer.scale_factor, "size": layer.size, "mode": layer.mode}
        source = node.args[0] if node.args else None
    elif node.op == "call_function" and node.target is F.interpolate:
        how = _bound(F.interpolate, node)
        source = how["input"]
    else:
        return None
    twice = how["scale_factor"] in (2, 2.0, (2, 2), (2.0, 2.0), [2, 2])
    nearest = how["size"] is None and how["mode"] in ("nearest", "nearest-exact") and twice
    return source if nearest and isinstance(source, fx.Node) else None


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _module(module: fx.GraphModule, node: fx.Node | None) -> nn.Module | None:
    if node is None or node.op != "call_module":
        return None
    return module.get_submodule(str(node.target))


def _kind(module: fx.GraphModule, node: fx.Node) -> Any:
    """The class of a module, a function, or the name of a method or of the output."""
    layer = _module(module, node)
    return node.target if layer is None else type(layer)


def _attribute(module: fx.GraphModule, target: Any) -> Any:
    return operator.attrgetter(str(target))(module)


def _bound(signature: Callable[..., Any], node: fx.Node) -> _Arguments:
    """The arguments of a call by name, with defaults."""
    bound = inspect.signature(signature).bind(*node.args, **node.kwargs)
    bound.apply_defaults()
    return bound.arguments


def _is_arithmetic(node: fx.Node) -> bool:
    """Whether a node is a function of tensors that changes none of them."""
    if node.op == "call_method":
        return not str(node.target).endswith("_")
    if node.op != "call_function" or not node.all_input_nodes:
        return False
    name = getattr(node.target, "__name__", "_")
    return not name.endswith("_") and not node.kwargs.get("inplace")


def _computed(node: fx.Node, values: dict[fx.Node, Any]) -> Any:
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda each: values[each])
    with torch.no_grad():
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        return node.target(*args, **kwargs)  # type: ignore[operator]


def _pair(value: Any) -> Pair:
    pair = tuple(value) if isinstance(value, tuple | list) else (value, value)
    return (pair[0], pair[1]) if len(pair) == 2 else (pair[0], pair[0])
