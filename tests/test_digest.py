"""What names a stage's artefact: settings, files that they name, and the source of a user's code."""

import copy
import dataclasses
import os
import sys
import textwrap
from itertools import zip_longest

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from quick_run import CONF, folder_run

from ribseg.errors import ConfigError
from ribseg.pipeline.plan import KINDS, stages_of
from ribseg.pipeline.recipe import data, trainer
from ribseg.pipeline.recipe.methods import SHOWN, SPEED
from ribseg.pipeline.recipe.session import RunSettings, Session
from ribseg.store.digest import counting
from ribseg.store.sources import source_digest

GROUPS = sorted(path.name for path in CONF.iterdir() if path.is_dir() and path.name != "experiment")
# Those of methods are all parts of methods=all; those of sweep set nothing that the others do not.
EACH = [group for group in GROUPS if group not in ("methods", "sweep")]
FILES = [[f"{group}={path.stem}" for path in sorted((CONF / group).glob("*.yaml"))] for group in EACH]
# Composing takes long: a file of each group at once.
ROUNDS = [["methods=all", "refine.maps=rib", *filter(None, row)] for row in zip_longest(*FILES)]
SHIPPED = [[f"experiment={path.stem}"] for path in sorted((CONF / "experiment").glob("*.yaml"))] + ROUNDS


def composed(*overrides):
    """A configuration as plain values."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", ["data.root=nowhere", *overrides])
    return linked(OmegaConf.to_container(cfg, resolve=True))


def leaves(node, path=()):
    """Paths of all settings below a node; an empty dictionary or list is a setting, too."""
    if not isinstance(node, dict) or not node:
        return [path]
    return [leaf for name, value in node.items() for leaf in leaves(value, (*path, name))]


# Second values of settings that not every number or word will do for.
SECOND = {
    "rate_search.growth": 3.0,
    "evaluate.fixed_threshold": 0.4,
    "export.source": "cam",
    "methods.centre_prior.maps_of": "rib",
    "methods.whole_image.maps_of": "rib",
    "refine.labels.foreground": 0.6,
    "refine.labels.background": 0.05,
    "refine.variants": ["none", "random_walk", "crf", "scenes", "segments"],
    "refine.maps_threshold": 0.3,
    "refine.walk_threshold": 0.3,
    "refine.attention_threshold": 0.3,
    "refine.saliency_side": 512,
    "refine.crf_unary": "maps",
    "refine.crf.gt_prob": 0.6,
    "refine.crf.backend": "torch",
    "refine.segments.source": "slic",
    "segmenter.max_steps": 60_000,
    "segmenter.check_every": 100,
    "segmenter.average": 0.9,
    "segmenter.test.crf": {"iterations": 2, "backend": "torch"},
    "segmenter.test.crf.backend": "torch",
    "segmenter.test.margin": 32,
    "bottleneck.split": "val",
    "segmenter.select": "last",
    "bottleneck.training.margin": 5.0,
    "bottleneck.gradient.normalise": "none",
    "bottleneck.final": "activation",
    "bottleneck.information_bins": 8,
    "progress": False,
    "shard": "1/2",
    "report.published": {"val": {"cam": 0.4}},
    "segmenter.sources": ["cam"],
}
# Every neutral field of a dataclass of settings: a setting that changes results must not get in here.
NEUTRAL_FIELDS = """
progress process_timeout check_files maps.pool_gib imported.folder refine.maps
segmenter.sources segmenter.masks_dir segmenter.expected bottleneck.mnist_root
"""


def changed(cfg, path):
    """The configuration with another value in one place."""
    # Together, so that what is the same object in several places stays so.
    other = cfg | copy.deepcopy({part: cfg[part] for part in {path[0], "methods", "rib", "pooling"}})
    *parents, name = path
    node = other
    for parent in parents:
        node = node[parent]
    old = node[name]
    if ".".join(path) in SECOND:
        node[name] = SECOND[".".join(path)]
        return linked(other)
    new = {bool: lambda: not old, int: lambda: old + 1, float: lambda: old + 0.5, list: lambda: [*old, 7]}
    node[name] = new.get(type(old), lambda: "something else")()
    return linked(other)


def linked(cfg):
    """With the entries of `methods` that refer to other groups, which plain values cannot."""
    cfg["rib"]["pooling"] = cfg["pooling"]
    cfg["methods"] |= {"rib": cfg["rib"]}
    if "wrong_class" in cfg["methods"]:
        cfg["methods"]["wrong_class"]["method"] = cfg["rib"]
    return cfg


def digests(cfg, place):
    """What each stage takes from a configuration; None if it is refused."""
    try:
        session = Session(OmegaConf.create(cfg), place, KINDS)
        return {stage.name: counted_by(stage) for stage in stages_of(session)}
    except REFUSED:
        return None


REFUSED = (ConfigError, AttributeError, KeyError, OSError, OmegaConfBaseException)


def differs(cfg, place, before):
    """Whether a stage takes something else than before; None if the configuration is refused."""
    try:
        return any(counted_by(stage) != before[stage.name] for stage in stages_of(Session(cfg, place, KINDS)))
    except REFUSED:
        return None


def counted_by(stage):
    """What a stage's digest covers; None where the setting that it needs is not there."""
    try:
        return counting(stage.settings(), stage.session.resolve)
    except (ConfigError, OSError):  # e.g. imported.folder="something else"
        return None


