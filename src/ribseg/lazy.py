"""Names of a package that are imported on first use, so that importing the package itself costs nothing."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_names(
    package: str, home: Mapping[str, str], modules: Mapping[str, str] | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The `__getattr__` and `__dir__` of a package whose public names are looked up on first use.

    Type checkers do not see what happens at run time: the package names everything once more below
    `if TYPE_CHECKING`, and assigns these two functions in the `else`, or every name would be an `Any`.

    Args:
        package: its `__name__`.
        home: public name -> the module that holds it, as "module" relative to the package.
        modules: public name of a module -> where it is, relative to the package.

    Returns:
        Both functions. `__dir__` lists the public names only.
    """
    places = dict(modules or {})

    def __getattr__(name: str) -> Any:  # noqa: N807
        if name in home:
            return getattr(import_module(f"{package}.{home[name]}"), name)
        if name in places:
            return import_module(f"{package}.{places[name]}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    def __dir__() -> list[str]:  # noqa: N807
        return sorted({*home, *places})

    return __getattr__, __dir__
