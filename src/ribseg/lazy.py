"""Names of a package that are imported on first use, so that importing the package itself costs nothing."""

import ast
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any


def lazy_names(package: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """The `__getattr__`, `__dir__` and `__all__` of a package whose public names are looked up on first use.

    The names are those that the package imports below `if TYPE_CHECKING`, where type checkers see them.

    Args:
        package: its `__name__`.
        file: its `__file__`.
    """
    blocks = [node for node in ast.parse(Path(file).read_text()).body if isinstance(node, ast.If)]
    imports = [node for node in blocks[0].body if isinstance(node, ast.ImportFrom)]
    home = {alias.name: str(node.module) for node in imports for alias in node.names}

    def __getattr__(name: str) -> Any:  # noqa: N807
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        there = None if home[name] == package else getattr(import_module(home[name]), name, None)
        return import_module(f"{home[name]}.{name}") if there is None else there

    return __getattr__, lambda: sorted(home), sorted(home)
