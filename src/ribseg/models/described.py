"""Networks in one file with what is needed to build and use them: safetensors with a JSON header.

Nothing in such a file can be executed: the header names one of our own architectures with plain settings, and
safetensors holds numbers alone. Other programs read it as any safetensors file.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from ribseg.data.io.files import atomic_write
from ribseg.errors import ConfigError, reason
from ribseg.models.weights import BROKEN, read_file

SUFFIX = ".safetensors"
HEADER = "ribseg"  # the entry of the file's metadata that is ours
LAYOUT = 1  # of the header


def write_described(path: str | Path, description: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Writes weights with a description, atomically; equal ones give the same bytes.

    Args:
        path: ends in .safetensors.
        description: what JSON can hold; "kind" says of what.
        state: of the network.

    Raises:
        ConfigError: another ending, or the description holds what JSON cannot.
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
            f"numbers, texts, lists and dictionaries, got {dict(description)} ({reason(error)})"
        ) from error
    # Copies: safetensors refuses tensors that share memory or lie otherwise than their shape says.
    tensors = {name: value.detach().cpu().clone().contiguous() for name, value in state.items()}
    # One entry alone: safetensors writes several in any order.
    atomic_write(path, save(tensors, metadata={HEADER: header}))


def read_description(path: str | Path) -> dict[str, Any] | None:
    """The description of a file that `write_described` wrote; None for any other file.

    Raises:
        ConfigError: it is damaged, or was written by a later version.
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
            f"{path} describes its network in a way that this version does not know (expected layout "
            f"{LAYOUT}); was it written by a later version of ribseg?"
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
    """The description of a file, and under "state_dict" its weights; None for a file without one.

    Raises:
        ConfigError: see `read_description`.
    """
    description = read_description(path)
    return None if description is None else {**description, "state_dict": read_file(path)}