def neutral_fields(kind, path):
    """Paths of the neutral settings of a section."""
    for each in dataclasses.fields(kind):
        if each.metadata.get("neutral"):
            yield f"{path}.{each.name}" if path else each.name
        if each.metadata.get("kind"):
            yield from neutral_fields(each.metadata["kind"], f"{path}.{each.name}")


# Sections that select stages and images, or say where and how they are shown.
SECTIONS = {"name", "run", "rerun", "shard", "objective", "engine", "store", "logger", "report", "prepare"}


def neutral_in(path, kinds):
    """Names of a section that are neutral for all that read them."""
    counting_ones = {
        f.name for kind in kinds for f in dataclasses.fields(kind) if not f.metadata.get("neutral")
    }
    found = {name for kind in kinds for name in neutral_fields(kind, path)}
    return found - {f"{path}.{name}" for name in counting_ones}


NEUTRAL = {
    *SECTIONS,
    *neutral_fields(RunSettings, ""),
    *(name for path, kinds in KINDS.items() if path for name in neutral_in(path, kinds)),
    *(f"data.{name}" for name in data.NEUTRAL),
    *(f"trainer.{name}" for name in trainer.NEUTRAL),
}
# Names an input, or a folder whose content counts; what else the first changes are the names of stages.
LINKED = ("rib", "pooling", "methods")
ELSEWHERE = {
    *("refine.maps", "imported.folder", "refine.saliency", "refine.saliency_network"),
    "refine.segments.folder",
}
# Without these some settings are not looked at.
USED = (
    *("rib.lr=auto", "segmenter.select=best", "refine.labels.foreground=auto", "segmenter.validate=true"),
    "refine.variants=[none,random_walk,scenes,segments]",
    "refine.saliency=isnet",
)


def test_every_shipped_setting_counts_or_is_said_to_be_neutral(tmp_path, monkeypatch):
    monkeypatch.setattr("ribseg.pipeline.recipe.session.find_spec", lambda name: object())  # auto: pydensecrf
    seen, wrong = set(), []
    for choices in SHIPPED:
        cfg = composed(*choices, *USED)
        new = [path for path in leaves(cfg) if path not in seen]
        seen.update(new)
        before, node = digests(cfg, tmp_path), OmegaConf.create(cfg)
        assert before is not None, choices
        for path in new:
            above = {".".join(path[:length]) for length in range(1, len(path) + 1)}
            neutral = bool(above & NEUTRAL)
            neutral |= path[0] in ("rib", "methods") and path[-1] in {*SHOWN, *SPEED}
            other, parts = (
                changed(cfg, path),
                {path[0]} | ({"rib", "methods"} if path[0] in LINKED else set()),
            )
            for part in parts:
                node[part] = other[part]
            counts = differs(node, tmp_path, before)
            for part in parts:
                node[part] = cfg[part]
            if not above & ELSEWHERE and counts is not (not neutral):
                wrong.append(f"{'.'.join(path)} of {choices} counts: {counts}, neutral: {neutral}")
    assert not wrong
    assert len(seen) > 200


