"""A segmenter's masks as `Trainer.predict`: one image a step, processes independent."""

from typing import NamedTuple

import numpy as np
import pytorch_lightning as pl

from ribseg.methods.inference import class_probabilities, normalized, predict_labels
from ribseg.models.segmenter import Segmenter
from ribseg.types import ImageItem


class MaskPrediction(NamedTuple):
    """What a step leaves: labels, or the probabilities from which a CRF is still to make them.

    Attributes:
        image_id: of the image.
        labels: (H, W) uint8, or None.
        image: (H, W, 3) uint8.
        probabilities: (C+1, H, W) float32, where there are no labels yet.
    """

    image_id: str
    labels: np.ndarray | None
    image: np.ndarray
    probabilities: np.ndarray | None = None


class MaskPredictionModule(pl.LightningModule):
    """Segments images as the segmenter's `inference` says.

    `Trainer.predict`, not `test`: under DDP a test gives some images to two processes.

    Args:
        segmenter: trained.
        defer_crf: leave the CRF to whoever takes the prediction (`MaskWriter` with its processes), so that
            the device need not wait. Images that are cut into tiles are refined here, tile by tile.
    """

    def __init__(self, segmenter: Segmenter, defer_crf: bool = False) -> None:
        super().__init__()
        self.model, self.segmenter, self.defer_crf = segmenter.model, segmenter, defer_crf

    def predict_step(self, item: ImageItem, batch_idx: int) -> MaskPrediction:
        """An image -> its mask, or what the CRF needs."""
        image, settings, given = item.image, dict(self.segmenter.inference), self.segmenter
        tile = settings.get("tile")
        whole = tile is None or max(image.shape[:2]) <= tile
        if not (self.defer_crf and whole and settings.get("crf") is not None):
            labels = predict_labels(self.model, image, mean=given.mean, std=given.std, **settings)
            return MaskPrediction(item.id, labels, image)
        pixels = normalized(self.model, image, given.mean, given.std)
        views = {name: settings[name] for name in ("scales", "flip") if name in settings}
        probabilities = class_probabilities(self.model, pixels, **views)
        return MaskPrediction(item.id, None, image, probabilities.cpu().numpy())
