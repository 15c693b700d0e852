"""Training of PSA's affinity network on confident labels (docs/method.md, section 5.5)."""

from typing import Any

from ribseg.functional.psa import FeatureAffinityLosses, feature_affinity_losses
from ribseg.models.psa import PSANet
from ribseg.modules.affinity import AffinityModule, strided_labels
from ribseg.modules.decay import Groups
from ribseg.types import MaskSample


class PSAModule(AffinityModule[PSANet]):
    """Trains features whose distance tells whether two pixels have the same label.

    Published: 8 epochs, batches of 8 crops of 448 pixels.

    Args:
        network: the network to train; its backbone is frozen.
        radius: of the pairs, in pixels at stride 8; crops must have at least 16 * radius pixels.
        lr: learning rate at the first step. Published for new layers: 1.0.
        kwargs: power, ignore_index and optimizer of `AffinityModule`.

    Raises:
        ConfigError: a number is out of range.
    """

    def __init__(self, network: PSANet, radius: int = 5, lr: float = 1.0, **kwargs: Any) -> None:
        super().__init__(network, radius, lr, **kwargs)

    def losses(self, batch: MaskSample) -> FeatureAffinityLosses:
        """The three losses of a batch."""
        features = self.network(batch.image).float()  # the losses' logarithms need float32
        labels = strided_labels(batch.mask, features.shape[-2:])
        return feature_affinity_losses(features, labels, self.radius, self.ignore_index)

    def parameter_groups(self) -> Groups:
        """All parameters outside the frozen backbone, with one learning rate."""
        return [{"params": [p for p in self.network.parameters() if p.requires_grad], "lr": self.lr}]

    def validation_step(self, batch: MaskSample, batch_idx: int) -> None:
        """Logs the loss on the training images without augmentation."""
        self.log("val/loss", self.losses(batch).total, batch_size=len(batch.mask), sync_dist=True)
