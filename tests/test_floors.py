"""The floors of the house: a file imports only from floors below its own (see CONTRIBUTING.md)."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "ribseg"
# A file's folder tells its floor; progress.py is a file.
FLOORS = {
    "functional": 0,
    "kernels": 0,
    "models": 1,
    "data": 1,
    "metrics": 1,
    "plot": 1,
    "progress": 1,
    "store": 4,
    "methods": 2,
    "analysis": 2,
    "interop": 2,
    "modules": 3,
    "pipeline": 4,
}
GROUND, ENTRY = (
    {"types", "errors", "checks", "files", "lazy", "memory", "workers"},
    {"__main__", "cli", "commands", "launch", "predict"},
)  # the files outside of folders
OUTSIDE = {
    "pytorch_lightning": 3,
    "hydra": 4,
    "omegaconf": 4,
    "wandb": 4,
    "tensorboard": 4,
    "jinja2": 4,
    "timm": 1,
    "albumentations": 1,
    "cv2": 1,
    "skimage": 2,
    "PIL": 1,
    "safetensors": 1,
    "matplotlib": 1,
    "rich": 1,
    "torchmetrics": 1,
}
FILES = sorted(PACKAGE.rglob("*.py"))


def floor_of(module):
    if module.endswith(".__main__"):
        return 5  # an entry, of a room's command
    room = module.removeprefix("ribseg").removeprefix(".").partition(".")[0]
    return 0 if room in GROUND else 5 if room in ENTRY else FLOORS[room]


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            # `from ribseg.data import datamodules` imports a module, too.
            yield from (f"{node.module}.{alias.name}" for alias in node.names if node.module == "ribseg.data")


def module_name(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("path", [f for f in FILES if f != PACKAGE / "__init__.py"], ids=module_name)
def test_imports_look_down(path):
    own = floor_of(module_name(path))
    for name in imports_of(path):
        if name.startswith("ribseg.") and name.split(".")[1] in {p.stem for p in PACKAGE.iterdir()}:
            assert floor_of(name) <= own, f"{path.name} (floor {own}) imports {name} (floor {floor_of(name)})"
        assert OUTSIDE.get(name.split(".")[0], 0) <= own, f"{path.name} (floor {own}) imports {name}"


def test_the_guard_sees_a_look_up(tmp_path):
    bad = tmp_path / "bad.py"
    bad.write_text("from ribseg.pipeline import store\nimport hydra\n")
    assert [floor_of(name) for name in imports_of(bad) if name.startswith("ribseg")] == [4]
    assert floor_of("ribseg.functional.cam") == 0
    assert floor_of("ribseg.methods.rib") == 2


def test_every_folder_and_file_has_a_floor():
    folders = {
        path.name
        for path in PACKAGE.iterdir()
        if path.is_dir() and path.name not in ("assets", "__pycache__")
    }
    files = {path.stem for path in PACKAGE.glob("*.py")}
    assert folders | files == set(FLOORS) | GROUND | ENTRY | {"__init__"}


def test_import_is_light_and_asks_no_server():
    """Research code that only wants RIB loads neither Lightning nor Hydra nor wandb; in a fresh process.

    Albumentations would ask a server for its newest version.
    """
    code = """
import sys, ribseg

def get(names, heavy):
    for name in names.split():
        getattr(ribseg, name)
    found = set(heavy.split()) & set(sys.modules)
    assert not found, (names, found)

get("", "torch pytorch_lightning hydra omegaconf wandb timm")
import ribseg.cli; ribseg.cli.parser()  # help, and complaints about arguments, come at once
get("", "torch pytorch_lightning hydra omegaconf wandb timm")
get("RIB ThresholdSweep GNDRP cam merge_maps", "pytorch_lightning hydra omegaconf wandb timm")
# timm imports wandb by itself where it is installed.
get("Classifier load_official_classifier", "pytorch_lightning hydra omegaconf")

import urllib.request as request
request.OpenerDirector.open = lambda *args, **kwargs: print("asked", args)
import ribseg.data.feed.references
assert "albumentations" in sys.modules
"""
    environment = {name: value for name, value in os.environ.items() if name != "NO_ALBUMENTATIONS_UPDATE"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout == ""


def test_every_exported_name_is_there():
    import ribseg

    for name in ribseg.__all__:
        assert getattr(ribseg, name) is not None
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = ribseg.nothing_of_the_kind


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_heavy_packages_are_imported_where_they_are_used(path):
    heavy = {"matplotlib", "sklearn", "wandb", "tensorboard", "pycocotools", "segmentation_models_pytorch"}
    heavy |= {"skimage", "scipy"}
    for node in ast.parse(path.read_text()).body:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) else []
        assert not heavy & {name.partition(".")[0] for name in names}, f"line {node.lineno}"
