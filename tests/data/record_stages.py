"""What every stage computes on a fixed tiny input, in a few numbers.

`python tests/data/record_stages.py [FILE]` records it, and `tests/test_stage_versions.py` compares:
outputs that change under an unchanged version of their stage would be taken from the store as if nothing
had happened.
"""

import json
import os
import sys
import tarfile
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
if __name__ == "__main__":  # before torch is imported: sums of AVX-512 differ so much that scores move by .04
    os.environ.update(ATEN_CPU_CAPABILITY="avx2", ONEDNN_MAX_CPU_ISA="AVX2", MKL_CBWR="AVX2")

import numpy as np
import torch
from quick_run import begun, make_learnable_tree, settings

import ribseg
from ribseg.data.io.masks import read_mask
from ribseg.models.weights_file import read_file
from ribseg.pipeline.run import run

RECORD = Path(__file__).with_name("stage_outputs.json")
DATA = "run=[classifier,cam,rib,controls,refine,evaluate,segmenter,export]"
SETTINGS = (
    *("rib.lr=1e-2", "rib.references=2", "rib.trainable=published", "rib.steps=3", "classifier.epochs=2"),
    *(
        "segmenter.sources=[rib,full]",
        "export.split=val",
        "export.program=false",
        "refine.maps_threshold=0.3",
    ),
    *("refine.walk_threshold=0.3", "segmenter.select=last"),
)
# A transformer, for what a CNN has not.
SMALL = {"depth": 3, "embed_dim": 32, "num_heads": 2}
ATTENTION = (
    *("classifier.model.backbone=vit_tiny_patch16_224", "classifier.model.backbone_kwargs=null"),
    f"classifier.model.backbone_kwargs={{{', '.join(f'{name}: {value}' for name, value in SMALL.items())}}}",
    *("refine.maps=cam", "refine.attention.blocks=2", "run=[classifier,cam,attention]"),
)
SKIPPED = {"manifest.json", "rate.json"}  # times and versions; counted in other files


def outputs(place):
    """Stage -> {"version", "inputs", "values"} of a quick run of all stages in a folder."""
    torch.set_num_threads(1)
    tree = make_learnable_tree(place / "tree")
    found = {}
    for experiment, overrides in (  # of a stage in several the last counts
        ("rib_folder", (f"data.root={tree}", *ATTENTION, f"classifier.checkpoint={transformer(place)}")),
        ("rib_folder", (f"data.root={tree}", DATA, *SETTINGS)),
        ("toy_bottleneck", ("run=[bottleneck]",)),
    ):
        cfg = settings(experiment, place, *overrides)
        results = run(cfg, place / "out")
        for stage in begun(cfg, place / "again").run.stages:
            if stage.name in results["store"]:
                folder = Path(results["store"][stage.name])
                manifest = json.loads((folder / "manifest.json").read_text())
                found[stage.name] = {
                    "kind": stage.kind,
                    "version": stage.version,
                    "inputs": sorted(manifest["inputs"]),
                    "values": summary(folder),
                }
    return found


def transformer(place):
    """A file of a classifier for `ATTENTION`: what torch draws for a new one differs between its versions."""
    draws = np.random.default_rng(0)
    model = ribseg.Classifier("vit_tiny_patch16_224", 2, backbone_kwargs=SMALL)
    for name, value in model.state_dict().items():
        if "norm" not in name:
            value.copy_(torch.from_numpy(0.1 * draws.standard_normal(value.shape)))
    model.save(place / "transformer.safetensors")
    return place / "transformer.safetensors"


def kinds():
    """The kinds of all stages, of the segmenters those that are recorded."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        names = {stage.kind for stage in begun(settings("rib_folder", place), place / "out").run.stages}
    return {name for name in names if not name.startswith("segmenter") or name.endswith(("_rib", "_full"))}


def summary(folder):
    """A few numbers of every file of an artefact, by name."""
    values = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and path.name not in SKIPPED and "checkpoints" not in name:
            numbers = READERS.get(path.suffix, lambda path: [])(path)
            if numbers:
                values[name] = [float(f"{number:.6g}") for number in numbers]
    return values


def of_weights(path):
    """Norm and sum of all weights together."""
    state = read_file(path)
    tensors = [value.double().flatten() for value in tensors_in(state)]
    whole = torch.cat(tensors)
    return [float(whole.norm()), float(whole.abs().sum())]


def tensors_in(node):
    """All floating point tensors in nested dictionaries."""
    if isinstance(node, torch.Tensor):
        return [node] if node.is_floating_point() else []
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    return [tensor for child in children for tensor in tensors_in(child)]


def of_arrays(path):
    """Mean and mean square of every array of numbers."""
    with np.load(path, allow_pickle=False) as arrays:
        each = [
            arrays[name].astype(np.float64)
            for name in sorted(arrays)
            if arrays[name].size and arrays[name].dtype.kind != "U"
        ]
    return [value for array in each for value in (array.mean(), (array**2).mean())]


def of_mask(path):
    """Pixels of each label."""
    return np.bincount(read_mask(path).ravel(), minlength=4)[[0, 1, 2, -1]].tolist()


def of_json(path):
    """All fractions and scores; not times."""
    return numbers_in(json.loads(path.read_text()))


def numbers_in(node):
    """Numbers in nested lists and dictionaries, in the order of names."""
    if isinstance(node, dict):
        return [n for key in sorted(node) if "seconds" not in key for n in numbers_in(node[key])]
    if isinstance(node, list):
        return [n for value in node for n in numbers_in(value)]
    return [node] if isinstance(node, int | float) and not isinstance(node, bool) else []


def of_archive(path):
    """How many masks there are."""
    with tarfile.open(path) as archive:
        return [len(archive.getnames())]


READERS = {
    ".gz": of_archive,
    ".pt": of_weights,
    ".safetensors": of_weights,
    ".npz": of_arrays,
    ".png": of_mask,
    ".json": of_json,
}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        target = Path(sys.argv[1]) if sys.argv[1:] else RECORD
        target.write_text(json.dumps(outputs(Path(folder)), indent=1, sort_keys=True) + "\n")
