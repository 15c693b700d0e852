"""DeepLab-v3+, FPN, SegFormer and other segmenters of the package segmentation-models-pytorch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from ribseg.checks import check_switch
from ribseg.errors import ConfigError, reason
from ribseg.models.backbone import STAGE, Backbone, pad_images, to_size
from ribseg.models.deeplab import Norm, SegmenterNetwork
from ribseg.models.weights import load_fitting


class SMPSegmenter(SegmenterNetwork):
    """A segmenter of segmentation-models-pytorch, under the interface of `DeepLabV2`.

    Images may have any size: they are zero-padded (the mean color) at the right and bottom for the encoder,
    and the logits are cropped to the image.

    Args:
        num_classes: C + 1, with background.
        name: of the architecture: "deeplabv3plus", "segformer", "unet", "upernet", "fpn", ...
        encoder: "resnet101", "mit_b2", or any timm encoder with the prefix "tu-".
        pretrained: load the encoder's ImageNet weights.
        weights: a file of encoder weights (.pth or .safetensors) with the encoder's own names, nested and
            prefixed in any way.
        norm: see `DeepLabV2`.
        kwargs: passed on to the architecture.
        backbone_kwargs: passed on to timm with an encoder "tu-NAME", as those of the same network in
            `ribseg.Classifier`.

    Attributes:
        settings: arguments that build an equal network, without its weights.

    Raises:
        ConfigError: the package rejects the settings.
    """

    architecture: ClassVar[str] = "smp"

    def __init__(
        self,
        num_classes: int,
        name: str = "deeplabv3plus",
        encoder: str = "resnet101",
        pretrained: bool = False,
        weights: str | Path | None = None,
        norm: Norm = "train",
        kwargs: Mapping[str, Any] | None = None,
        backbone_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(num_classes, norm)
        check_switch("pretrained", pretrained)
        extra, of_backbone = dict(kwargs or {}), dict(backbone_kwargs or {})
        self.settings = {
            "num_classes": num_classes, "name": name, "encoder": encoder, "norm": norm, "kwargs": extra,
            "backbone_kwargs": of_backbone,
        }  # fmt: skip
        self.network: Any = _create(name, encoder, pretrained, num_classes, extra | of_backbone)
        if weights is not None:
            load_fitting(self.encoder, weights, "this encoder")
        self.train(self.training)

    @property
    def encoder(self) -> nn.Module:
        """The encoder; with the prefix "tu-" timm's network, which has timm's names."""
        encoder = self.network.encoder
        return getattr(encoder, "model", encoder)

    def take_backbone(self, backbone: Backbone) -> None:
        """Copies the weights of a classifier's backbone over the same network of timm.

        Raises:
            ConfigError: it is over another network.
        """
        own = {STAGE.sub("", name): value for name, value in backbone.state_dict().items()}
        load_fitting(self.encoder, "the classifier", "this encoder", own)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) normalised images -> (N, C+1, H, W) logits."""
        height, width = images.shape[-2:]
        # As a padding by less than nothing: torch.export follows a slice at multiples of the padding alone.
        return to_size(self.network(pad_images(images)), height, width)

    def parts(self) -> tuple[nn.Module, ...]:
        """Encoder, decoder and head; BatchNorm of the decoder, which is not pretrained, always learns."""
        return self.network.encoder, self.network.decoder, self.network.segmentation_head


def _create(name: str, encoder: str, pretrained: bool, num_classes: int, extra: dict[str, Any]) -> Any:
    import segmentation_models_pytorch as package

    weights = "imagenet" if pretrained else None
    try:
        return package.create_model(
            name, encoder_name=encoder, encoder_weights=weights, classes=num_classes, **extra
        )
    except (KeyError, ValueError, TypeError, RuntimeError, OSError, AssertionError) as error:
        # OSError and RuntimeError: the encoder's weights cannot be downloaded, or timm does not know it.
        # TypeError and AssertionError, by which timm refuses to dilate a network, do not say what to do.
        hint = "; it dilates the encoder, which not all can: take name=fpn (fpn_lite), or a CNN as encoder"
        raise ConfigError(
            f"segmentation-models-pytorch cannot build {name!r} over {encoder!r} (pretrained={pretrained}, "
            f"{extra}): {reason(error)}{hint * name.lower().startswith('deeplab')}"
        ) from error
