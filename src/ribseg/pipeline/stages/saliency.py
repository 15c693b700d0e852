"""The stage that makes saliency maps of the images by a published network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from ribseg.checks import check_number, within
from ribseg.data.base import BaseDataset
from ribseg.errors import ConfigError
from ribseg.files import missing_ids
from ribseg.models.saliency import KINDS, SaliencyNetwork, write_saliency
from ribseg.pipeline.recipe.session import Session
from ribseg.pipeline.stages.variants import Variant
from ribseg.store.artefact import Artefact
from ribseg.store.settings import counted, setting
from ribseg.store.stage import ImageStage

MAPS = "maps"


@dataclass(frozen=True, kw_only=True)
class SaliencySettings:
    """The settings of `refine` for saliency maps that a run makes."""

    saliency: str | None = setting()
    variants: Sequence[str] = setting(neutral="counted with the masks")
    saliency_network: str | None = setting(default=None)
    saliency_side: int | None = setting(partial(check_number, low=1, whole=True, words=(None,)), default=None)

    def __post_init__(self) -> None:
        """Raises a ConfigError if a setting of the network has no effect."""
        if self.saliency is not None and not any(Variant.parse(name).saliency for name in self.variants):
            raise ConfigError(
                f"refine.saliency={self.saliency} has no effect with refine.variants={list(self.variants)}: "
                "add one with scenes or saliency, as refine=saliency does, or set refine.saliency=null"
            )
        for name in ("saliency_network", "saliency_side"):
            if getattr(self, name) is not None and not self.made:
                raise ConfigError(
                    f"refine.{name} has no effect with refine.saliency={self.saliency}: expected one of "
                    f"{', '.join(KINDS)}"
                )

    @property
    def made(self) -> bool:
        """Whether the run makes the maps; otherwise `saliency` is a folder of maps, if there are any."""
        return self.saliency in KINDS


class SaliencyStage(ImageStage[Session]):
    """Makes the saliency maps of all images with a class."""

    name = "saliency"

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self.cfg = session.settings[SaliencySettings]

    def wanted(self) -> bool:
        """Whether the run makes maps, which a variant of its masks needs then."""
        return self.cfg.made

    def settings(self) -> dict[str, Any]:
        """Kind, file and size of the network."""
        return {"refine": counted(self.cfg)}

    def data(self) -> str:
        """All images and labels."""
        return self.session.data.fingerprint(masks=False)

    def ids(self) -> Sequence[str]:
        """The images with a class."""
        return self.session.data.labelled_ids

    def missing(self, target: Artefact, ids: Sequence[str]) -> list[str]:
        """Those of the images that have no map."""
        return missing_ids(target.folder / MAPS, ids, ".png")

    def check(self) -> None:
        """Opens the network, and tries it on a small image, if maps will be made."""
        if self.session.run.computes(self):
            _ = self.network

    @cached_property
    def network(self) -> SaliencyNetwork:
        """The network of `refine.saliency_network`.

        Raises:
            ConfigError: there is none, or it is no saliency network.
        """
        cfg = self.cfg
        if cfg.saliency_network is None:
            raise ConfigError(
                f"refine.saliency={cfg.saliency} needs refine.saliency_network=FILE, an ONNX file of the "
                "network, or give a folder of maps in the place of the name"
            )
        with within("refine.saliency_network"):
            return SaliencyNetwork(cfg.saliency_network, str(cfg.saliency), cfg.saliency_side)

    def make(self, target: Artefact, ids: Sequence[str]) -> None:
        """Writes the maps of images, by all processes of this computer."""
        work = partial(make_saliency, self.session.data.folders, self.network, target.folder / MAPS)
        self.session.do(work, ids, "Saliency maps")


def make_saliency(
    folders: Mapping[str, BaseDataset], network: SaliencyNetwork, place: Path, image_id: str
) -> None:
    """Writes the saliency map of one image."""
    write_saliency(place / f"{image_id}.png", network(folders[image_id].image(image_id)))