def test_no_other_field_is_neutral():
    found = {name for path, kinds in KINDS.items() if path for name in neutral_in(path, kinds)}
    assert found | set(neutral_fields(RunSettings, "")) == set(NEUTRAL_FIELDS.split())


def test_what_a_user_adds_counts_or_is_refused(tmp_path):
    cfg = composed("experiment=rib_folder", "+data.my_aug=1", "+rib.mine=1", "+trainer.gradient_clip_val=1")
    for part, name in (("data", "my_aug"), ("rib", "mine"), ("trainer", "gradient_clip_val")):
        one, two = digests(cfg, tmp_path), digests(changed(cfg, (part, name)), tmp_path)
        assert one["rib"] != two["rib"], name
    assert one["classifier"] != two["classifier"]
    with pytest.raises(ConfigError, match=r"evaluate has no setting threshold; it has bootstrap, "):
        Session(OmegaConf.create(composed("+evaluate.threshold=1")), tmp_path, KINDS)


@pytest.mark.parametrize("setting", ["store=outputs", "evaluate=3", "report=none"])
def test_a_value_in_the_place_of_a_section_is_refused(tmp_path, setting):
    with pytest.raises(
        ConfigError, match=f"{setting.partition('=')[0]}: expected settings, as .* got {setting}"
    ):
        Session(OmegaConf.create(composed(setting)), tmp_path, KINDS)


def test_under_a_users_class_nothing_but_the_place_and_the_workers_is_neutral(my_module):
    my_module("mine_a", "class Data: ...")
    node = composed("experiment=rib_folder", "data._target_=mine_a.Data")["data"]
    assert set(data.counted_data(node)) == set(node) - set(data.ANYWHERE)
    assert "devices" in trainer.counted_trainer({"_target_": "mine_a.Data", "devices": 2})


def test_a_file_counts_by_its_content(tmp_path):
    file = tmp_path / "weights.pth"
    file.write_bytes(b"one")
    first = counting({"classifier": {"model": {"weights": str(file)}}})
    moved = file.rename(tmp_path / "moved.pth")
    assert counting({"classifier": {"model": {"weights": str(moved)}}}) == first
    moved.write_bytes(b"two")
    assert counting({"classifier": {"model": {"weights": str(moved)}}}) != first


def test_the_crf_that_is_taken_counts(tmp_path, monkeypatch):
    cfg = composed("experiment=demo")
    taken = []
    for spec in (None, object()):
        monkeypatch.setattr("ribseg.pipeline.recipe.session.find_spec", lambda name, spec=spec: spec)
        taken.append(digests(cfg, tmp_path)["pseudo_masks"])
    assert taken[0] != taken[1]


@pytest.fixture
def my_module(tmp_path, monkeypatch):
    """Writes a module of a user, or a new body of it, that Python finds and reads again."""
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    (tmp_path / "code").mkdir()
    stamps = iter(range(1_000_000_000, 2_000_000_000, 10))  # or Python would take its compiled copy

    def write(name, body):
        path = tmp_path / "code" / f"{name.replace('.', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(body))
        stamp = next(stamps)
        os.utime(path, (stamp, stamp))
        sys.modules.pop(name, None)
        return path

    yield write
    for name in [name for name in sys.modules if name.startswith("mine_")]:
        del sys.modules[name]


@pytest.mark.parametrize(
    "statement", ["import mine_h", "from mine_h import f", "def g():\n    import mine_h"]
)
def test_the_files_beside_a_module_that_it_imports_count(my_module, statement):
    my_module("mine_p", f"{statement}\nclass P: ...")
    my_module("mine_h", "def f(): return 1")
    my_module("mine_other", "x = 1")
    first = source_digest("mine_p.P")
    my_module("mine_other", "x = 2")  # not imported
    assert source_digest("mine_p.P") == first
    my_module("mine_h", "def f(): return 2")
    assert source_digest("mine_p.P") != first


