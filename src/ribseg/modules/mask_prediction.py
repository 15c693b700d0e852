"""Mask prediction with a segmenter in `Trainer.predict`, one image per step."""

from typing import NamedTuple

import numpy as np
import pytorch_lightning as pl

from ribseg.models.inference import class_probabilities, normalized, predict_labels
from ribseg.models.load import Segmenter
from ribseg.types import Sample


class MaskPrediction(NamedTuple):
    """Result of a step: labels, or probabilities for a deferred CRF.

    Attributes:
        image_id: of the image.
        labels: (H, W) uint8, or None.
        image: (H, W, 3) uint8.
        probabilities: (C+1, H, W) float32 if `labels` is None.
    """

    image_id: str
    labels: np.ndarray | None
    image: np.ndarray
    probabilities: np.ndarray | None = None


class MaskPredictionModule(pl.LightningModule):
    """Segments images with the segmenter's `inference` settings.

    For `Trainer.predict`, not `test`, which gives some images to two processes under DDP.

    Args:
        segmenter: trained.
        defer_crf: leave the CRF to the receiver of the predictions (the processes of `MaskWriter`), so that
            the device does not wait. Tiled images are refined here, tile by tile.
    """

    def __init__(self, segmenter: Segmenter, defer_crf: bool = False) -> None:
        super().__init__()
        self.model, self.segmenter, self.defer_crf = segmenter.model, segmenter, defer_crf

    def predict_step(self, item: Sample, batch_idx: int) -> MaskPrediction:
        """Returns the mask of an image, or the probabilities for the CRF."""
        image, settings, segmenter = item.image, dict(self.segmenter.inference), self.segmenter
        tile = settings.get("tile")
        whole = tile is None or max(image.shape[:2]) <= tile
        if not (self.defer_crf and whole and settings.get("crf") is not None):
            labels = predict_labels(self.model, image, mean=segmenter.mean, std=segmenter.std, **settings)
            return MaskPrediction(item.id, labels, image)
        pixels = normalized(self.model, image, segmenter.mean, segmenter.std)
        views = {name: settings[name] for name in ("scales", "flip") if name in settings}
        probabilities = class_probabilities(self.model, pixels, **views)
        return MaskPrediction(item.id, None, image, probabilities.cpu().numpy())
