"""Gradients of layers with respect to the input, `G_l = grad_x sum(T_l)` (RIB paper, section 3)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ribseg.functional.activations import Activation
from ribseg.functional.cam import class_maps
from ribseg.functional.pooling import gap
from ribseg.functional.state import evaluating
from ribseg.methods.cam import features_of, head_of

Forward = Callable[[Tensor], Tensor]


def input_gradients(
    forward: Forward, images: Tensor, layers: Sequence[nn.Module] = (), output: bool = True
) -> list[Tensor]:
    """`grad_x sum(T_l)` of the output of each layer, and of `forward` itself, from one forward pass.

    BatchNorm must be in evaluation mode, as in `gradient_stack`, or the images of a batch affect each other.
    The `grad` of parameters does not change.

    Args:
        forward: calls the layers; images -> a tensor.
        images: (N, C, H, W) float.
        layers: modules whose output is one tensor; outputs of repeated calls are summed.
        output: append the gradient of the sum of `forward`'s output.

    Returns:
        One (N, C, H, W) tensor per layer, in the given order, and one more with `output`.

    Raises:
        ValueError: a layer is not called, or its output does not depend on the input.
        TypeError: a layer does not return a tensor.
    """
    sums: dict[int, Tensor] = {}

    def watch(number: int) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: object, result: object) -> None:
            if not isinstance(result, Tensor):
                raise TypeError(f"expected layer {number} to return a tensor, got {type(result).__name__}")
            # Summed immediately: an in-place activation may overwrite the output.
            sums[number] = sums[number] + result.sum() if number in sums else result.sum()

        return hook

    handles: list[RemovableHandle] = []
    try:
        handles = [layer.register_forward_hook(watch(number)) for number, layer in enumerate(layers)]
        with torch.enable_grad():
            point = images.detach().clone().requires_grad_()
            total = forward(point).sum()
    finally:
        for handle in handles:
            handle.remove()
    missing = [number for number in range(len(layers)) if number not in sums]
    if missing:
        raise ValueError(f"layers {missing} were not called by the forward pass; pass modules that it uses")
    targets = [*(sums[number] for number in range(len(layers))), *([total] if output else [])]
    return [_gradient(target, point, number) for number, target in enumerate(targets)]


def _gradient(target: Tensor, point: Tensor, number: int) -> Tensor:
    found = None
    if target.requires_grad:
        (found,) = torch.autograd.grad(target, point, retain_graph=True, allow_unused=True)
    if found is None:
        raise ValueError(
            f"the output of layer {number} has no gradient for the input: a part in between is detached or "
            "under no_grad"
        )
    return found


def class_scores(classifier: nn.Module, labels: Tensor, activation: Activation | None = None) -> Forward:
    """A forward pass to the predictions of the labeled classes, with global average pooling.

    Args:
        classifier: has `features(x)` and `weight`.
        labels: (N, C) in {0, 1}.
        activation: a, the last activation; None for the logits.

    Returns:
        Images (N, C', H, W) -> (N, C), `t_c a(y_c)`.
    """
    weight, features = head_of(classifier), features_of(classifier)

    def forward(images: Tensor) -> Tensor:
        logits = gap(class_maps(features(images), weight))
        return labels.to(logits) * (logits if activation is None else activation(logits))

    return forward


def gradient_stack(
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    layers: Sequence[nn.Module],
    activation: Activation | None = None,
) -> list[Tensor]:
    """Gradients `G_1 .. G_L` of the layers, followed by that of the class prediction.

    For an image with one label, the gradients with and without activation differ only by the factor `a'(y)`,
    so their normalised maps are equal unless the factor underflows.

    Args:
        classifier: has `features(x)` and `weight`; used in evaluation mode, its mode is restored.
        images: (N, C', H, W) float.
        labels: (N, C) in {0, 1}, the predicted classes to analyze.
        layers: modules that `features` calls, e.g. `[classifier.trunk, *classifier.tail]`.
        activation: the last activation; None for the logits.

    Returns:
        L + 1 tensors (N, C', H, W).

    Raises:
        ValueError: see `input_gradients`.
        TypeError: the classifier lacks `features` or `weight`.
    """
    with evaluating(classifier):
        return input_gradients(class_scores(classifier, labels, activation), images, layers)
