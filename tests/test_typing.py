"""Public names: typed for mypy although they are imported on first use.

What mypy says of uses of them is part of `make lint`.
"""

import ast
import importlib
import re
from pathlib import Path

import pytest

import ribseg

SOURCES = Path(ribseg.__file__).parents[1]
LAZY = ("ribseg", "ribseg.data", "ribseg.interop")
EAGER = tuple(f"ribseg.{name}" for name in ("analysis", "functional", "metrics", "models", "modules"))

RIGHT = """
from pathlib import Path
import numpy as np
import torch
import ribseg

def own_pooling(maps: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return maps.flatten(2).amax(-1)

images, labels = torch.zeros(2, 3, 64, 64), torch.zeros(20)
maps, targets = torch.zeros(2, 20, 4, 4), torch.zeros(2, 20)
clf = ribseg.Classifier(backbone="resnet50.tv_in1k", num_classes=20, pretrained=False,
                        output_stride=16, atrous=False)
logits: torch.Tensor = clf(images)
class_maps: torch.Tensor = clf.class_maps(images)
clf = ribseg.load_official_classifier("res50_cam.pth")
pooled: torch.Tensor = ribseg.functional.gap(maps)
pooled = ribseg.functional.gndrp(maps, targets, threshold=0.4, divisor="all")
pooled = ribseg.GNDRP(threshold=0.4, divisor="kept")(maps, targets) + ribseg.GAP()(maps, targets)
rib = ribseg.RIB(clf, pooling=ribseg.GNDRP(0.4), steps=10, lr=8e-6, head_lr_factor=10, weight_decay=1e-4,
                 margin=600.0, area_limit=0.7, area_threshold=0.3, loss_views=(0, 2, 3), views=None,
                 trainable="published", preset="official")
ribseg.RIB(clf, own_pooling, margin=None, preset="paper")
out: ribseg.Adaptation = rib([images], labels, [(images, targets), (None, None)])
out = ribseg.cam(clf, [images], labels)
merged: ribseg.LocalizationMaps = ribseg.merge_maps(out.maps, size=(64, 64))
walked: torch.Tensor = ribseg.functional.random_walk(maps[0], maps[0, 0], radius=5, beta=10.0, steps=256)
refined: np.ndarray = ribseg.functional.dense_crf(np.zeros((9, 9, 3), np.uint8), np.zeros((9, 9), int))
metric = ribseg.ThresholdSweep(num_classes=20, thresholds=torch.linspace(0, 1, 101))
metric.update(maps[0], torch.arange(20), torch.zeros(4, 4))
metric.compute()["best_miou"].item()
ribseg.metrics.PxAP(num_classes=20).update(maps[0], torch.arange(20), torch.zeros(4, 4))
ribseg.predict(Path("a.jpg"), "segmenter.safetensors", device="cpu")
found: ribseg.LocalizationMaps = ribseg.localize("a.jpg", labels=["dog"], classifier=clf, method="rib")
found = ribseg.localize("a.jpg", [0], "classifier.safetensors", ribseg.RIB(clf), references="photographs")
labelled: np.ndarray = found.mask(0.4)
found.plot("a.jpg", threshold=0.4).savefig("a.png")
found.save("a.npz")
clf.save("classifier.safetensors")
network = ribseg.load("classifier.safetensors")
results: dict[str, object] = ribseg.train("rib_voc", overrides=["data.root=PATH", "rib.steps=5"])
ribseg.refine.confident_labels(np.zeros((9, 9, 3), np.uint8), merged)
ribseg.interop.read_irn_maps("a.npy", 20)
ribseg.evaluation.MapEvaluator(20, torch.linspace(0, 1, 101))
ribseg.controls.centre_prior(merged).strided.shape
photo: np.ndarray = ribseg.data.read_image("a.jpg")
ribseg.data.multi_scale_views(photo)
problem: ValueError = ribseg.errors.DataError("expected, found, do")
"""

# Each line is one error.
WRONG = """
ribseg.RIB(1, 2, nonsense=3)
ribseg.RIB(ribseg.load_official_classifier("a.pth"), preset="oficial")
ribseg.Classifier(backbone=50)
ribseg.GNDRP(divisor="some")
ribseg.functional.gndrp(torch.zeros(1, 2, 3, 3))
ribseg.ThresholdSweep(classes=20)
ribseg.merge_maps([torch.zeros(1, 3, 3)])
ribseg.cam(None, [], torch.zeros(2)).map
ribseg.predict("a.jpg")
ribseg.localize()
ribseg.load(3)
ribseg.train("rib_voc", steps=5)
ribseg.data.read_image(b"a.jpg", 3)
ribseg.data.VOCFolder(nonsense="here")
ribseg.refine.confident_labels("a.jpg")
ribseg.controls.centre_prior(3)
ribseg.interop.read_irn_maps("a.npy")
ribseg.evaluation.MapEvaluator()
ribseg.metrics.PxAP()
ribseg.analysis.gradient_map()
ribseg.models.IRNet(nonsense=1)
ribseg.nothing_of_the_kind
ribseg.data.nothing_of_the_kind
""".strip()


