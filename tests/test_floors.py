"""The floors of the house: a file imports only from floors below its own (see CONTRIBUTING.md)."""

import ast
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "ribseg"
# The longest name that fits tells a file's floor; numbers between are floors within a floor.
FLOORS = {
    **dict.fromkeys(("functional", "kernels"), 0),
    **dict.fromkeys(
        ("types", "errors", "checks", "files", "lazy", "memory", "progress", "seeds", "workers"), 0
    ),
    "store": 0.5,
    **dict.fromkeys(("models", "data", "metrics", "plot"), 1),
    **dict.fromkeys(("methods", "analysis", "interop"), 2),
    "modules": 3,
    "pipeline.recipe": 4.0,
    "pipeline.stages": 4.1,
    "pipeline.report": 4.2,
    "pipeline": 4.3,
    **dict.fromkeys(("__main__", "cli", "commands", "launch", "predict"), 5),
}
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
    "torchmetrics": 1,
}
FOREIGN_TO_STORE = {"torch", "pytorch_lightning", "hydra", "omegaconf"}  # it knows folders and settings alone


def module_name(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def floor_of(module):
    if module == "ribseg":
        return 0  # its names are imported on first use
    if module.endswith(".__main__"):
        return 5  # an entry, of a room's command
    name = module.removeprefix("ribseg.")
    while name not in FLOORS:
        name, dot, _ = name.rpartition(".")
        assert dot, f"{module} is on no floor: enter its folder or file in FLOORS"
    return FLOORS[name]


def imported_names(path):
    """Everything that a file imports, wherever it does: in functions and under TYPE_CHECKING, too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@cache
def homes(package):
    """The files that have the public names of a package, which imports them on first use."""
    lines = ast.walk(ast.parse(FILES[package].read_text()))
    imports = [node for node in lines if isinstance(node, ast.ImportFrom)]
    return {alias.name: node.module for node in imports for alias in node.names}


def file_of(name):
    """The module of ribseg that `import name` or `from name_before import last` reads, or None."""
    module, _, last = name.rpartition(".")
    if name in FILES:
        return name
    if module in FILES and FILES[module].name == "__init__.py":
        return homes(module).get(last, module)
    return module if module in FILES else None


@cache
def graph():
    """Module -> the modules of ribseg that it imports; ribseg/__init__.py is a list of everybody's names."""
    files = {module: path for module, path in FILES.items() if module != "ribseg"}
    return {module: {file_of(n) for n in imported_names(path)} - {None} for module, path in files.items()}


def upward(imports):
    return sorted(
        f"{module} -> {name}"
        for module, names in imports.items()
        for name in names
        if floor_of(name) > floor_of(module)
    )


def circles(imports):
    """The sets of modules that import each other, on whatever way."""
    reached = {}
    for module in imports:
        ways, reached[module] = [module], set()
        while ways:
            new = imports.get(ways.pop(), set()) - reached[module]
            reached[module] |= new
            ways += new
    groups = {
        frozenset(name for name in reached[module] if name in reached and module in reached[name])
        for module in imports
    }
    return sorted(" ".join(sorted(group)) for group in groups if group)


def test_imports_look_down():
    assert not upward(graph())


def test_no_files_import_each_other():
    files = {module: names for module, names in graph().items() if FILES[module].name != "__init__.py"}
    assert not circles(files)


def test_packages_of_others_have_floors():
    wrong = [
        f"{module} (floor {floor_of(module)}) imports {name}"
        for module in graph()
        for name in imported_names(FILES[module])
        if OUTSIDE.get(name.partition(".")[0], 0) > floor_of(module)
        or (module.startswith("ribseg.store.") and name.partition(".")[0] in FOREIGN_TO_STORE)
    ]
    assert not wrong


def test_the_guard_sees_a_look_up(tmp_path):
    bad = tmp_path / "bad.py"
    bad.write_text("def f():\n    from ribseg.pipeline import plan\n    from ribseg.data import read_mask\n")
    names = {file_of(name) for name in imported_names(bad)}
    assert names == {"ribseg.pipeline.plan", "ribseg.data.io.masks"}
    assert upward({"ribseg.metrics.bad": names}) == ["ribseg.metrics.bad -> ribseg.pipeline.plan"]
    assert upward({"ribseg.pipeline.stages.bad": {"ribseg.pipeline.report.page"}})
    assert not upward({"ribseg.pipeline.stages.good": {"ribseg.pipeline.recipe.build", "ribseg.store.locks"}})
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"d"}}) == ["b c", "d"]


def test_every_folder_and_file_has_a_floor():
    there = {
        path.stem
        for path in PACKAGE.iterdir()
        if path.suffix == ".py" or (path.is_dir() and path.name not in ("assets", "__pycache__"))
    }
    assert there == {name.partition(".")[0] for name in FLOORS} | {"__init__"}


def test_import_is_light_and_asks_no_server(tree):
    """Research code that only wants RIB loads neither Lightning nor Hydra nor wandb, `ribseg check` no torch.

    Modules are attributes after a bare import. Albumentations would ask a server for its newest version.
    """
    code = """
import sys, ribseg

def get(names, heavy):
    for name in names.split():
        getattr(ribseg, name)
    found = set(heavy.split()) & set(sys.modules)
    assert not found, (names, found)

get("", "torch pytorch_lightning hydra omegaconf wandb timm")
assert dir(ribseg) == sorted(ribseg.__all__), dir(ribseg)
import ribseg.cli; ribseg.cli.parser()  # help, and complaints about arguments, come at once
get("", "torch pytorch_lightning hydra omegaconf wandb timm")
import ribseg.store.run
get("", "torch pytorch_lightning hydra omegaconf wandb timm")
import contextlib, io
with contextlib.redirect_stdout(io.StringIO()) as found:
    ribseg.cli.main(["check", sys.argv[1], "data.labels=mask", "data.eval_splits=val"])
assert "no errors" in found.getvalue()
get("", "torch pytorch_lightning albumentations wandb timm cv2 scipy matplotlib")
get("RIB ThresholdSweep GNDRP cam merge_maps", "pytorch_lightning wandb timm")
ribseg.controls.centre_prior, ribseg.evaluation.MapEvaluator, ribseg.errors.DataError
ribseg.refine.confident_labels, ribseg.interop.read_irn_maps
get("", "pytorch_lightning wandb")
assert dir(ribseg) == sorted(ribseg.__all__), dir(ribseg)
# timm imports wandb by itself where it is installed.
get("Classifier load_official_classifier", "pytorch_lightning")
get("localize", "pytorch_lightning albumentations cv2")

import urllib.request as request
request.OpenerDirector.open = lambda *args, **kwargs: print("asked", args)
import ribseg.data.feed.references
assert "albumentations" in sys.modules
"""
    environment = {name: value for name, value in os.environ.items() if name != "NO_ALBUMENTATIONS_UPDATE"}
    command = [sys.executable, "-c", code, str(tree)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout == ""


def test_every_exported_name_is_there():
    import ribseg

    for name in ribseg.__all__:
        assert getattr(ribseg, name) is not None
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = ribseg.nothing_of_the_kind


def test_heavy_packages_are_imported_where_they_are_used():
    heavy = {"matplotlib", "sklearn", "wandb", "tensorboard", "pycocotools", "segmentation_models_pytorch"}
    heavy |= {"skimage", "scipy"}
    early = []
    for module, path in FILES.items():
        for node in ast.parse(path.read_text()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            early += [f"{module}:{node.lineno} {name}" for name in names if name.partition(".")[0] in heavy]
    assert not early, "imported with the file: " + "; ".join(early)
