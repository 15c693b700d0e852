"""Text embeddings of class names, for methods over CLIP: `ribseg text` makes files of them.

They are those of CLIP's text encoder, of the package open_clip (extra `ribseg[clip]`).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ribseg.errors import DAMAGED, ConfigError, DataError, reason
from ribseg.files import atomic_file
from ribseg.models.weights_file import listed

ARRAYS = ("names", "classes", "background_names", "background")
MAKE = "make one with `ribseg text FILE.npz`"
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


@dataclass(eq=False)
class TextEmbeddings:
    """Embeddings of texts about classes and about backgrounds, by one text encoder.

    Attributes:
        names: of the C classes.
        classes: (C, E) float32, a row per class.
        background_names: of the B kinds of background, as "sky".
        background: (B, E) float32, a row per kind; B may be 0.

    Raises:
        DataError: the arrays do not fit the names or each other, or a row is zero or not finite.
    """

    names: tuple[str, ...]
    classes: Tensor
    background_names: tuple[str, ...]
    background: Tensor

    def __post_init__(self) -> None:
        """Checks the arrays."""
        shapes = [tuple(rows.shape) for rows in (self.classes, self.background)]
        width = shapes[0][-1] if shapes[0] else 0
        expected = [(len(self.names), width), (len(self.background_names), width)]
        if shapes != expected or not self.names or not width:
            raise DataError(
                f"expected embeddings of shapes (C, E) and (B, E) for {len(self.names)} classes and "
                f"{len(self.background_names)} backgrounds, got {shapes[0]} and {shapes[1]}"
            )
        if len(set(self.names)) < len(self.names):
            raise DataError("expected a name for each class, got one twice")
        lengths = torch.cat([self.classes, self.background]).norm(dim=1)
        if not bool((torch.isfinite(lengths) & (lengths > 0)).all()):
            raise DataError("expected finite embeddings, none of them zero")

    def of(self, names: Sequence[str]) -> Tensor:
        """(len(names), E) embeddings of classes by name, in this order.

        Raises:
            ConfigError: a class has none; lists all of these.
        """
        missing = [name for name in names if name not in self.names]
        if missing:
            raise ConfigError(
                f"the text embeddings lack {len(missing)} of {len(names)} classes: {listed(missing)}; they "
                f"have {listed(self.names)}. Make a file for these: ribseg text FILE.npz --names NAMES.txt"
            )
        return self.classes[[self.names.index(name) for name in names]]

    def save(self, path: str | Path) -> None:
        """Writes an .npz file for `read_text_embeddings`, with the attributes as arrays.

        Raises:
            RibsegError: it cannot be written.
        """
        with atomic_file(path) as file:
            np.savez(
                file,
                names=np.asarray(self.names, dtype=str),
                classes=self.classes.float().cpu().numpy(),
                background_names=np.asarray(self.background_names, dtype=str),
                background=self.background.float().cpu().numpy(),
            )


def read_text_embeddings(path: str | Path) -> TextEmbeddings:
    """The text embeddings of a file; nothing in it is executed.

    Args:
        path: of an .npz file with the arrays `names` (C,) str, `classes` (C, E) float, `background_names`
            (B,) str and `background` (B, E) float.

    Raises:
        ConfigError: no such file, damaged, or with other arrays.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            names, classes, background_names, background = (arrays[name] for name in ARRAYS)
    except DAMAGED as error:
        raise ConfigError(
            f"no file of text embeddings at {path} ({reason(error)}): expected an .npz file with the arrays "
            f"{', '.join(ARRAYS)}; {MAKE}"
        ) from error
    if not all(np.issubdtype(rows.dtype, np.floating) for rows in (classes, background)):
        raise ConfigError(f"{path}: expected embeddings of floats, got {classes.dtype}, {background.dtype}")
    try:
        return TextEmbeddings(
            tuple(map(str, np.atleast_1d(names))),
            torch.from_numpy(classes.astype(np.float32)),
            tuple(map(str, np.atleast_1d(background_names))),
            torch.from_numpy(background.astype(np.float32)),
        )
    except DataError as error:
        raise ConfigError(f"{path}: {error}; {MAKE}") from error


@torch.no_grad()
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
    parts = (texts[start : start + AT_ONCE] for start in range(0, len(texts), AT_ONCE))
    rows = torch.cat([F.normalize(encoder.encode_text(tokenizer(part)).float()) for part in parts])
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
        import open_clip
    except ImportError as error:
        raise ConfigError(
            f"text embeddings need the package open_clip ({error}): pip install 'ribseg[clip]'"
        ) from error
    if model not in open_clip.list_models():
        raise ConfigError(f"open_clip knows no model {model!r}; open_clip.list_models() lists them")
    try:
        return open_clip.create_model(model, pretrained=weights).eval(), open_clip.get_tokenizer(model)
    except (OSError, RuntimeError) as error:
        raise ConfigError(
            f"open_clip cannot load {weights!r} of {model!r}: {reason(error)}; connect to the internet once, "
            "or give a file of weights"
        ) from error
