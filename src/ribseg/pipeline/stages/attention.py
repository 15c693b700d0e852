"""The stage that refines maps by the classifier's attention (docs/method.md, section 5.6)."""

from typing import ClassVar

import pytorch_lightning as pl

from ribseg.data.io.maps import load_maps, map_path
from ribseg.modules.attention import AttentionModule
from ribseg.pipeline.recipe.context import Context
from ribseg.pipeline.stages.affinity import MASKS
from ribseg.pipeline.stages.chains import ATTENTION, RefinementStage
from ribseg.pipeline.stages.classifier import trained_classifier
from ribseg.pipeline.stages.maps import MapStage
from ribseg.store.artefact import Artefact
from ribseg.store.digest import plain
from ribseg.store.stage import CROPS, NOT_FOR_MAPS

# Settings of `refine` that it does not depend on.
OTHERS = (
    *("refine.labels", "refine.walk", "refine.maps_threshold", "refine.crf", "refine.pixel_adaptive"),
    *MASKS,
)


class AttentionStage(RefinementStage, MapStage):
    """Propagates the maps of all images by the attention of the classifier, a transformer."""

    kind = ATTENTION
    parts = ("refine", *MapStage.parts)
    neutral = (*OTHERS, *CROPS, "data.scales", *NOT_FOR_MAPS)
    scales: ClassVar[tuple[float, ...] | None] = (1.0,)

    def required(self, context: Context) -> tuple[str, ...]:
        """The maps, and the classifier."""
        return ("classifier", self.chain.maps)

    def module(self, context: Context, artefact: Artefact) -> pl.LightningModule:
        """The `AttentionModule`."""
        source = context.artefacts[self.chain.maps].folder
        return AttentionModule(
            trained_classifier(context),
            lambda image_id: load_maps(map_path(source, image_id)),
            **plain(context.cfg.refine.attention),
        )
