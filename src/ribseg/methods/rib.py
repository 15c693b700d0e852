"""RIB: fine-tunes a classifier on one image without its last activation, and sums the CAMs on the way.

Reducing Information Bottleneck for Weakly Supervised Semantic Segmentation (NeurIPS 2021), section 4.
Plain PyTorch: any module with `features(x)` and `weight` will do. Equations, rules and the published settings
are in docs/method.md, section 3.
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
from ribseg.methods.cam import cam, check_views, head_of, present_classes
from ribseg.methods.memory import memory_errors
from ribseg.methods.partition import partition
from ribseg.methods.pooling import APART
from ribseg.methods.presets import PRESETS
from ribseg.methods.stops import area_exceeded, margin_reached, measure, not_finite, steps_taken
from ribseg.types import Adaptation, AdaptationStep, Preset, Stop, Trainable, ViewMaps

Pooling = Callable[[Tensor, Tensor], Tensor]
Reference = tuple[Tensor | None, Tensor | None]
References = Iterable[Reference]

# Pixels that pass the frozen part at once on a CPU: two crops of 256, or one of 512. With more, what lies
# between two layers falls out of its cache, which costs a quarter more time (measured with ResNet-50).
CACHED_PIXELS = 2**17
LESS_MEMORY = (
    "Pass fewer of them at once (rib.reference_chunk=4; the maps stay the same), compute in half precision "
    "(trainer.precision=bf16-mixed), or make large images smaller (data.max_side=...)"
)


class RIB:
    """Adapts a classifier to one image and returns the summed class activation maps.

    For k = 0, 1, ..: record the maps of all views under theta_k, then one SGD step on
    `- sum_c t_c y_c` over the image's own views and a batch of reference images, where `y` is the pooled
    class map (equations 6 and 7). The classifier itself is left exactly as it was.

    | preset   | margin m                             | area stop                       | maps summed |
    |----------|--------------------------------------|---------------------------------|-------------|
    | official | stops after the step whose own-view  | from k = 1 on, at once; the     | 0 .. K-1    |
    |          | target logits sum beyond it          | first view's map is summed      |             |
    | paper    | `min(m, y_c)` in the loss            | nothing of that step is summed  | 0 .. K      |
    | fixed    | as official                          | nothing of that step is summed  | 0 .. K-1    |

    The last update of `official` and `fixed` changes nothing that is read, so it is not computed. The part of
    the network that does not learn sees each view once, not once per step.

    Args:
        classifier: a module with `features(x)` -> (N, D, h, w) and a parameter `weight`, (C, D) or
            (C, D, 1, 1). `trunk` and `tail`, as `ribseg.Classifier` has them, save work; their layers are
            looked at now and must not be replaced later.
        pooling: callable (maps (N,C,h,w), labels (N,C)) -> (N,C); None takes the preset's GNDRP.
        steps: K. With 0 the result is that of `ribseg.cam`.
        lr: learning rate at k = 0; it decays as (1 - k/K)^power.
        head_lr_factor: the head's rate is so many times `lr`.
        weight_decay: of SGD.
        margin: m; None switches it off.
        area_limit: adaptation ends when the share of locations of the first view whose normalised map
            exceeds `area_threshold` is larger than this; None switches it off.
        area_threshold: see above.
        loss_views: which views carry the loss; the others give maps only.
        trainable: what learns: "published" (layer3, layer4 and head), "layer4" (and head), or "head".
        preset: see the table.
        momentum: of SGD. The released program's optimizer passes its weight decay in this place, hence 1e-4.
        power: of the decay.
        reference_chunk: reference images per pass through the network; None: all of a batch. Fewer need less
            memory. The gradients are summed, so the maps are the same but for rounding.
        compile: let `torch.compile` fuse the network's operations, for any image size at once; takes a minute
            or two, once, and is meant for thousands of images on a GPU.
        loss: callable (logits (N,C), labels (N,C)) -> scalar, a *sum* over rows: they are passed in parts,
            own views and references apart. None takes the preset's, `ribseg.functional.losses.rib_loss`;
            only that is bounded by the margin of "paper".

    Attributes:
        uses_references: False where references that share no class with the image change no bit of its maps
            (with `trainable="head"`, our loss and our poolings, for numbers that are finite): they need not
            be loaded.

    Raises:
        ConfigError: an argument is out of range, or the loss gives no finite scalar with a gradient.
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
        self.uses_references = not self._rows_apart(trainable, loss)
        self.stop_margin = None if self.rules.margin_bounds_loss else margin
        self.loss: Loss = loss or partial(rib_loss, margin=margin if self.rules.margin_bounds_loss else None)
        self.frozen, self.adapted, self.parameters, self.layout = partition(classifier, trainable)
        if compile:
            self.frozen, self.adapted = (torch.compile(f, dynamic=True) for f in (self.frozen, self.adapted))

    def __call__(self, views: Sequence[Tensor], labels: Tensor, references: References = ()) -> Adaptation:
        """Adapts to one image.

        Args:
            views: (2, 3, h_s, w_s) float tensors, the image at each scale with its mirror image second. The
                first is the one whose area the stop rule looks at.
            labels: (C,) in {0, 1}.
            references: yields (images (B,3,S,S), labels (B,C)) per step, consumed lazily; (None, None), or
                nothing more, leaves the loss to the image's own views.

        Returns:
            Maps per view, summed over the steps; see `ribseg.types.Adaptation`. `stopped` is "not_finite"
            if a map, logit or loss was not finite; then the maps are those of the steps before.

        Raises:
            ValueError: views or labels have the wrong shape, or a loss view does not exist.
            RuntimeError: called under `torch.inference_mode`, where gradients cannot be had.
            DeviceMemoryError: the device's memory does not suffice.
        """
        with self.adapting(views, labels, references) as result:
            return result

    def trace(self, views: Sequence[Tensor], labels: Tensor, references: References = ()) -> list[Adaptation]:
        """What `__call__` would return if it ended with step 0, 1, ..; the last is what it returns.

        Args:
            views: see `__call__`.
            labels: see `__call__`.
            references: see `__call__`; errors are the same, too.
        """
        with self._results(views, labels, references) as results:
            return list(results)

    @contextmanager
    def adapting(
        self, views: Sequence[Tensor], labels: Tensor, references: References = ()
    ) -> Iterator[Adaptation]:
        """Adapts to one image; inside the block the classifier keeps the adapted weights.

        For looking at what the adaptation did: gradients, logits, further maps. Afterwards, also after an
        error, the classifier is as it was. The weights inside are those of the last maps: theta_K with the
        preset "paper", theta_{K-1} with the others. They may be not finite if `stopped` says so.

        Args:
            views: see `__call__`.
            labels: see `__call__`.
            references: see `__call__`.

        Yields:
            What `__call__` returns; errors are the same, too.
        """
        with self._results(views, labels, references) as results:
            *_, last = results
            yield last

    @contextmanager
    def _results(
        self, views: Sequence[Tensor], labels: Tensor, references: References
    ) -> Iterator[Iterable[Adaptation]]:
        """The results after each step, to be asked for inside the block, where the classifier may change."""
        check_views(views, labels, len(self.weight), self.loss_views)
        if torch.is_inference_mode_enabled():
            raise RuntimeError("RIB needs gradients; use torch.no_grad or Trainer(inference_mode=False)")
        if not labels.any():
            empty = present_classes(labels)
            maps = ViewMaps([view.new_zeros(0, 1, 1) for view in views], empty)
            yield [Adaptation(maps, empty, 0, None)]
        elif self.steps == 0:
            yield [cam(self.classifier, views, labels)]
        else:
            model, moving = self.classifier, [*self.parameters, self.weight]
            sizes = ", ".join(f"{view.shape[-2]} x {view.shape[-1]}" for view in views)
            work = f"views of {sizes} and {self.reference_chunk or 'all'} reference images at once"
            with evaluating(model), restored(moving, model), torch.enable_grad(), autocast_without_cache():
                yield self._explained(self._adapt(views, labels, iter(references)), work)

    def _explained(self, results: Iterator[Adaptation], work: str) -> Iterator[Adaptation]:
        """The results; where memory runs out on the way to them, the error says what it was needed for."""
        with memory_errors(self.weight.device, work, LESS_MEMORY):
            yield from results

    def _adapt(
        self, views: Sequence[Tensor], labels: Tensor, references: Iterator[Reference]
    ) -> Iterator[Adaptation]:
        """The method: for each step the maps, the loss, the stop rules, the result so far, the update."""
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
            # The last of `updates` and of `steps` differ where the last update is not computed.
            taken = k + self.steps - self.updates if stop is None else steps_taken(k, stop, steps[-1])
            yield Adaptation(ViewMaps(sums, classes), classes, taken, stop, tuple(steps))
            if stop or k == self.updates:  # theta_{k + 1} is never read
                break
            loss = self._learn(optimizer, logits, target, next(references, (None, None)))
            self._update(optimizer, k)

    def _stop_rule(self, k: int, measured: AdaptationStep) -> Stop | None:
        """The first rule that ends the adaptation with step k, in the order of the released program."""
        if not_finite(measured.loss):  # its update has made theta_k
            return "not_finite"
        if k > 0 and area_exceeded(measured.area, self.area_limit):
            return "area"
        if not measured.maps_finite or not_finite(measured.target_logits):
            return "not_finite"
        return "margin" if margin_reached(measured.target_logits, self.stop_margin) else None

    def _accumulate(self, sums: list[Tensor], maps: Sequence[Tensor], stop: Stop | None) -> list[Tensor]:
        """The sums with the maps of a step, as far as the rule that ends the adaptation lets them count."""
        if stop == "area" and self.rules.area_keeps_first_view:
            return [sums[0] + maps[0], *sums[1:]]
        if stop in ("area", "not_finite"):
            return sums
        return [total + view for total, view in zip(sums, maps, strict=True)]

    @torch.no_grad()
    def _encode(self, images: Tensor) -> Tensor:
        """What does not learn, computed once per view instead of once per step."""
        images = images.to(self.weight.device, non_blocking=True, memory_format=self.layout)
        few = max(1, CACHED_PIXELS // (images.shape[-2] * images.shape[-1]))
        # Modules of others get all at once.
        if self.weight.device.type == "cpu" and self.layout == torch.channels_last and len(images) > few:
            return torch.cat([self.frozen(part) for part in images.split(few)])
        return self.frozen(images)

    def _class_maps(self, encoded: Sequence[Tensor], learning: bool) -> list[Tensor]:
        """(2, C, h_s, w_s) class maps of each view, with gradients where it carries the loss."""
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
        """The loss of a step, scalar; its gradients lie at the weights then.

        The own views' are made before the references pass: what they keep in memory is free by then.
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
        """The loss of some rows, whose gradients are added: it is a sum, so rows may come in parts."""
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

    def _rows_apart(self, trainable: Trainable, loss: Loss | None) -> bool:
        """Whether each class learns from the rows that are labelled with it alone.

        So it is where only the head learns, our loss looks at the target classes of a row, and our pooling at
        one class at a time. What one brings oneself may mix the classes.
        """
        return trainable == "head" and loss is None and type(self.pooling) in APART

    @property
    def has_stop_rule(self) -> bool:
        """Whether the margin or the area can end an adaptation before its last step."""
        return not (self.area_limit is None and self.stop_margin is None)

    @property
    def updates(self) -> int:
        """How many steps change weights that are read, and so how many batches of references are used."""
        return self.steps if self.rules.records_last else max(self.steps - 1, 0)

    def rate(self, step: int) -> float:
        """The backbone's learning rate at a step: polynomial decay, as in the classifier's training."""
        return self.lr * (1 - step / self.steps) ** self.power
