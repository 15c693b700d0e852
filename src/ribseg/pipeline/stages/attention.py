"""The stage that refines maps by the classifier's attention (docs/method.md, section 5.6)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, ClassVar

import pytorch_lightning as pl

from ribseg.checks import check_arguments, within
from ribseg.functional.attention import check_attention
from ribseg.models.attention import attention_layers
from ribseg.modules.refining import AttentionModule
from ribseg.pipeline.recipe.methods import ATTENTION
from ribseg.pipeline.recipe.session import Session
from ribseg.pipeline.stages.chains import Chain, RefinementStage
from ribseg.pipeline.stages.classifier import ClassifierStage
from ribseg.pipeline.stages.maps import MapStage
from ribseg.store.settings import counted, setting
from ribseg.store.stage import Stage


@dataclass(frozen=True, kw_only=True)
class AttentionSettings:
    """The settings of `refine` for the refinement by attention."""

    attention: Mapping[str, Any] = setting(partial(check_arguments, check_attention))


class AttentionStage(RefinementStage, MapStage):
    """Propagates the maps of all images by the attention of the classifier, a transformer.

    Args:
        session: of the run.
        chain: see `RefinementStage`.
        maps: see there.
        classifier: the stage that trains it.
    """

    kind = ATTENTION
    scales: ClassVar[tuple[float, ...] | None] = (1.0,)

    def __init__(
        self, session: Session, chain: Chain, maps: Stage[Session], classifier: ClassifierStage
    ) -> None:
        super().__init__(session, chain, maps)
        self.cfg, self.classifier = session.settings[AttentionSettings], classifier

    def inputs(self) -> Sequence[Stage[Session]]:
        """The maps, and the classifier."""
        return [self.classifier, self.maps]

    def settings(self) -> dict[str, Any]:
        """Its own, and those of maps."""
        return self.map_settings("max_side") | {"refine": counted(self.cfg)}

    def check(self) -> None:
        """Looks for the attention in the classifier."""
        with within("refine.attention"):
            attention_layers(self.classifier.checked, self.cfg.attention["blocks"])

    @cached_property
    def module(self) -> pl.LightningModule:
        """The `AttentionModule`."""
        return AttentionModule(self.classifier.trained, self.read_maps, **self.cfg.attention)
