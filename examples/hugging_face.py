"""Maps from an image classifier of Hugging Face's transformers, without any training.

    pip install transformers
    python examples/hugging_face.py IMAGE --model microsoft/resnet-50

Any convolutional classifier of transformers will do that ends in pooling and one linear layer, as ResNet and
RegNet do. (ConvNeXt normalises between the two; this is left out here.)
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import ribseg


class HuggingFaceClassifier(nn.Module):
    """What RIB and CAM need of a classifier: `features` and `weight`; and, for names and pixels, three more.

    Args:
        model: an image classifier of transformers.
        processor: its image processor, which knows how pixels are normalised; None for ImageNet's.

    Attributes:
        classes: names.
        mean: per channel, of pixels in [0, 1].
        std: per channel, of pixels in [0, 1].
    """

    def __init__(self, model: Any, processor: Any = None) -> None:
        super().__init__()
        self.model: Any = model.eval()
        linear = [layer for layer in model.classifier.modules() if isinstance(layer, nn.Linear)]
        if len(linear) != 1:
            raise ValueError(
                f"expected a classifier of one linear layer, {type(model).__name__} has {len(linear)}"
            )
        self.linear = linear[0]
        self.classes = tuple(model.config.id2label[index] for index in range(model.config.num_labels))
        self.mean = tuple(getattr(processor, "image_mean", None) or ribseg.data.IMAGENET_MEAN)
        self.std = tuple(getattr(processor, "image_std", None) or ribseg.data.IMAGENET_STD)

    @property
    def weight(self) -> nn.Parameter:
        """(C, D): one row per class."""
        return self.linear.weight

    def features(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) normalised -> (N, D, h, w)."""
        return self.model.base_model(images).last_hidden_state


def main(arguments: list[str] | None = None) -> ribseg.LocalizationMaps:
    """Writes a picture of the maps beside the image."""
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("image", type=Path)
    parser.add_argument("--model", default="microsoft/resnet-50", help="name on the hub, or a folder")
    parser.add_argument("--labels", nargs="+", help="names of classes; none: what the classifier finds")
    parser.add_argument("--out", type=Path, default=Path("hugging_face.png"))
    options = parser.parse_args(arguments)
    model = AutoModelForImageClassification.from_pretrained(options.model)
    classifier = HuggingFaceClassifier(model, AutoImageProcessor.from_pretrained(options.model))
    # The whole network learns: what transformers calls its stages is unknown here.
    rib = ribseg.RIB(classifier, steps=5, lr=1e-5, margin=None, area_limit=None, loss_views=(0,))
    maps = ribseg.localize(options.image, options.labels, method=rib)
    maps.plot(options.image, threshold=0.4).savefig(options.out)
    print(f"{', '.join(maps.names)}: {options.out}")
    return maps


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