# Parts of libraries that no public signature names: mypy would read them for twenty seconds.
UNREAD = """[mypy]
[mypy-torch._dynamo.*,torch._inductor.*,torch.distributed.*,torch.fx.*,torch.export.*,torch._export.*,\
torch._functorch.*,torch._higher_order_ops.*,torch._subclasses.*,torch._prims.*,torch._decomp.*,torch._refs.*,\
torch.onnx.*,torch.ao.*,torch.testing.*,torch.jit.*,torch._library.*,torch.optim.*,torch.profiler.*,\
torch.distributions.*,torch.nested.*,sympy.*,pytorch_lightning.*,torchmetrics.*,timm.*,torchvision.*,\
albumentations.*,matplotlib.*,scipy.*]
follow_imports = skip
"""


@pytest.fixture(scope="module")
def mypy_output(tmp_path_factory, request):
    """What mypy says of a file of right and a file of wrong uses, by its own settings of what is an error."""
    api = pytest.importorskip("mypy.api")
    folder = tmp_path_factory.mktemp("typing")
    (folder / "right.py").write_text(RIGHT + "\nreveal_type(ribseg.RIB)\n")
    (folder / "wrong.py").write_text("import ribseg, torch\n" + WRONG + "\n")
    (folder / "mypy.ini").write_text(UNREAD.replace("\\\n", ""))
    cache = request.config.cache.mkdir("mypy")  # kept by pytest between runs
    # Silent: errors inside ribseg are `make lint`'s matter.
    options = [
        f"--config-file={folder / 'mypy.ini'}",
        f"--cache-dir={cache}",
        "--follow-imports=silent",
        "--no-error-summary",
    ]
    with pytest.MonkeyPatch.context() as patch:
        if "site-packages" not in SOURCES.parts:  # there mypy looks by itself, and refuses to be told
            patch.setenv("MYPYPATH", str(SOURCES))
        out, problems, _ = api.run([*options, str(folder / "right.py"), str(folder / "wrong.py")])
    assert problems == ""
    return out


@pytest.mark.lint
def test_right_calls_have_no_error_and_the_class_is_the_class(mypy_output):
    said = [line for line in mypy_output.splitlines() if "right.py" in line]
    assert len(said) == 1, "\n".join(said)
    revealed = r"Revealed type is .*preset: Literal\['official'\].*-> ribseg\.methods\.rib\.RIB"
    assert re.search(revealed, said[0])


@pytest.mark.lint
def test_every_wrong_call_is_an_error(mypy_output):
    found = [int(n) for n in re.findall(r"wrong\.py:(\d+): error", mypy_output)]
    assert sorted(set(found)) == list(range(2, 2 + len(WRONG.splitlines()))), mypy_output


@pytest.mark.parametrize("package", LAZY)
def test_names_are_what_type_checkers_see(package):
    module = importlib.import_module(package)
    (block,) = (n for n in ast.parse(Path(module.__file__).read_text()).body if isinstance(n, ast.If))
    assert ast.unparse(block.test) == "TYPE_CHECKING"
    aliases = [(alias, statement.module) for statement in block.body for alias in statement.names]
    assert sorted(alias.name for alias, _ in aliases) == module.__all__ == dir(module)
    for alias, home in aliases:
        assert alias.asname == alias.name, "type checkers take only `name as name` for public"
        place = importlib.import_module(home)  # for a module: the package that has it
        assert getattr(module, alias.name) is getattr(place, alias.name)


@pytest.mark.parametrize("package", EAGER)
def test_every_name_of_the_other_packages_is_there(package):
    module = importlib.import_module(package)
    assert all(hasattr(module, name) for name in module.__all__)
    assert "__getattr__" not in vars(module)


def test_an_unknown_name_is_an_attribute_error():
    for name in LAZY:
        with pytest.raises(AttributeError, match=f"module '{name}' has no attribute 'nothing'"):
            _ = importlib.import_module(name).nothing
