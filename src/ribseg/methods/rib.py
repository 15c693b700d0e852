"""RIB: fine-tunes a classifier on one image without its last activation, and sums the CAMs of all steps.

Reducing Information Bottleneck for Weakly Supervised Semantic Segmentation (NeurIPS 2021), section 4.
Plain PyTorch for any module with `features(x)` and `weight`. Equations, rules and published settings are in
docs/method.md, section 3.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ribseg.checks import check_choice, check_number, check_numbers, check_switch
from ribseg.functional.cam import class_maps, merge_mirrored
from ribseg.functional.losses import Loss, check_loss
from ribseg.functional.state import autocast_without_cache, evaluating, restored
from ribseg.memory import memory_errors
from ribseg.methods.cam import cam, checked, head_of, label_vector
from ribseg.methods.partition import partition
from ribseg.methods.pooling import PER_CLASS
from ribseg.methods.presets import PRESETS, measure
from ribseg.types import Adaptation, AdaptationStep, Preset, Trainable, ViewMaps

Pooling = Callable[[Tensor, Tensor], Tensor]
Reference = tuple[Tensor | None, Tensor | None]
References = Iterable[Reference]
NONE: Reference = (None, None)

# Pixels per forward pass of the frozen part on a CPU: two crops of 256, or one of 512. With more, activations
# exceed the CPU's cache, which takes a quarter more time (measured with ResNet-50).
CACHED_PIXELS = 2**17
LESS_MEMORY = (
    "Use smaller chunks of references (rib.reference_chunk=4; the maps stay the same), half precision "
    "(trainer.precision=bf16-mixed), or smaller images (data.max_side=...)"
)


class RIB:
    """Adapts a classifier to one image and returns the summed class activation maps.

    For k = 0, 1, ..: record the maps of all views under theta_k, then take one SGD step on
    `- sum_c t_c y_c` over the image's own views and a batch of reference images, where `y` is the pooled
    class map (equations 6 and 7). The classifier's weights are restored afterwards.

    | preset   | margin m                             | area stop                       | maps summed |
    |----------|--------------------------------------|---------------------------------|-------------|
    | official | stops after the step whose own-view  | from k = 1 on, at once; the     | 0 .. K-1    |
    |          | target logits sum beyond it          | first view's map is summed      |             |
    | paper    | `min(m, y_c)` in the loss            | nothing of that step is summed  | 0 .. K      |
    | fixed    | as official                          | nothing of that step is summed  | 0 .. K-1    |

    The last update of `official` and `fixed` has no effect on the result, so it is skipped. The frozen part
    of the network is computed once per view, not once per step.

    Args:
        classifier: a module with `features(x)` -> (N, D, h, w) and a parameter `weight`, (C, D) or
            (C, D, 1, 1). `trunk` and `tail`, as `ribseg.Classifier` has them, save computation; their layers
            must not be replaced later.
        pooling: callable (maps (N,C,h,w), labels (N,C)) -> (N,C); None: the preset's GNDRP.
        steps: K. With 0 the result is that of `ribseg.cam`, and with 1 as well, but for the preset "paper":
            the first update moves the second map.
        lr: learning rate at k = 0; it decays as (1 - k/K)^power.
        head_lr_factor: multiplier of `lr` for the head.
        weight_decay: of SGD.
        margin: m; None disables it.
        area_limit: the adaptation ends when the fraction of locations of the first view whose normalised map
            exceeds `area_threshold` is above this limit; None disables it.
        area_threshold: see `area_limit`.
        loss_views: indices of the views in the loss; the others only contribute maps.
        trainable: the adapted part: "published" (layer3, layer4 and head), "layer4" (and head), or "head". Of
            a transformer: the last two blocks, norm and head; the last block, norm and head; the head.
        preset: see the table.
        momentum: of SGD; 1e-4 because the released program passes its weight decay in this place.
        power: of the learning rate decay.
        reference_chunk: reference images per forward pass; None: the whole batch. Smaller chunks need less
            memory. The gradients are summed, so the maps are equal up to rounding.
        compile: use `torch.compile` with dynamic image sizes; compiling takes one or two minutes, which pays
            off for thousands of images on a GPU.
        loss: callable (logits (N,C), labels (N,C)) -> scalar *sum* over rows: own views and references are
            passed in separate calls. None: `ribseg.functional.losses.rib_loss`, the only loss that the margin
            of "paper" bounds.
        views: number of views, the first ones, that are looked at and summed; None: all.

    Attributes:
        uses_references: False if references without a class of the image cannot change its maps (with
            `trainable="head"`, the default loss, a pooling of `ribseg`, and finite numbers). They need not be
            loaded then, and those that are given are passed over.
        updates: number of computed weight updates, and so of reference batches.
        has_stop_rule: whether the margin or area rule can end an adaptation early.

    Raises:
        ConfigError: an argument is out of range, or the loss is not a finite scalar with a gradient.
    """

    def __init__(
        self,
        classifier: nn.Module,
        pooling: Pooling | None = None,
        steps: int = 10,
        lr: float = 8e-6,
        head_lr_factor: float = 10.0,
        weight_decay: float = 1e-4,
        margin: float | None = 600.0,
        area_limit: float | None = 0.7,
        area_threshold: float = 0.3,
        loss_views: Sequence[int] = (0, 2, 3),
        trainable: Trainable = "published",
        preset: Preset = "official",
        momentum: float = 1e-4,
        power: float = 0.9,
        reference_chunk: int | None = None,
        compile: bool = False,
        loss: Loss | None = None,
        views: int | None = None,
    ) -> None:
        check_choice("preset", preset, list(PRESETS))
        check_number("steps", steps, low=0, whole=True)
        rates = {"lr": lr, "head_lr_factor": head_lr_factor, "weight_decay": weight_decay}
        for name, value in (rates | {"momentum": momentum, "power": power}).items():
            check_number(name, value, low=0)
        check_number("margin", margin, words=(None,))
        check_number("area_limit", area_limit, 0, 1, words=(None,))
        check_number("area_threshold", area_threshold, 0, 1)
        check_number("reference_chunk", reference_chunk, low=1, whole=True, words=(None,))
        check_number("views", views, low=1, whole=True, words=(None,))
        check_switch("compile", compile)
        check_numbers("loss_views", loss_views, low=0, whole=True)
        self.classifier, self.weight = classifier, head_of(classifier)
        self.steps, self.lr, self.head_lr_factor = steps, lr, head_lr_factor
        self.weight_decay, self.momentum, self.power = weight_decay, momentum, power
        self.area_threshold, self.loss_views, self.views = area_threshold, tuple(loss_views), views
        self.reference_chunk, self.rules = reference_chunk, PRESETS[preset](margin, area_limit)
        self.updates = self.rules.updates(steps)
        self.has_stop_rule = self.rules.margin is not None or area_limit is not None
        self.pooling: Pooling = self.rules.pooling if pooling is None else pooling
        if loss is not None:
            check_loss(loss, self.weight.new_zeros(2, len(self.weight)))
        self.loss: Loss = loss or self.rules.loss
        # A row of the head learns from its own class alone if loss and pooling take each class by itself.
        self.uses_references = not (trainable == "head" and loss is None and type(self.pooling) in PER_CLASS)
        self.frozen, self.adapted, self.parameters, self.layout = partition(classifier, trainable)
        if compile:
            self.frozen, self.adapted = (torch.compile(f, dynamic=True) for f in (self.frozen, self.adapted))

    def __call__(
        self, views: Sequence[Tensor], labels: Tensor | Sequence[int], references: References = ()
    ) -> Adaptation:
        """Adapts the classifier to one image and returns the summed maps.

        Args:
            views: (2, 3, h_s, w_s) float tensors, the image at each scale with its mirror image second. The
                area stop rule uses the first view.
            labels: a tensor (C,) in {0, 1}, or a list of class indices.
            references: yields (images (B,3,S,S), labels (B,C)) per step, consumed lazily; with (None, None),
                or after its end, the loss is over the image's own views only.

        Returns:
            Maps per view, summed over the steps; see `ribseg.types.Adaptation`. `stopped` is "not_finite"
            if a map, logit or loss was not finite; then the maps are those of the previous steps.

        Raises:
            ValueError: wrong shapes of views or labels, or a loss view does not exist.
            RuntimeError: called under `torch.inference_mode`, which disables gradients.
            DeviceMemoryError: the device is out of memory.
        """
        return self.trace(views, labels, references)[-1]

    def trace(
        self, views: Sequence[Tensor], labels: Tensor | Sequence[int], references: References = ()
    ) -> list[Adaptation]:
        """Returns the results after step 0, 1, ..; the last one equals that of `__call__`.

        Args:
            views: see `__call__`.
            labels: see `__call__`.
            references: see `__call__`, also for errors.
        """
        with self._adapted(views, labels, references) as results:
            return results

    @contextmanager
    def adapting(
        self, views: Sequence[Tensor], labels: Tensor | Sequence[int], references: References = ()
    ) -> Iterator[Adaptation]:
        """Adapts to one image; the classifier keeps the adapted weights inside the `with` block.

        For inspecting the adapted classifier: gradients, logits, further maps. Its weights are restored
        afterwards, also after an error. Inside they are those of the last maps: theta_K with the preset
        "paper", theta_{K-1} with the others; possibly non-finite if `stopped` is "not_finite".

        Args:
            views: see `__call__`.
            labels: see `__call__`.
            references: see `__call__`.

        Yields:
            The result of `__call__`, with the same errors.
        """
        with self._adapted(views, labels, references) as results:
            yield results[-1]

    @contextmanager
    def _adapted(
        self, views: Sequence[Tensor], labels: Tensor | Sequence[int], references: References
    ) -> Iterator[list[Adaptation]]:
        """Yields the results after each step; inside, the weights are those of the last one."""
        views, labels = views[: self.views], label_vector(labels, len(self.weight))
        classes = checked(views, labels, len(self.weight), self.loss_views)
        if torch.is_inference_mode_enabled():
            raise RuntimeError(
                "RIB needs gradients; instead of inference mode use torch.no_grad or "
                "Trainer(inference_mode=False)"
            )
        if not len(classes) or self.steps == 0:
            yield [cam(self.classifier, views, labels)]
            return
        batches = (b if self.uses_references or _shares(b, labels) else NONE for b in references)
        model, adapted = self.classifier, [*self.parameters, self.weight]
        sizes = ", ".join(f"{view.shape[-2]} x {view.shape[-1]}" for view in views)
        work = f"views of {sizes} and {self.reference_chunk or 'all'} reference images at once"
        with evaluating(model), restored(adapted, model), torch.enable_grad(), autocast_without_cache():
            with memory_errors(self.weight.device, work, LESS_MEMORY):
                results = self._adapt(views, classes, labels, batches)
            yield results

    def _adapt(
        self, views: Sequence[Tensor], classes: Tensor, labels: Tensor, references: Iterator[Reference]
    ) -> list[Adaptation]:
        """The paragraphs of `ribseg.functional.rib`; returns the result after each step."""
        device = self.weight.device
        present, target = classes.to(device), labels.to(device, torch.float32)
        head: dict[str, Any] = {"params": [self.weight], "lr": self.head_lr_factor * self.lr}
        groups = [{"params": self.parameters}, head]
        sgd = torch.optim.SGD(groups, self.lr, self.momentum, weight_decay=self.weight_decay)
        schedule = torch.optim.lr_scheduler.PolynomialLR(sgd, self.steps, self.power)
        sums = [torch.zeros(len(classes), 1, 1, device=device) for _ in views]
        encoded = [self._encode(view) for view in views]  # by the part that does not learn, once
        loss, history, results = torch.zeros((), device=device), list[AdaptationStep](), list[Adaptation]()

        for k in range(self.updates + 1):
            # The maps under theta_k, A_c(u) = w_c f(u), and their sums
            A = self._class_maps(encoded, learning=k < self.updates)
            raw = [a.detach()[:, present].float() for a in A]
            cams = [merge_mirrored(a) for a in raw]
            y = torch.cat([self.pooling(A[v], target.expand(2, -1)) for v in self.loss_views])  # equation 7
            history.append(measure(raw[0], cams, y, target, loss, self.area_threshold))
            stop = self.rules.stop(k, history[-1])
            sums, taken = self.rules.add(sums, cams, stop), self.rules.taken(k, stop, history[-1])
            results.append(Adaptation(ViewMaps(sums, classes), classes, taken, stop, tuple(history)))
            if stop or k == self.updates:  # nothing reads theta_{k + 1}
                break

            # A step on the image's own views and a batch of references
            sgd.zero_grad()
            loss = self._gradients(y, target, next(references, NONE))  # equation 6
            sgd.step()
            schedule.step()
        return results

    @torch.no_grad()
    def _encode(self, images: Tensor) -> Tensor:
        """The output of the frozen part for (N, 3, H, W) images."""
        images = images.to(self.weight.device, non_blocking=True, memory_format=self.layout)
        few = max(1, CACHED_PIXELS // (images.shape[-2] * images.shape[-1]))
        # Only ribseg's own layout is split; other modules get the whole batch.
        if self.weight.device.type == "cpu" and self.layout == torch.channels_last and len(images) > few:
            return torch.cat([self.frozen(part) for part in images.split(few)])
        return self.frozen(images)

    def _class_maps(self, encoded: Sequence[Tensor], learning: bool) -> list[Tensor]:
        """(2, C, h_s, w_s) class maps of each view, with gradients for the loss views."""
        maps = []
        for number, features in enumerate(encoded):
            with torch.set_grad_enabled(learning and number in self.loss_views):
                maps.append(class_maps(self.adapted(features), self.weight))
        return maps

    def _gradients(self, y: Tensor, target: Tensor, batch: Reference) -> Tensor:
        """Adds up the gradients of the own views' (N, C) logits and the references; returns the loss."""
        loss = self.loss(y, target.expand_as(y))
        loss.backward()  # before the references, to release its memory
        total, (images, labels) = loss.detach(), batch
        if images is None or labels is None:
            return total
        labels = labels.to(self.weight.device, self.weight.dtype, non_blocking=True)
        size = self.reference_chunk or len(images)
        for part, rows in zip(images.split(size), labels.split(size), strict=True):
            maps = class_maps(self.adapted(self._encode(part)), self.weight)
            loss = self.loss(self.pooling(maps, rows), rows)
            loss.backward()
            total = total + loss.detach()
        return total


def _shares(batch: Reference, labels: Tensor) -> bool:
    """Whether reference images have a class of the image with these (C,) labels."""
    return batch[1] is not None and bool((batch[1].cpu() * labels.cpu()).any())
