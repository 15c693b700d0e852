"""Training of the segmenter on masks (docs/method.md, section 6)."""

from collections.abc import Callable, Sequence
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from ribseg.checks import check_choice, check_numbers, check_switch
from ribseg.errors import DataError
from ribseg.functional.cam import resize
from ribseg.functional.losses import Place, segmentation_loss
from ribseg.metrics import MaskConfusion
from ribseg.models.inference import margin_of, tiles
from ribseg.modules.decay import DecayingModule, Groups, check_rates
from ribseg.types import MaskSample


def published_segmenter_sgd(groups: Groups) -> Optimizer:
    """SGD of the published DeepLab-v2 recipe."""
    return SGD(groups, momentum=0.9, weight_decay=5e-4)


class SegmentationModule(DecayingModule):
    """Per-pixel classification with three learning rates and polynomial decay per iteration.

    The Trainer's `max_steps` is the length of the decay. Training batches have `image` (N, 3, S, S) and
    `mask` (N, S, S), validation items `image` (3, H, W), `mask` (H, W) and `counts`, see `CountedDataset`.

    Args:
        model: (N, 3, H, W) -> (N, C+1, h, w) logits, with `num_classes` (with background) and
            `parameter_groups()`: backbone, head weights, head biases.
        lr: learning rate of the backbone at the first step.
        head_lr_factor: multiplier of `lr` for the head's weights.
        head_bias_lr_factor: multiplier of `lr` for the head's biases, which have no weight decay.
        power: of the decay `(1 - step / steps)^power`.
        loss_scales: of the images; their losses are summed. With several scales, the maximum of the logits
            over the scales has a loss, too (published multi-scale training: 1, 0.75, 0.5).
        loss_at: see `segmentation_loss`.
        balanced: see `segmentation_loss`.
        class_weights: see `segmentation_loss`.
        optimizer: makes the optimizer from its parameter groups; each has its own `lr`.
        tile: for validation images, see `ribseg.models.inference.predict_labels`.
        margin: see `tile`.

    Raises:
        ConfigError: a number is out of range, or class_weights are not one per label.
        DataError: a validation image and its mask differ in size.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        model: nn.Module,
        lr: float = 2.5e-4,
        head_lr_factor: float = 10.0,
        head_bias_lr_factor: float = 20.0,
        power: float = 0.9,
        loss_scales: Sequence[float] = (1.0,),
        loss_at: Place = "logits",
        balanced: bool = False,
        class_weights: Sequence[float] | None = None,
        optimizer: Callable[[Groups], Optimizer] = published_segmenter_sgd,
        tile: int | None = None,
        margin: int | None = None,
    ) -> None:
        super().__init__()
        labels = int(model.num_classes)  # type: ignore[arg-type] # see Args
        check_rates(lr=lr, head_lr_factor=head_lr_factor, power=power)
        check_rates(head_bias_lr_factor=head_bias_lr_factor)
        check_numbers("loss_scales", loss_scales, above=0)
        check_choice("loss_at", loss_at, get_args(Place))
        check_switch("balanced", balanced)
        if class_weights is not None:  # background first
            check_numbers("class_weights", class_weights, number=labels, low=0)
        # On a CPU 10 to 25 % faster with networks of smp; results differ by rounding errors.
        self.model: Any = model.to(memory_format=torch.channels_last)
        self.lr, self.head_lr_factor, self.head_bias_lr_factor = lr, head_lr_factor, head_bias_lr_factor
        self.power, self.loss_scales, self.loss_at = power, tuple(loss_scales), loss_at
        self.balanced, self.optimizer = balanced, optimizer
        if tile is not None:
            margin_of(tile, margin)  # raises a ConfigError before the training
        self.tile, self.margin = tile, margin
        weights = None if class_weights is None else torch.tensor(list(class_weights), dtype=torch.float32)
        self.register_buffer("class_weights", weights, persistent=False)
        self.val_confusion = MaskConfusion(labels - 1)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, C+1, h, w) logits."""
        return self.model(images)

    def training_step(self, batch: MaskSample, batch_idx: int) -> Tensor:
        """Returns the loss of a batch."""
        loss = self.loss(batch)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch.mask))
        return loss

    def loss(self, batch: MaskSample) -> Tensor:
        """The loss of a batch, summed over the scales."""
        logits = multi_scale_logits(self.model, batch.image, self.loss_scales)
        losses = [
            segmentation_loss(part, batch.mask, self.class_weights, self.balanced, self.loss_at)
            for part in logits
        ]
        return torch.stack(losses).sum()

    def validation_step(self, item: MaskSample, batch_idx: int) -> None:
        """Adds the pixels of one image, predicted at one scale, to the confusion matrix."""
        labels = torch.empty_like(item.mask)
        if item.image.shape[-2:] != labels.shape:
            sizes = [tuple(part.shape[-2:]) for part in (item.image, item.mask)]
            raise DataError(f"expected an image and a mask of one size, got {sizes[0]} and {sizes[1]}")
        for part in tiles((labels.shape[0], labels.shape[1]), self.tile, self.margin):
            rows, columns = part.seen
            pixels = item.image[:, rows, columns]
            logits = resize(self(pixels[None])[0].float(), (pixels.shape[1], pixels.shape[2]))
            labels[part.kept] = logits.argmax(0)[part.inside].to(labels.dtype)
        if item.counts:
            self.val_confusion.update(labels, item.mask)

    def on_validation_epoch_end(self) -> None:
        """Logs the mIoU over all processes."""
        self.log("val/miou", self.val_confusion.compute().miou.float(), prog_bar=True)
        self.val_confusion.reset()

    def parameter_groups(self) -> Groups:
        """Backbone, weights of the head, and its biases."""
        groups, biases_lr = self.model.parameter_groups(), self.lr * self.head_bias_lr_factor
        return [
            {"params": groups.backbone, "lr": self.lr},
            {"params": groups.head_weights, "lr": self.lr * self.head_lr_factor},
            {"params": groups.head_biases, "lr": biases_lr, "weight_decay": 0.0},
        ]


def multi_scale_logits(model: nn.Module, images: Tensor, scales: Sequence[float]) -> list[Tensor]:
    """Logits at each scale and, for several scales, their maximum at the largest size."""
    logits = []
    for scale in scales:
        size = [max(1, round(side * scale)) for side in images.shape[-2:]]
        small = images if scale == 1 else F.interpolate(images, size, mode="bilinear", align_corners=False)
        logits.append(model(small))
    if len(logits) > 1:
        size = list(max(logits, key=Tensor.numel).shape[-2:])
        large = [F.interpolate(part, size, mode="bilinear", align_corners=False) for part in logits]
        logits.append(torch.stack(large).amax(0))
    return logits
