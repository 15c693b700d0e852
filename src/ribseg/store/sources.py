"""Digests of the user's code that a configuration names by `_target_`.

Results change when the source of a user's pooling, loss, network, method or data set changes, although no
setting does. So the digest covers its module and the modules of the same project that it imports: of its
package, or beside its file. Libraries are recorded by version in the manifest. Dynamic imports
(`importlib.import_module(name)`) are not followed.
"""

import ast
import hashlib
import sys
import sysconfig
from collections.abc import Iterator
from importlib.util import find_spec, resolve_name
from pathlib import Path
from typing import Any

PACKAGE = "ribseg"  # covered by the versions of the stages
# Dependencies of ribseg, whose versions are recorded in the manifest.
LIBRARIES = {
    "torch", "torchvision", "timm", "pytorch_lightning", "torchmetrics", "albumentations", "hydra",
    "omegaconf", "segmentation_models_pytorch", "numpy", "cv2", "PIL", "wandb", "sklearn", "matplotlib",
    "rich", "safetensors",
}  # fmt: skip
# Helpers of Hydra whose argument `path` names the object.
FETCHERS = {f"hydra.utils.get_{kind}" for kind in ("class", "method", "object", "static_method")}


def foreign_targets(node: Any) -> Iterator[str]:
    """The dotted names of all `_target_`s of the user's code in nested settings."""
    if isinstance(node, dict):
        names = [node.get("_target_")]
        if names[0] in FETCHERS:
            names.append(node.get("path"))
        yield from (name for name in names if isinstance(name, str) and is_foreign(name))
        for value in node.values():
            yield from foreign_targets(value)
    elif isinstance(node, list):
        for value in node:
            yield from foreign_targets(value)


def is_foreign(name: str) -> bool:
    """Whether a dotted name belongs to the user's code: not to ribseg, its dependencies or Python."""
    root = name.partition(".")[0]
    return root not in LIBRARIES | {PACKAGE} and root not in sys.stdlib_module_names


def source_digest(target: str) -> str:
    """sha256 over the source of a target's module, and of the modules of the same project that it imports.

    Args:
        target: dotted name of a class or function, "mine.poolings.MyPooling".

    Returns:
        Hexadecimal digits; "not found" if there is no such module, which `check_targets` reports.
    """
    found = _module_of(target)
    if found is None:
        return "not found"
    modules = _with_imports(*found)
    digest = hashlib.sha256()
    for module in sorted(modules):
        digest.update(f"{module}\n".encode() + modules[module].read_bytes())
    return digest.hexdigest()


def _module_of(target: str) -> tuple[str, Path] | None:
    parts = target.split(".")
    for length in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:length])
        file = _file(name)
        if file is not None:
            return name, file
    return None


def _file(module: str) -> Path | None:
    """The file of a module; None if it has none."""
    try:
        spec = find_spec(module)
    except (ImportError, ValueError, AttributeError):
        return None  # the parent is no package or cannot be imported: instantiating it reports why
    origin = None if spec is None else spec.origin
    return Path(origin).resolve() if origin and Path(origin).is_file() else None


def _project(module: str) -> Path:
    """The folder in which imports are followed: the installed package's, or that around the user's code."""
    name = module.partition(".")[0]
    top = _file(name)
    if top is None:  # a package without __init__.py
        spec = find_spec(name)
        return Path(next(iter(spec.submodule_search_locations or ()), ".")).resolve() if spec else Path()
    if top.name != "__init__.py" or _is_installed(top):
        return top.parent
    return top.parent.parent


def _library_folders() -> set[Path]:
    return {Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib", "stdlib")}


def _is_installed(file: Path) -> bool:
    return any(place in file.parents for place in _library_folders())


def _counts(file: Path, base: Path) -> bool:
    """Whether a file belongs to the project; other files beside an installed single module do not."""
    return base in file.parents and (not _is_installed(file) or base not in _library_folders())


def _with_imports(module: str, file: Path) -> dict[str, Path]:
    """Module -> file: the module, and all modules of its project that it imports, also indirectly."""
    base, found, pending = _project(module), {module: file}, [module]
    while pending:
        name = pending.pop()
        for imported in _imports(name, found[name]) if found[name].suffix == ".py" else ():
            new = {n: path for n, path in _project_modules(imported, base) if n not in found}
            found |= new
            pending += new
    return found


def _project_modules(imported: str, base: Path) -> Iterator[tuple[str, Path]]:
    """The modules of the project in a dotted name, with their files: its packages, and itself."""
    parts = imported.split(".")
    for name in (".".join(parts[: length + 1]) for length in range(len(parts))):
        file = _file(name) if is_foreign(name) else None
        if file is None:
            continue
        if not _counts(file, base):
            return
        yield name, file


def _imports(module: str, file: Path) -> Iterator[str]:
    """Dotted names that a file imports; for `from a import b` it is a.b, because b may be a module."""
    try:
        tree = ast.parse(file.read_bytes())
    except SyntaxError:
        return  # instantiating it reports where
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (not node.level or package):
            origin = "." * node.level + (node.module or "")
            base = resolve_name(origin, package) if node.level else origin
            yield from (f"{base}.{alias.name}" for alias in node.names)
