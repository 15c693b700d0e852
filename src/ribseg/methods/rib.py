"""RIB: fine-tunes a classifier on one image without its last activation, and sums the CAMs of all steps.

Reducing Information Bottleneck for Weakly Supervised Semantic Segmentation (NeurIPS 2021), section 4.
Plain PyTorch for any module with `features(x)` and `weight`. Equations, rules and published settings are in
docs/method.md, section 3.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from ribseg.checks import check_choice, check_number, check_numbers, check_switch
from ribseg.functional.cam import class_maps, merge_mirrored
from ribseg.functional.losses import Loss, check_loss, rib_loss
from ribseg.functional.state import autocast_without_cache, evaluating, restored
from ribseg.memory import memory_errors
from ribseg.methods.cam import cam, check_views, head_of, present_classes, without_classes
from ribseg.methods.partition import partition
from ribseg.methods.pooling import APART
from ribseg.methods.presets import PRESETS
from ribseg.methods.stops import area_exceeded, margin_reached, measure, not_finite, steps_taken
from ribseg.types import Adaptation, AdaptationStep, Preset, Stop, Trainable, ViewMaps

Pooling = Callable[[Tensor, Tensor], Tensor]
Reference = tuple[Tensor | None, Tensor | None]
References = Iterable[Reference]

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
        steps: K. With 0 the result is that of `ribseg.cam`.
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

    Attributes:
        uses_references: False if references without a class of the image cannot change its maps, so that they
            need not be loaded (with `trainable="head"`, the default loss, GAP or GNDRP, and finite numbers).

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
        check_switch("compile", compile)
        check_numbers("loss_views", loss_views, low=0, whole=True)
        self.classifier, self.rules, self.weight = classifier, PRESETS[preset], head_of(classifier)
        self.pooling: Pooling = self.rules.pooling if pooling is None else pooling
        self.steps, self.lr, self.head_lr_factor = steps, lr, head_lr_factor
        self.weight_decay, self.momentum, self.power = weight_decay, momentum, power
        self.area_limit, self.area_threshold = area_limit, area_threshold
        self.loss_views, self.reference_chunk = tuple(loss_views), reference_chunk
        if loss is not None:
            check_loss(loss, self.weight.new_zeros(2, len(self.weight)))
        self.uses_references = not self._classes_independent(trainable, loss)
        self.stop_margin = None if self.rules.margin_bounds_loss else margin
        self.loss: Loss = loss or partial(rib_loss, margin=margin if self.rules.margin_bounds_loss else None)
        self.frozen, self.adapted, self.parameters, self.layout = partition(classifier, trainable)
        if compile:
            self.frozen, self.adapted = (torch.compile(f, dynamic=True) for f in (self.frozen, self.adapted))

    def __call__(self, views: Sequence[Tensor], labels: Tensor, references: References = ()) -> Adaptation:
        """Adapts the classifier to one image and returns the summed maps.

        Args:
            views: (2, 3, h_s, w_s) float tensors, the image at each scale with its mirror image second. The
                area stop rule uses the first view.
            labels: (C,) in {0, 1}.
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
        with self.adapting(views, labels, references) as result:
            return result

    def trace(self, views: Sequence[Tensor], labels: Tensor, references: References = ()) -> list[Adaptation]:
        """Returns the results after step 0, 1, ..; the last one equals that of `__call__`.

        Args:
            views: see `__call__`.
            labels: see `__call__`.
            references: see `__call__`, also for errors.
        """
        with self._results(views, labels, references) as results:
            return list(results)

    @contextmanager
    def adapting(
        self, views: Sequence[Tensor], labels: Tensor, references: References = ()
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
        with self._results(views, labels, references) as results:
            *_, last = results
            yield last

    @contextmanager
    def _results(
        self, views: Sequence[Tensor], labels: Tensor, references: References
    ) -> Iterator[Iterable[Adaptation]]:
        """Yields the results after each step, to be consumed inside the block, where weights may change."""
        check_views(views, labels, len(self.weight), self.loss_views)
        if torch.is_inference_mode_enabled():
            raise RuntimeError(
                "RIB needs gradients; instead of inference mode use torch.no_grad or "
                "Trainer(inference_mode=False)"
            )
        if not labels.any():
            yield [without_classes(views)]
        elif self.steps == 0:
            yield [cam(self.classifier, views, labels)]
        else:
            model, adapted = self.classifier, [*self.parameters, self.weight]
            sizes = ", ".join(f"{view.shape[-2]} x {view.shape[-1]}" for view in views)
            work = f"views of {sizes} and {self.reference_chunk or 'all'} reference images at once"
            with evaluating(model), restored(adapted, model), torch.enable_grad(), autocast_without_cache():
                yield self._memory_checked(self._adapt(views, labels, iter(references)), work)

    def _memory_checked(self, results: Iterator[Adaptation], work: str) -> Iterator[Adaptation]:
        """Yields the results; out-of-memory errors name the work."""
        with memory_errors(self.weight.device, work, LESS_MEMORY):
            yield from results

    def _adapt(
        self, views: Sequence[Tensor], labels: Tensor, references: Iterator[Reference]
    ) -> Iterator[Adaptation]:
        """The algorithm; yields the result after each step."""
        classes, target = present_classes(labels), labels.to(self.weight.device, torch.float32)
        present = classes.to(self.weight.device)
        sums = [torch.zeros(len(classes), 1, 1, device=self.weight.device) for _ in views]
        encoded = [self._encode(view) for view in views]
        optimizer, loss = self._optimizer(), torch.zeros((), device=self.weight.device)
        steps: list[AdaptationStep] = []
        for k in range(self.updates + 1):
            raw = self._class_maps(encoded, learning=k < self.updates)
            own = [view.detach()[:, present].float() for view in raw]
            maps = [merge_mirrored(view) for view in own]
            logits = self._own_logits(raw, target)
            steps.append(measure(own[0], maps, logits, target, loss, self.area_threshold))
            stop = self._stop_rule(k, steps[-1])
            sums = self._accumulate(sums, maps, stop)
            # `updates` is one less than `steps` if the last update is skipped.
            taken = k + self.steps - self.updates if stop is None else steps_taken(k, stop, steps[-1])
            yield Adaptation(ViewMaps(sums, classes), classes, taken, stop, tuple(steps))
            if stop or k == self.updates:  # theta_{k + 1} is never read
                break
            loss = self._learn(optimizer, logits, target, next(references, (None, None)))
            self._update(optimizer, k)

    def _stop_rule(self, k: int, measured: AdaptationStep) -> Stop | None:
        """The first rule that ends the adaptation with step k, in the order of the released program."""
        if not_finite(measured.loss):  # of the update that led to theta_k
            return "not_finite"
        if k > 0 and area_exceeded(measured.area, self.area_limit):
            return "area"
        if not measured.maps_finite or not_finite(measured.target_logits):
            return "not_finite"
        return "margin" if margin_reached(measured.target_logits, self.stop_margin) else None

    def _accumulate(self, sums: list[Tensor], maps: Sequence[Tensor], stop: Stop | None) -> list[Tensor]:
        """Adds the maps of a step to the sums, as far as the stop rule permits."""
        if stop == "area" and self.rules.area_keeps_first_view:
            return [sums[0] + maps[0], *sums[1:]]
        if stop in ("area", "not_finite"):
            return sums
        return [total + view for total, view in zip(sums, maps, strict=True)]

    @torch.no_grad()
    def _encode(self, images: Tensor) -> Tensor:
        """The output of the frozen part, computed once per view."""
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
                maps.append(self._maps(features))
        return maps

    def _maps(self, encoded: Tensor) -> Tensor:
        return class_maps(self.adapted(encoded), self.weight)

    def _own_logits(self, maps: Sequence[Tensor], target: Tensor) -> Tensor:
        """(N, C) pooled class maps of the loss views: two rows each, the image and its mirror image."""
        rows = target.expand(2, -1)
        return torch.cat([self.pooling(maps[view], rows) for view in self.loss_views])

    def _learn(self, optimizer: torch.optim.SGD, logits: Tensor, target: Tensor, batch: Reference) -> Tensor:
        """Computes the gradients of a step; returns its scalar loss.

        The backward pass of the own views comes before the references, to release its memory.
        """
        optimizer.zero_grad()
        loss = self._backward(logits, target.expand_as(logits))
        images, labels = batch
        if images is None or labels is None:
            return loss
        labels = labels.to(self.weight.device, self.weight.dtype, non_blocking=True)
        size = self.reference_chunk or len(images)
        for part, rows in zip(images.split(size), labels.split(size), strict=True):
            loss = loss + self._backward(self.pooling(self._maps(self._encode(part)), rows), rows)
        return loss

    def _backward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Accumulates the gradients of the loss, a sum over rows; returns the loss."""
        loss = self.loss(logits, labels)
        loss.backward()
        return loss.detach()

    def _optimizer(self) -> torch.optim.SGD:
        backbone = {"params": self.parameters, "factor": 1.0}
        head = {"params": [self.weight], "factor": self.head_lr_factor}
        decay, momentum = self.weight_decay, self.momentum
        return torch.optim.SGD([backbone, head], lr=self.lr, momentum=momentum, weight_decay=decay)

    def _update(self, optimizer: torch.optim.SGD, k: int) -> None:
        for group in optimizer.param_groups:
            group["lr"] = self.rate(k) * group["factor"]
        optimizer.step()

    def _classes_independent(self, trainable: Trainable, loss: Loss | None) -> bool:
        """Whether a class's weights depend only on rows with this class as target.

        True if only the head learns, with the default loss, which uses target classes only, and GAP or GNDRP,
        which pool each class separately. Custom losses and poolings may mix classes.
        """
        return trainable == "head" and loss is None and type(self.pooling) in APART

    @property
    def has_stop_rule(self) -> bool:
        """Whether the margin or area rule can end an adaptation early."""
        return not (self.area_limit is None and self.stop_margin is None)

    @property
    def updates(self) -> int:
        """Number of computed weight updates, and so of reference batches."""
        return self.steps if self.rules.records_last else max(self.steps - 1, 0)

    def rate(self, step: int) -> float:
        """The backbone's learning rate at a step, with polynomial decay."""
        return self.lr * (1 - step / self.steps) ** self.power
