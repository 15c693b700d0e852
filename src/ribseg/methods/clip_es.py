"""CLIP-ES: maps of a frozen CLIP by text embeddings of the classes (docs/method.md, section 3.6).

Lin, Chen, Wang, Wu, Li, Lin, Liu, He: *CLIP is Also an Efficient Segmenter: A Text-Driven Approach for Weakly
Supervised Semantic Segmentation*, CVPR 2023.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ribseg.checks import check_number, within
from ribseg.data.io.images import IMAGENET_MEAN, IMAGENET_STD, Channels
from ribseg.errors import ConfigError
from ribseg.functional.attention import attention_affinity, check_attention, from_0_to_1, refine_by_attention
from ribseg.methods.cam import checked, starting_at, without_classes
from ribseg.models.attention import mean_attention, recorded_attention
from ribseg.models.clip import OPENAI, ClipTower
from ribseg.models.text import MAKE, TextEmbeddings, read_text_embeddings
from ribseg.types import Adaptation, ViewMaps


class ClipES:
    """Softmax Grad-CAM of a frozen CLIP, refined by its attention (sections 3.2 and 3.3).

    For each present class c the map is `relu(sum_d w_d A_d)`, with the patches A after the first norm of the
    last block and the mean w of the gradient of a probability with respect to them: the softmax over the
    cosines, times `logit_scale`, of the image with the present classes and all backgrounds. Absent classes
    have no part in it. The map is scaled to [0, 1] and refined, see `ribseg.functional.attention`. As in the
    released program it is made of the first view alone, without its mirror image.

    The network is the method's own: no classifier is needed, and a given one is not used.

    Args:
        classifier: ignored; methods are called with one.
        text: the file of text embeddings, see `ribseg.models.text`, or the embeddings.
        classes: names of the C classes in the order of the labels; None for those of `text`.
        tower: timm's name of the image tower. The text embeddings must be of the same CLIP.
        pretrained: load timm's weights of the tower.
        weights: a file of weights of the tower, instead of timm's.
        tower_kwargs: passed on to timm.
        mean: per channel, with which the views are normalised, of pixels in [0, 1].
        std: as `mean`.
        logit_scale: factor of the cosines before the softmax; 100 in OpenAI's models.
        blocks: number of last blocks whose attention is averaged.
        rounds: see `ribseg.functional.attention.attention_affinity`.
        power: see there.
        box_threshold: see `ribseg.functional.attention.box_mask`. Published: 0.4 on VOC, 0.7 on COCO.
        short_boxes: see there; true in the released program.

    Attributes:
        network: the image tower; images are moved to its device.

    Raises:
        ConfigError: an argument is out of range; no text embeddings, some are missing, or they do not fit
            the tower.
    """

    def __init__(
        self,
        classifier: nn.Module | None = None,
        text: str | Path | TextEmbeddings | None = None,
        classes: Sequence[str] | None = None,
        tower: str = OPENAI,
        pretrained: bool = True,
        weights: str | Path | None = None,
        tower_kwargs: Mapping[str, Any] | None = None,
        mean: Channels = IMAGENET_MEAN,
        std: Channels = IMAGENET_STD,
        logit_scale: float = 100.0,
        blocks: int = 8,
        rounds: int = 3,
        power: int = 2,
        box_threshold: float = 0.4,
        short_boxes: bool = True,
    ) -> None:
        check_number("logit_scale", logit_scale, above=0)
        check_attention(blocks, rounds, power, box_threshold, short_boxes)
        self.logit_scale, self.blocks, self.rounds, self.power = logit_scale, blocks, rounds, power
        self.box_threshold, self.short_boxes = box_threshold, short_boxes
        if not pretrained and weights is None:
            raise ConfigError("expected pretrained=true or weights=FILE: nothing here trains the tower")
        if text is None:
            raise ConfigError(f"expected text=FILE, embeddings of the class names: {MAKE}")
        texts = text if isinstance(text, TextEmbeddings) else read_text_embeddings(text)
        # Before the tower, which may be a download.
        self.texts = texts.classes if classes is None else texts.of(classes)
        self.backgrounds = texts.background
        with within("tower"):
            self.network = ClipTower(tower, pretrained, weights, tower_kwargs)
        if len(self.network.attentions) < blocks:
            raise ConfigError(
                f"expected blocks <= {len(self.network.attentions)}, those of {tower!r}, got {blocks}"
            )
        if self.texts.shape[1] != self.network.width:
            raise ConfigError(
                f"expected text embeddings of {self.network.width} values, as {tower!r} gives for images, "
                f"got {self.texts.shape[1]}; make them with the text encoder of the same CLIP"
            )
        # Mean and std of the views and of the tower, each (3, 1, 1).
        given, wanted = (mean, std), (self.network.mean, self.network.std)
        self.pixels = [torch.tensor(list(values), dtype=torch.float32)[:, None, None] for values in given]
        self.wanted = [torch.tensor(list(values), dtype=torch.float32)[:, None, None] for values in wanted]

    def __call__(self, *, views: Sequence[Tensor], labels: Tensor) -> Adaptation:
        """The maps of one image, in [0, 1]; see `ribseg.methods.base.Method`.

        Returns:
            One (K, h, w) map, of the first view, with h = ceil(H / patch); it covers the image.

        Raises:
            ValueError: wrong shapes of views or labels.
            RuntimeError: called under `torch.inference_mode`.
        """
        classes = checked(views, labels, len(self.texts))
        if not len(classes):
            return without_classes(views)
        image = views[0][:1].to(next(self.network.parameters()).device)
        with torch.autocast(image.device.type, enabled=False):
            maps, attention = self._grad_cam(self.prepared(image), classes)
            affinity = attention_affinity(attention, self.rounds, self.power)
            refined = refine_by_attention(maps, affinity, self.box_threshold, self.short_boxes)
        return Adaptation(ViewMaps([refined], classes, whole=True), classes, 0, None)

    def prepared(self, image: Tensor) -> Tensor:
        """A (1, 3, h, w) view -> the tower's input: its sides are the next multiples of the patch.

        As in the released program, the image is stretched (bicubic, 8 bit).
        """
        (mean, std), (new_mean, new_std) = self.pixels, self.wanted
        pixels = ((image.float().cpu() * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
        size = [-(-side // self.network.patch) * self.network.patch for side in image.shape[-2:]]
        if size != list(image.shape[-2:]):
            # On a CPU, integers are interpolated as Pillow does, with which the released program does it.
            pixels = F.interpolate(pixels, size, mode="bicubic", antialias=True, align_corners=False)
        return ((pixels.float() / 255 - new_mean) / new_std).to(image.device)

    def _grad_cam(self, image: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        """(K, h, w) maps of some classes in [0, 1], and the (h * w, h * w) attention between patches."""
        size = [side // self.network.patch for side in image.shape[-2:]]
        layers = self.network.attentions[-self.blocks :]
        with (
            recorded_attention(layers) as recorded,
            torch.enable_grad(),
            starting_at(self.network.last_norm) as found,
        ):
            probabilities = self._probabilities(self.network.embed(self.network.tokens(image)), classes)
            gradients = [torch.autograd.grad(p, found, retain_graph=True)[0] for p in probabilities]
        patches = found[0].detach()[0, 1:]
        weights = torch.cat(gradients)[:, 1:].mean(1)
        maps = (weights @ patches.T).relu().unflatten(1, size)
        # Twice, as in the released program: where a probability is near 0 or 1, 1e-7 is no small maximum.
        return from_0_to_1(from_0_to_1(maps)), mean_attention(recorded, 1)[0]

    def _probabilities(self, embedding: Tensor, classes: Tensor) -> Tensor:
        """(1, E) -> (K,) probabilities of some classes, among these and the backgrounds."""
        texts = torch.cat([self.texts[classes], self.backgrounds]).to(embedding)
        cosines = F.normalize(embedding) @ F.normalize(texts).T
        return (self.logit_scale * cosines[0]).softmax(0)[: len(classes)]
