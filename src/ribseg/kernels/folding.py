"""BatchNorm with frozen statistics, folded into the convolution before it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ribseg.functional.state import evaluating
from ribseg.kernels import winograd
from ribseg.kernels.convolution import conv2d

MIN_CHANNELS = 128  # from which on Winograd's convolutions are faster on CPUs; with 64 they are slower


class FoldedConv(nn.Module):
    """A convolution and the BatchNorm behind it as one convolution. Both keep their parameters, and learn.

    With running statistics, `bn(conv(x))` is a convolution with the weight `s W` and the bias
    `beta + s (b - mu)`, where `s = gamma / sqrt(var + eps)`. What is saved is a pass over the activations,
    forward and backward. Weight and bias are made anew in each pass, or once for several: see `Folds`.

    Args:
        conv: zero-padded.
        norm: with running statistics, which are used in training mode, too.
    """

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.conv, self.norm = conv, norm
        self.shared: Shared | None = None
        # Kept when it is not in use: see there.
        self._transformed = winograd.Weight()

    def forward(self, x: Tensor) -> Tensor:
        """(N, D, h, w) -> (N, D', h', w')."""
        weight, bias = self.folded() if self.shared is None else self.shared.used
        conv = self.conv
        if isinstance(weight, winograd.Weight):
            return winograd.conv2d(x, weight, bias)
        if _on_cpu(x) and weight.requires_grad and conv.groups == 1 and not isinstance(conv.padding, str):
            return conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation)
        return F.conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)

    def share(self, fastest: bool) -> None:
        """From now on all passes use the weight and the bias that are made here.

        Args:
            fastest: by our own convolution where it is faster, which `torch.compile` cannot look into.
        """
        weight, bias = self.folded()
        if fastest and self._suits_winograd(weight):
            self._transformed.set(weight)
            self.shared = Shared((weight, bias), (self._transformed, _leaf(bias)))
        else:
            self.shared = Shared((weight, bias), (_leaf(weight), _leaf(bias)))

    def _suits_winograd(self, weight: Tensor) -> bool:
        conv = self.conv
        settings = conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups
        return (
            settings == ((3, 3), (1, 1), (1, 1), (1, 1), 1)
            and min(conv.in_channels, conv.out_channels) >= MIN_CHANNELS
            and weight.dtype in winograd.DTYPES
            and _on_cpu(weight)
        )

    def folded(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the one convolution, as functions of the parameters of the two."""
        conv, norm = self.conv, self.norm
        # Read here, not in __init__: moving a module to a device gives it new buffers.
        mean, variance = cast(tuple[Tensor, Tensor], (norm.running_mean, norm.running_var))
        scale, shift = torch.rsqrt(variance + norm.eps), -mean
        if norm.affine:
            scale = scale * norm.weight
        shift = shift * scale if conv.bias is None else (shift + conv.bias) * scale
        if norm.affine:
            shift = shift + norm.bias
        return conv.weight * scale[:, None, None, None], shift


class Shared(NamedTuple):
    """Weight and bias of a `FoldedConv` for several passes.

    Attributes:
        made: as functions of the parameters.
        used: what the passes use instead; their gradients gather there.
    """

    made: tuple[Tensor, Tensor]
    used: tuple[Tensor | winograd.Weight, Tensor]

    def gradients(self) -> list[tuple[Tensor, Tensor]]:
        """What has been reached of `made`, with its gradient."""
        weight, bias = self.used
        found = weight.gradient() if isinstance(weight, winograd.Weight) else weight.grad, bias.grad
        return [(made, grad) for made, grad in zip(self.made, found, strict=True) if grad is not None]


class Folds:
    """The folded convolutions of modules, with weights that are made once for several passes.

    Args:
        modules: what `fold_batch_norm` returned, or anything else: that has none.
        fastest: see `FoldedConv.share`.
    """

    def __init__(self, *modules: object, fastest: bool = True) -> None:
        inside = (layer for module in modules if isinstance(module, nn.Module) for layer in module.modules())
        self._layers = [layer for layer in inside if isinstance(layer, FoldedConv)]
        self._fastest = fastest

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Inside, all passes use weights that are made now; the parameters must not change.

        Gradients gather at these weights; `settle` hands them on.
        """
        try:
            for layer in self._layers:
                layer.share(self._fastest)
            yield
        finally:
            for layer in self._layers:
                layer.shared = None

    def settle(self) -> None:
        """Hands the gradients that have gathered inside `shared` on to the parameters, once."""
        reached = [pair for layer in self._layers if layer.shared for pair in layer.shared.gradients()]
        if reached:
            made, gradients = zip(*reached, strict=True)
            torch.autograd.backward(made, gradients)


def fold_batch_norm(module: nn.Module) -> nn.Module:
    """Replaces each convolution whose only reader is a BatchNorm by a `FoldedConv` of the two.

    Args:
        module: stays as it is; a later change of its layers (not of their weights) does not reach the result.

    Returns:
        A module over the same parameters that computes what `module` computes in evaluation mode. Parts whose
        graph cannot be recorded, because it depends on the input, are taken over unfolded.
    """
    with evaluating(module):
        return _fold(module)


class _Tracer(fx.Tracer):
    """Records down to convolutions and normalisations, also where a library has its own kinds of them.

    And to what has buffers of its own: what is recorded of them would stay behind when the module moves to
    another device.
    """

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        own = isinstance(m, nn.Conv2d | nn.BatchNorm2d) or any(True for _ in m.buffers(recurse=False))
        return own or super().is_leaf_module(m, module_qualified_name)


def _fold(module: nn.Module) -> nn.Module:
    try:
        graph = _Tracer().trace(module)
    except (fx.proxy.TraceError, TypeError):  # what control flow and arithmetic on unknown sizes raise
        if isinstance(module, nn.Sequential):
            return nn.Sequential(*(_fold(child) for child in module))
        return module
    folded = fx.GraphModule(module, graph)
    for number, (first, second) in enumerate(_pairs(folded)):
        name = f"folded_{number}"
        layers = folded.get_submodule(str(first.target)), folded.get_submodule(str(second.target))
        folded.add_submodule(name, FoldedConv(*cast(tuple[nn.Conv2d, nn.BatchNorm2d], layers)))
        with graph.inserting_before(second):
            second.replace_all_uses_with(graph.call_module(name, first.args))
        graph.erase_node(second)
        graph.erase_node(first)
    folded.recompile()
    return folded


def _pairs(module: fx.GraphModule) -> list[tuple[fx.Node, fx.Node]]:
    """Nodes of a convolution and of the BatchNorm that alone reads it."""
    found = []
    for node in module.graph.nodes:
        source = node.args[0] if node.op == "call_module" and node.args else None
        if isinstance(source, fx.Node) and source.op == "call_module" and len(source.users) == 1:
            layers = module.get_submodule(str(source.target)), module.get_submodule(str(node.target))
            if _foldable(*layers):
                found.append((source, node))
    return found


def _on_cpu(tensor: Tensor) -> bool:
    """Whether our own convolutions serve: GPUs have good kernels, and autocast has a choice of its own."""
    return tensor.device.type == "cpu" and not torch.is_autocast_enabled("cpu")


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_(tensor.requires_grad)


def _foldable(conv: nn.Module, norm: nn.Module) -> bool:
    # Exactly these types: subclasses pad or activate in ways of their own.
    return (
        type(conv) is nn.Conv2d
        and conv.padding_mode == "zeros"
        and type(norm) is nn.BatchNorm2d
        and norm.running_mean is not None
    )