def test_what_an_imported_module_imports_counts(my_module):
    my_module("mine_p", "import mine_h\nclass P: ...")
    my_module("mine_h", "import mine_i")
    my_module("mine_i", "x = 1")
    first = source_digest("mine_p.P")
    my_module("mine_i", "x = 2")
    assert source_digest("mine_p.P") != first


@pytest.mark.parametrize(
    "statement", ["from . import h", "from .h import f", "import mine_k.h", "from .. import x"]
)
def test_the_modules_of_a_package_count(my_module, statement):
    for init in ("mine_k.__init__", "mine_k.sub.__init__"):
        my_module(init, "")
    place = "mine_k.sub.p" if ".." in statement else "mine_k.p"
    my_module(place, f"{statement}\nclass P:\n    class Q: ...")
    my_module("mine_k.h", "def f(): return 1")
    first = source_digest(f"{place}.P.Q")
    my_module("mine_k.__init__" if ".." in statement else "mine_k.h", "def f(): return 2")
    assert source_digest(f"{place}.P.Q") != first


def test_a_circle_of_imports_ends(my_module):
    my_module("mine_a", "import mine_b\nclass A: ...")
    my_module("mine_b", "import mine_a")
    assert source_digest("mine_a.A") == source_digest("mine_a.A")


def test_a_target_that_is_nowhere_has_a_digest_that_it_will_not_keep(my_module):
    cfg = {"pooling": {"_target_": "mine_later.P"}}
    before = counting(cfg)
    my_module("mine_later", "class P: ...")
    assert counting(cfg) != before


@pytest.mark.parametrize("target", ["torch.optim.SGD", "datetime.timedelta", "ribseg.GAP", "numpy.float64"])
def test_libraries_are_not_read(target):
    assert "sources" not in counting({"pooling": {"_target_": target}})


POOLING = """
import torch
class P(torch.nn.Module):
    def forward(self, maps, labels):
        return {factor} * maps.mean((-2, -1))
"""


def test_a_pooling_whose_body_changes_is_run_again(my_module, tmp_path, tree):
    runs = []
    for factor in (1, 1, 50):
        my_module("mine_p", POOLING.format(factor=factor))
        arguments = ("rib.lr=1e-2", "pooling=gap", "pooling._target_=mine_p.P")
        runs.append(folder_run(tmp_path, tree, *arguments, "run=[classifier,rib,evaluate]"))
    stores = [run["store"] for run in runs]
    assert stores[0] == stores[1]
    assert stores[1]["classifier"] == stores[2]["classifier"]
    assert stores[1]["rib"] != stores[2]["rib"]
    assert runs[1]["localization"] != runs[2]["localization"]


def test_a_rate_is_searched_again_for_a_pooling_whose_body_changes(my_module, tmp_path, tree):
    for factor in (1, 50):
        my_module("mine_p", POOLING.format(factor=factor))
        folder_run(tmp_path, tree, "pooling=gap", "pooling._target_=mine_p.P", "run=[classifier,rib]")
    assert len(list((tmp_path / "store").glob("rate-*"))) == 2


NETWORK = "import ribseg\nclass N(ribseg.Classifier):\n    number = {number}\n"
OPTIMIZER = "import torch\nclass O(torch.optim.SGD):\n    number = {number}\n"
DATA = "from ribseg.modules import WSSSDataModule\nclass D(WSSSDataModule):\n    number = {number}\n"
CALLBACK = "from pytorch_lightning import Callback\nclass C(Callback):\n    number = {number}\n"


@pytest.mark.parametrize(
    ("body", "override"),
    [
        (NETWORK, "classifier.model._target_=mine_c.N"),
        (OPTIMIZER, "classifier.module.optimizer._target_=mine_c.O"),
        (DATA, "data._target_=mine_c.D"),
        (CALLBACK, "+callbacks.mine._target_=mine_c.C"),
        (CALLBACK, "+classifier.callbacks.mine._target_=mine_c.C"),
    ],
)
def test_everything_of_a_user_counts_for_the_classifier(my_module, tmp_path, body, override):
    found = []
    for number in (1, 2):
        my_module("mine_c", body.format(number=number))
        found.append(digests(composed("experiment=rib_folder", override), tmp_path)["classifier"])
    assert found[0] != found[1]
