"""Text embeddings of class names by CLIP's text encoder, of the package open_clip (extra `ribseg[clip]`)."""

from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ribseg.errors import ConfigError, reason
from ribseg.models.text import TextEmbeddings

PACKAGE = "open_clip"
MODEL, WEIGHTS = "ViT-B-16-quickgelu", "openai"  # of the tower in conf/methods/clip_es.yaml
TEMPLATE = "a clean origami {}."  # CLIP-ES, section 3.2: found by its sharpness
AT_ONCE = 256  # texts in a batch
# What CLIP-ES puts into the template in the place of a class's name (section 3.2), on VOC and on COCO.
WORDS = {
    "bird": "bird avian", "chair": "chair seat", "person": "person with clothes,people,human",
    "tvmonitor": "tvmonitor screen", "tv": "tvmonitor screen", "backpack": "backpack,bag",
    "umbrella": "umbrella,parasol", "handbag": "handbag,purse", "tie": "necktie", "baseball glove": "glove",
    "spoon": "dessertspoon", "remote": "remote control", "hair drier": "hairdrier,blowdrier",
    "motorcycle": "motorbike", "airplane": "aeroplane", "couch": "sofa", "potted plant": "pottedplant",
    "dining table": "diningtable",
}  # fmt: skip
# Its backgrounds on VOC; on COCO without keyboard and sign, which are classes there.
BACKGROUNDS = (
    "ground", "land", "grass", "tree", "building", "wall", "sky", "lake", "water", "river", "sea", "railway",
    "railroad", "keyboard", "helmet", "cloud", "house", "mountain", "ocean", "road", "rock", "street",
    "valley", "bridge", "sign",
)  # fmt: skip


def embedded_names(
    names: Iterable[str],
    backgrounds: Sequence[str] | None = None,
    model: str = MODEL,
    weights: str | None = WEIGHTS,
    template: str = TEMPLATE,
) -> TextEmbeddings:
    """The text embeddings of classes and backgrounds, each of length 1 (CLIP-ES, section 3.2).

    Args:
        names: of the classes; "bird: bird avian" gives the class `bird` these words in the template. Without
            words of its own a class has those of `WORDS`, else its name.
        backgrounds: kinds of background; None for those of CLIP-ES that are no words of a class's name.
        model: of open_clip, of the same CLIP as the image tower.
        weights: a tag of open_clip, downloaded once, or a file; None for random weights.
        template: with {} in the place of the words.

    Raises:
        ConfigError: open_clip is not installed, or cannot give the model; a wrong template, or no names.
    """
    words = words_of(names)
    if "{}" not in template:
        raise ConfigError(f"expected a template with {{}} in the place of the words, got {template!r}")
    kinds = other_than(words) if backgrounds is None else tuple(backgrounds)
    encoder, tokenizer = _encoder(model, weights)
    texts = [template.replace("{}", text) for text in (*words.values(), *kinds)]
    rows = _embedded(encoder, tokenizer, texts)
    return TextEmbeddings(tuple(words), rows[: len(words)], kinds, rows[len(words) :])


def words_of(names: Iterable[str]) -> dict[str, str]:
    """Class name -> words that describe it, from "name" or "name: words".

    Raises:
        ConfigError: no names, an empty one, or one that is there twice.

    >>> words_of(["bird", "dog", "cow: a dairy cow"])
    {'bird': 'bird avian', 'dog': 'dog', 'cow': 'a dairy cow'}
    """
    found: dict[str, str] = {}
    for line in names:
        name, _, words = (part.strip() for part in line.partition(": "))
        if not name or name in found:
            raise ConfigError(f"expected each class once, as 'name' or 'name: words', got {line!r}")
        found[name] = words or WORDS.get(name, name)
    if not found:
        raise ConfigError("expected the names of the classes, got none")
    return found


def other_than(words: Mapping[str, str]) -> tuple[str, ...]:
    """The backgrounds of CLIP-ES without those that are a word of a class's name.

    >>> len(other_than({"stop sign": "stop sign", "keyboard": "keyboard"}))
    23
    """
    taken = {part for name in words for part in name.lower().replace("_", " ").split()}
    return tuple(kind for kind in BACKGROUNDS if kind not in taken)


def _encoder(model: str, weights: str | None) -> tuple[Any, Any]:
    """The model and tokenizer of open_clip."""
    try:
        package = import_module(PACKAGE)
    except ImportError as error:
        raise ConfigError(
            f"text embeddings need the package open_clip ({error}): pip install 'ribseg[clip]'"
        ) from error
    if model not in package.list_models():
        raise ConfigError(f"open_clip knows no model {model!r}; open_clip.list_models() lists them")
    try:
        return package.create_model(model, pretrained=weights).eval(), package.get_tokenizer(model)
    except (OSError, RuntimeError) as error:
        raise ConfigError(
            f"open_clip cannot load {weights!r} of {model!r}: {reason(error)}; connect to the internet once, "
            "or give a file of weights"
        ) from error


@torch.no_grad()
def _embedded(encoder: Any, tokenizer: Any, texts: Sequence[str]) -> Tensor:
    """(N, E) float32 embeddings of length 1."""
    parts = [texts[start : start + AT_ONCE] for start in range(0, len(texts), AT_ONCE)]
    return torch.cat([F.normalize(encoder.encode_text(tokenizer(list(part))).float()) for part in parts])
