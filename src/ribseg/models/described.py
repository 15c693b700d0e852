"""Self-describing weight files: safetensors with a JSON header to rebuild and use the network.

Such a file contains no code: the header names one of our architectures with plain settings, and safetensors
holds only tensors. Other programs can read it as any safetensors file.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from ribseg.errors import ConfigError, reason
from ribseg.files import atomic_write
from ribseg.models.weights_file import BROKEN, read_file

SUFFIX = ".safetensors"
HEADER = "ribseg"  # key of our entry in the file's metadata
LAYOUT = 1  # version of the header's format


def write_described(path: str | Path, description: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Writes weights with a description, atomically; equal input gives equal bytes.

    Args:
        path: must end in .safetensors.
        description: JSON values; "kind" names what is described.
        state: state dictionary of the network.

    Raises:
        ConfigError: another file extension, or a description that JSON cannot hold.
        RibsegError: the file cannot be written.
    """
    from safetensors.torch import save

    if Path(path).suffix != SUFFIX:
        raise ConfigError(f"expected a file name that ends in {SUFFIX}, got {path}")
    try:
        header = json.dumps({"layout": LAYOUT, **description}, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{path} would not be readable without executing code: settings and inference may hold only "
            f"numbers, strings, lists and dictionaries, got {dict(description)} ({reason(error)})"
        ) from error
    # Copies: safetensors rejects tensors that share memory or are not contiguous.
    tensors = {name: value.detach().cpu().clone().contiguous() for name, value in state.items()}
    # A single entry: safetensors writes several in random order.
    atomic_write(path, save(tensors, metadata={HEADER: header}))


def read_description(path: str | Path) -> dict[str, Any] | None:
    """The description in a file of `write_described`; None for any other file.

    Raises:
        ConfigError: it is damaged, or was written by a later version of ribseg.
    """
    from safetensors import SafetensorError, safe_open

    if Path(path).suffix != SUFFIX:
        return None
    try:
        with safe_open(path, "pt") as file:
            header = (file.metadata() or {}).get(HEADER)
        content = None if header is None else json.loads(header)
    except (SafetensorError, *BROKEN) as error:
        raise ConfigError(f"{path} is not a readable safetensors file: {reason(error)}") from error
    if content is None:
        return None
    if not isinstance(content, dict) or content.get("layout") != LAYOUT:
        raise ConfigError(
            f"{path} has a description of unknown layout (expected {LAYOUT}); was it written by a later "
            "version of ribseg?"
        )
    return content


def check_architecture(path: str | Path, kind: str, found: Any, known: Sequence[str]) -> None:
    """Raises a ConfigError unless a file's architecture is one of the known ones.

    Args:
        path: of the file.
        kind: "classifier" or "segmenter".
        found: the architecture in the file.
        known: those that this version can build.
    """
    if found not in known:
        raise ConfigError(
            f"{path} holds a {kind} of the unknown architecture {found!r}; this version knows "
            f"{', '.join(known)}"
        )


@contextmanager
def build_errors(path: str | Path, settings: Any) -> Iterator[None]:
    """Turns errors inside into a ConfigError: the network cannot be built from a file's description.

    Args:
        path: of the file.
        settings: of the network, as the file gives them.
    """
    try:
        yield
    except (TypeError, ValueError, RuntimeError, AttributeError, LookupError) as error:
        raise ConfigError(
            f"the weights in {path} do not fit their own settings {settings}; was the file written by "
            f"another version? {reason(error)}"
        ) from error


def read_described(path: str | Path) -> dict[str, Any] | None:
    """The description in a file, with the weights under "state_dict"; None for a file without one.

    Raises:
        ConfigError: see `read_description`.
    """
    description = read_description(path)
    return None if description is None else {**description, "state_dict": read_file(path)}
