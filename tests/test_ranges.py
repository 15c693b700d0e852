"""Settings out of range are refused before the first stage; parts of a user's own are not asked for ours."""

import math
from copy import deepcopy

import pytest
import torch
from omegaconf import OmegaConf
from quick_run import begun, folder_run, make_learnable_tree, settings

import ribseg
from ribseg.checks import SettingError, check_choice, check_number, check_numbers, check_switch
from ribseg.data.io.maps import LocalizationMaps
from ribseg.errors import ConfigError
from ribseg.functional import dense_crf, gndrp, pixel_adaptive, random_walk
from ribseg.functional.losses import rib_loss, segmentation_loss
from ribseg.methods.refine import check_confidence, walk_maps
from ribseg.metrics import bootstrap_miou
from ribseg.models import Backbone, DeepLabV2, IRNet, PSANet
from ribseg.models.inference import check_inference, predict_labels
from ribseg.modules import ClassifierModule, SegmentationModule
from ribseg.modules.irn import IRNModule
from ribseg.modules.psa import PSAModule
from ribseg.modules.refining import RandomWalkModule
from ribseg.modules.toy import BottleneckModule, ToyModule
from ribseg.pipeline.plan import KINDS
from ribseg.pipeline.recipe.session import Session
from ribseg.pipeline.run import check

WHOLE_RUN = "run=[classifier,cam,rib,controls,refine,segmenter,evaluate,report]"
NEVER = (math.nan, math.inf, -math.inf, "many", True, [1], {"a": 1})
NUMBER, COUNT = (None, *NEVER), (None, 1.5, *NEVER)
POSITIVE, RATE = (0, -1, *NUMBER), (-1, *NUMBER)
SHARE = (-0.1, 1.1, *NUMBER)
OPEN = NEVER  # null is allowed
AT_LEAST_1, AT_LEAST_0, AT_LEAST_2 = (0, -1, *COUNT), (-1, *COUNT), (1, -1, *COUNT)
SWITCH = ("yes", "false", 1, 0, None)

STAGE_SETTINGS = {  # what the stages themselves read
    "seed": (*AT_LEAST_0, 2**32),
    "classifier.epochs": AT_LEAST_1,
    "maps.pool_gib": RATE,
    "rate_search.images": AT_LEAST_1,
    "rate_search.low": POSITIVE,
    "rate_search.high": POSITIVE,
    "rate_search.completed": SHARE,
    "rate_search.growth": (1, 0, -1, *OPEN),
    "evaluate.thresholds": AT_LEAST_2,
    "evaluate.fixed_threshold": (-0.1, 1.1, *OPEN),
    "evaluate.bootstrap": AT_LEAST_1,
    "report.examples": AT_LEAST_1,
    "affinity.epochs": AT_LEAST_1,
    "affinity.batch_size": AT_LEAST_1,
    "affinity.crop_size": AT_LEAST_1,
    "refine.labels.foreground": SHARE,
    "refine.labels.background": SHARE,
    "refine.maps_threshold": SHARE,
    "refine.walk_threshold": SHARE,
    "refine.attention_threshold": SHARE,
    "refine.saliency_threshold": SHARE,
    "refine.scenes.overlap": SHARE,
    "refine.scenes.cut": SHARE,
    "refine.crf_unary": ("map", 1, None),
    "segmenter.max_steps": AT_LEAST_1,
    "segmenter.batch_size": AT_LEAST_1,
    "segmenter.accumulate": AT_LEAST_1,
    "segmenter.crop_size": AT_LEAST_1,
    "segmenter.check_every": AT_LEAST_1,
    "segmenter.average": (-0.1, 1.1, *OPEN),
    "bottleneck.seeds": AT_LEAST_1,
    "bottleneck.marked": SHARE,
    "bottleneck.images.train": AT_LEAST_1,
    "bottleneck.images.measured": AT_LEAST_1,
    "bottleneck.images.scored": AT_LEAST_1,
    "bottleneck.training.epochs": AT_LEAST_1,
    "bottleneck.training.batch_size": AT_LEAST_1,
    "bottleneck.training.margin": OPEN,
    "bottleneck.saturation": RATE,
    "bottleneck.information_bins": (0, 1.5, *OPEN),
    "bottleneck.examples": AT_LEAST_1,
    "progress": ("yes", "line", 1, 0, None),
    **dict.fromkeys(
        [
            "tf32",
            "check_files",
            "evaluate.boxes",
            "evaluate.boundary",
            "maps.full",
            "export.program",
            "affinity.backbone.pretrained",
            "refine.labels.crf",
            "segmenter.sync_batchnorm",
            "segmenter.validate",
            "bottleneck.wrong_class",
        ],
        SWITCH,
    ),
    # Those of functions, which are called with a section of the configuration.
    "refine.segments.share": (0, *SHARE),
    "refine.segments.slic.n_segments": AT_LEAST_1,
    "refine.segments.slic.compactness": POSITIVE,
    "refine.segments.felzenszwalb.scale": POSITIVE,
    "refine.segments.felzenszwalb.sigma": RATE,
    "refine.segments.felzenszwalb.min_size": AT_LEAST_1,
    "refine.pixel_adaptive.iterations": AT_LEAST_0,
    "refine.pixel_adaptive.temperature": POSITIVE,
    "refine.walk.steps": AT_LEAST_0,
    "refine.walk.radius": AT_LEAST_2,
    "refine.walk.beta": POSITIVE,
    "refine.walk.power": RATE,
    "refine.walk.per_class": SWITCH,
    "refine.attention.blocks": AT_LEAST_1,
    "refine.attention.rounds": AT_LEAST_1,
    "refine.attention.power": AT_LEAST_1,
    "refine.attention.box_threshold": SHARE,
    "refine.attention.short_boxes": SWITCH,
    "refine.crf.iterations": AT_LEAST_0,
    "refine.crf.gt_prob": (0, 1, *SHARE),
    "refine.crf.bilateral_srgb": POSITIVE,
    "segmenter.test.tile": (0, 15, 20.5, *OPEN),
    "segmenter.test.margin": (-1, 2.5, 20, *OPEN),
    "segmenter.test.flip": SWITCH,
    "segmenter.test.crf.iterations": AT_LEAST_0,
}
OBJECT_SETTINGS = {  # what is built before the first stage refuses; two values are enough to see that it is
    "data.batch_size": (0, 1.5),
    "data.crop_size": (-1, True),
    "data.max_side": (0, "large"),
    "rib.steps": (-1, 2.5),
    "rib.lr": (-1.0, "atuo"),
    "rib.head_lr_factor": (-1, math.nan),
    "rib.weight_decay": (-1, None),
    "rib.references": (-1, 1.5, None, True, "all"),
    "rib.reference_chunk": (0, 2.5),
    "rib.margin": ("abc", math.inf),
    "rib.area_limit": (1.5, "none"),
    "rib.area_threshold": (-0.1, None),
    "rib.compile": ("yes", None),
    "rib.loss_views": (0, [0.5], [-1], [], [0, 2]),
    "rib.preset": ("mine",),
    "rib.trainable": ("heads",),
    "pooling.threshold": (3, None),
    "pooling.num_masked_classes": (-1, 2.5),
    "classifier.model.pretrained": ("yes", None),
    "classifier.model.atrous": ("no", 1),
    "classifier.module.lr": (-1, None),
    "classifier.module.power": (math.nan, "flat"),
    "affinity.module.radius": (1, 2.5),
    "affinity.module.lr": (-1, True),
    "segmenter.module.lr": (-1, "auto"),
    "segmenter.module.head_lr_factor": (-1, None),
    "segmenter.module.head_bias_lr_factor": (-1, math.inf),
    "segmenter.module.power": (-1, True),
    "segmenter.module.balanced": ("yes", None),
    "segmenter.module.loss_scales": ([0], 1),
    "segmenter.model.pretrained": ("yes", None),
}
TOY_SETTINGS = {
    "bottleneck.training.lr": (0, "auto"),
    "bottleneck.rib.steps": (-1, 1.5),
    "bottleneck.rib.lr": (-1, None),
    "bottleneck.rib.head_lr_factor": (-1, True),
    "bottleneck.rib.weight_decay": (-1, "none"),
    "bottleneck.rib.margin": (math.nan, "none"),
    "bottleneck.rib.area_limit": (2, "none"),
    "bottleneck.gradient.threshold": (-1, None),
    "bottleneck.gradient.sigma": (-1, math.inf),
    "pooling.threshold": (-1, True),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("ranges")


@pytest.fixture(scope="module")
def whole(place):
    """The configuration of a quick run through all stages but the toy's."""
    return settings("rib_folder", place, f"data.root={make_learnable_tree(place / 'tree')}", WHOLE_RUN)


@pytest.fixture(scope="module")
def toy(place):
    return settings("toy_bottleneck", place)


def changed(cfg, values):
    """A copy of a configuration with other values, of any type, at their places."""
    cfg = deepcopy(cfg)
    OmegaConf.set_struct(cfg, False)
    for name, value in values.items():
        put(cfg, name, value)
    OmegaConf.set_struct(cfg, True)
    return cfg


def put(cfg, name, value):
    """Sets a value; a section takes the place of the one that is there."""
    section, _, last = name.rpartition(".")
    (OmegaConf.select(cfg, section) if section else cfg)[last] = value


def checked(cfg, place, values=()):
    """Everything that comes before the first stage."""
    session = begun(changed(cfg, dict(values)), place / "out")
    check(session, {})
    return session


def refused(cfg, place, values, message=""):
    with pytest.raises(ConfigError, match=message) as caught:
        checked(cfg, place, values)
    made = {path.name.rsplit("-", 1)[0] for path in (place / "store").glob("*")}
    assert not made & {"classifier", "cam", "rib", "pseudo_masks", "affinity", "toy_networks"}
    return str(caught.value)


@pytest.mark.parametrize("name", STAGE_SETTINGS)
def test_settings_of_the_stages_are_refused_at_once(name, whole, place):
    cfg = changed(whole, {})
    for value in STAGE_SETTINGS[name]:
        put(cfg, name, value)
        with pytest.raises(ConfigError) as caught:
            Session(cfg, place / "out", KINDS)
        said = str(caught.value)
        if isinstance(value, dict):
            continue  # a section where a number is expected; some are said by its first entry
        assert f"{name}: expected" in said or (name == "segmenter.test.margin" and "tile > 2" in said), said
        assert ("null" if value is None else repr(value)) in said, said


@pytest.mark.parametrize("name", OBJECT_SETTINGS)
def test_settings_of_objects_are_refused_before_the_first_stage(name, whole, place):
    for value in OBJECT_SETTINGS[name]:
        said = refused(whole, place, {name: value})
        assert name in said, said
        assert "expected" in said, said
        found = value[0] if isinstance(value, list) and f"{name}[0]" in said else value
        assert ("null" if found is None else repr(found)) in said, said


@pytest.mark.parametrize("name", TOY_SETTINGS)
def test_settings_of_the_toy_experiment_are_refused_before_the_first_stage(name, toy, place):
    for value in TOY_SETTINGS[name]:
        said = refused(toy, place, {name: value})
        assert f"{name}: expected" in said, said


def test_all_settings_of_the_stages_that_are_wrong_are_said_at_once(whole, place):
    values = {"seed": -1, "evaluate.bootstrap": 0, "tf32": "maybe"}
    refused(whole, place, values, r"(?s)seed: expected.*tf32: expected true or false.*evaluate\.bootstrap: ")


def test_quick_runs_and_their_edges_are_accepted(whole, toy, place):
    checked(whole, place)
    checked(toy, place)
    edges = {
        "rib.margin": None, "rib.area_limit": 1, "rib.references": 0, "rib.lr": 0,
        "evaluate.fixed_threshold": 0, "refine.maps_threshold": "unsupervised", "refine.walk.steps": 0,
        "refine.labels.foreground": 1.0, "refine.labels.background": 1.0, "segmenter.average": 0.9,
        "segmenter.test.tile": None, "data.max_side": None, "rib.reference_chunk": 1,
    }  # fmt: skip
    checked(whole, place, edges)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rib.lr": "auto", "rib.margin": None, "rib.area_limit": None}, "stop rules"),
        ({"rib.lr": "auto", "rib.preset": "paper", "rib.area_limit": None}, "stop rules"),
        ({"rib.lr": "auto", "rate_search.low": 2.0}, "low <= high"),
        ({"refine.labels.foreground": 0.1, "refine.labels.background": 0.2}, "background <= foreground"),
        ({"refine.walk.stepz": 3}, r"refine\.walk: .*stepz.*it knows power, radius"),
        ({"refine.crf.sxy": 3}, r"refine\.crf: .*sxy"),
        ({"segmenter.test.scale": 3}, r"segmenter\.test: .*'scale'"),
        ({"bottleneck.gradient.treshold": 3, "run": ["bottleneck"]}, r"bottleneck\.gradient: .*treshold"),
        ({"rib.stepz": 3}, r"rib: .*stepz"),
        ({"methods.mine": 3}, r"methods\.mine: expected a _target_ and its settings, got 3"),
        ({"methods.mine": {"steps": 3}}, r"methods\.mine: expected a _target_ with the name"),
        ({"pooling.tau": 3}, r"pooling: .*tau"),
        ({"classifier.model.depth": 3}, r"classifier\.model: .*depth"),
        ({"classifier.module.rate": 3}, r"classifier\.module: .*rate"),
        ({"affinity.module.rate": 3}, r"affinity\.module: .*rate"),
        ({"segmenter.module.rate": 3}, r"segmenter\.module: .*rate"),
        ({"segmenter.precision": "15-true"}, r"segmenter\.precision=15-true"),
        ({"trainer.presicion": "32"}, "presicion"),
        ({"classifier.module.optimizer.weight_decay": -1}, r"classifier\.module\.optimizer: .*decay.*-1"),
        ({"classifier.module.optimizer.mometum": 0.9}, r"classifier\.module\.optimizer: .*mometum"),
        ({"segmenter.module.optimizer.weight_decay": -1}, r"segmenter\.module\.optimizer: .*weight_decay"),
        (
            {"affinity.module.optimizer": {"_target_": "torch.optim.SGD", "_partial_": True, "momentum": -2}},
            r"affinity\.module\.optimizer: .*momentum",
        ),
        ({"logger": {"_target_": "pytorch_lightning.loggers.CSVLogger", "folder": "x"}}, r"logger.*folder"),
    ],
)  # fmt: skip
def test_unknown_arguments_and_contradictions_are_refused(whole, place, values, message):
    refused(whole, place, values, message)


TARGETS = (
    "trainer", "data", "classifier.model", "classifier.module", "classifier.module.optimizer", "pooling",
    "rib", "affinity.network", "affinity.module", "segmenter.model", "segmenter.module",
    "segmenter.module.optimizer",
)  # fmt: skip


@pytest.mark.parametrize("path", TARGETS)
@pytest.mark.parametrize(
    "target", ["nowhere.Thing", "ribseg.methods.pooling.GNDRPP", "ribseg.functional.losses.TINY"]
)
def test_targets_that_are_not_there_are_named(whole, place, path, target):
    said = refused(whole, place, {f"{path}._target_": target})
    assert f"{path}._target_={target}" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("node", [{"a": {"_target_": "nowhere.L"}}, {"_target_": "nowhere.L"}])
def test_loggers_that_are_not_there_are_named(whole, place, node):
    refused(whole, place, {"logger": node}, r"logger.*nowhere\.L(?s:.*)No module named")


def test_loggers_are_not_made_by_the_check(whole, place):
    csv, board = (f"pytorch_lightning.loggers.{name}Logger" for name in ("CSV", "TensorBoard"))
    several = {"a": {"_target_": csv, "flush_logs_every_n_steps": 5}, "b": {"_target_": board}}
    checked(whole, place, {"logger": several})
    assert not (place / "out" / "logs").exists()
    refused(whole, place, {"logger": several | {"c": {"_target_": csv, "folder": "x"}}}, "folder")


def test_toy_targets_that_are_not_there_are_named(toy, place):
    refused(toy, place, {"bottleneck.rib._target_": "nowhere.M"}, r"bottleneck\.rib\._target_=nowhere\.M")


def test_what_a_run_does_not_use_is_not_asked(whole, place):
    wrong = {"affinity.module._target_": "nowhere.M", "segmenter.module._target_": "nowhere.M"}
    checked(whole, place, {"run": ["classifier", "cam"], **wrong, "bottleneck.rib._target_": "nowhere.M"})


OWN = {
    "rib": {"_target_": "own_parts.Method", "strength": 2},
    "pooling": {"_target_": "own_parts.Pooling", "exponent": 1},
    "classifier.module": {"_target_": "own_parts.Training", "pace": 0.1},
    "affinity.network": {"_target_": "own_parts.Affinities", "width": 4},
    "affinity.module": {"_target_": "own_parts.Training"},
    "segmenter.module": {"_target_": "own_parts.Training"},
}


@pytest.mark.parametrize("path", OWN)
def test_own_parts_are_not_asked_for_our_settings(path, whole, place):
    others = {"affinity.module": OWN["affinity.module"]} if path == "affinity.network" else {}
    checked(whole, place, {path: OWN[path]} | others)


def test_an_own_network_needs_no_weights_to_load(whole, place):
    run = {
        "run": ["classifier", "cam", "rib"],
        "rib": OWN["rib"],
        "classifier.module": OWN["classifier.module"],
    }
    network = {"_target_": "own_parts.Classifier", "width": 4}
    checked(whole, place, {"classifier.model": network, "classifier.official_checkpoint": None, **run})


def test_a_run_with_own_parts(tmp_path, tree, whole, place):
    from ribseg.pipeline.run import run

    own = {path: OWN[path] for path in ("rib", "pooling", "classifier.module")}
    cfg = changed(whole, {**own, "store.root": str(tmp_path / "store"), "data.root": str(tree)})
    cfg.run = ["classifier", "cam", "rib", "controls", "evaluate"]
    results = run(cfg, tmp_path / "out")
    assert {"cam", "rib", "wrong_class"} <= set(results["localization"])


def test_an_own_method_gets_what_it_takes(whole, place):
    pooling = {"_target_": "ribseg.GAP"}
    checked(
        whole, place, {"rib": {"_target_": "own_parts.PooledMethod", "references": 2, "pooling": pooling}}
    )
    refused(
        whole, place, {"rib": {"_target_": "own_parts.Method", "references": 2}}, r"rib\.references=2 would"
    )
    refused(whole, place, {"rib": {"_target_": "own_parts.Method", "power": 2}}, r"rib: .*power")
    refused(
        whole, place, {"rib": {"_target_": "own_parts.NoMethod"}}, r"rib: expected a callable with views="
    )


def test_the_optimizer_of_an_own_module_is_made_once(whole, place):
    node = {"_target_": "torch.optim.SGD", "_partial_": True, "momentum": -1}
    own = {"_target_": "own_parts.Training", "optimizer": node}
    refused(whole, place, {"segmenter.module": own}, r"segmenter\.module\.optimizer: .*momentum")


def classifier(**settings):
    return ribseg.Classifier("resnet10t", 2, backbone_kwargs={"channels": [8, 8, 12, 16]}, **settings)


def deeplab(**settings):
    kwargs = {"channels": [8, 8, 12, 16]}
    return DeepLabV2(3, "resnet10t", dilations=(1,), backbone_kwargs=kwargs, **settings)


BACKBONE = Backbone("resnet10t", kwargs={"channels": [8, 8, 12, 16]})
CLASSIFIER, DEEPLAB, IRN, PSA = classifier(), deeplab(), IRNet(BACKBONE), PSANet(BACKBONE)
MAPS = LocalizationMaps(torch.tensor([0]), torch.rand(1, 4, 4), None, (16, 16))
RATES = {"lr": RATE, "power": RATE}
BY_CALL = {
    "rib": (
        lambda **k: ribseg.RIB(CLASSIFIER, **k),
        {
            "steps": AT_LEAST_0, "head_lr_factor": RATE, "weight_decay": RATE, "momentum": RATE,
            "margin": OPEN, "area_limit": (-0.1, 1.1, *OPEN), "area_threshold": SHARE,
            "reference_chunk": (0, 1.5, *OPEN), "compile": SWITCH,
            "loss_views": (0, [], "0", [0.5], [True], [-1], None), "views": (0, 1.5, *OPEN), **RATES,
        },
    ),
    "gndrp": (
        lambda **k: gndrp(torch.ones(1, 1, 2, 2), torch.ones(1, 1), **k),
        {"threshold": SHARE, "num_masked_classes": (-1, 1.5, *OPEN)},
    ),
    "GNDRP": (ribseg.GNDRP, {"threshold": SHARE}),
    "classifier training": (lambda **k: ClassifierModule(CLASSIFIER, **k), {"head_lr_factor": RATE, **RATES}),
    "irn": (
        lambda **k: IRNModule(IRN, **k),
        {"radius": AT_LEAST_2, "displacement_lr_factor": RATE, **RATES},
    ),
    "psa": (lambda **k: PSAModule(PSA, **k), {"radius": AT_LEAST_2, **RATES}),
    "segmenter training": (
        lambda **k: SegmentationModule(DEEPLAB, **k),
        {
            "head_lr_factor": RATE, "head_bias_lr_factor": RATE, "balanced": SWITCH,
            "loss_scales": (1, [], [0], ["a"], None),
            "class_weights": ([1, 2], [1, 2, -1], 1, [1, 2, math.nan]),
            "tile": (0, 1.5, *OPEN), **RATES,
        },
    ),
    "classifier": (classifier, {"pretrained": SWITCH, "atrous": SWITCH}),
    "deeplab": (deeplab, {"pretrained": SWITCH}),
    "toy training": (lambda **k: ToyModule(None, **k), {"lr": POSITIVE}),
    "walk": (
        lambda **k: RandomWalkModule(PSA, None, **k),
        {
            "crop_size": AT_LEAST_1, "steps": AT_LEAST_0, "radius": AT_LEAST_2, "beta": POSITIVE,
            "power": RATE, "per_class": SWITCH,
        },
    ),
    "walk_maps": (
        lambda **k: walk_maps(MAPS, torch.zeros(4, 4), (16, 16), **k),
        {"steps": AT_LEAST_0, "power": RATE, "per_class": SWITCH},
    ),
    "random_walk": (
        lambda **k: random_walk(torch.rand(1, 4, 4), torch.zeros(4, 4), **k),
        {"steps": AT_LEAST_0, "radius": AT_LEAST_2, "beta": POSITIVE},
    ),
    "pixel_adaptive": (
        lambda **k: pixel_adaptive(torch.rand(3, 4, 4), torch.rand(1, 4, 4), **k),
        {"iterations": AT_LEAST_0, "temperature": POSITIVE, "dilations": ([], [0], [1.5], 3, None)},
    ),
    "dense_crf": (
        lambda **k: dense_crf(torch.zeros(4, 4, 3, dtype=torch.uint8), torch.zeros(4, 4).long(), **k),
        {
            "iterations": AT_LEAST_0, "gt_prob": (0, 1, *NUMBER), "gaussian_sxy": POSITIVE,
            "gaussian_compat": RATE, "bilateral_sxy": POSITIVE, "bilateral_srgb": POSITIVE,
            "bilateral_compat": RATE,
        },
    ),
    "confidence": (check_confidence, {"foreground": SHARE, "background": SHARE}),
    "inference": (
        check_inference,
        {
            "tile": (0, 15, 16.5, *OPEN), "margin": (-1, 1.5, *OPEN), "flip": SWITCH,
            "scales": (1, [], [0], None),
        },
    ),
    "predict_labels": (
        lambda **k: predict_labels(DEEPLAB, torch.zeros(9, 9, 3, dtype=torch.uint8).numpy(), **k),
        {"flip": SWITCH, "tile": (0, 8.5, *OPEN), "scales": ([], [0])},
    ),
    "rib_loss": (lambda **k: rib_loss(torch.ones(1, 1), torch.ones(1, 1), **k), {"margin": OPEN}),
    "segmentation_loss": (
        lambda **k: segmentation_loss(torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2), **k),
        {"balanced": SWITCH, "at": ("here", None, 1)},
    ),
    "bootstrap": (lambda **k: bootstrap_miou(torch.ones(2, 3, 2), **k), {"resamples": AT_LEAST_1}),
}  # fmt: skip


@pytest.mark.parametrize(
    ("part", "argument"), [(part, name) for part in BY_CALL for name in BY_CALL[part][1]]
)
def test_arguments_are_refused_where_they_are_given(part, argument):
    call, ranges = BY_CALL[part]
    given = {"background": 0.0, "foreground": 1.0} if part == "confidence" else {}
    given |= {"tile": 64} if (part, argument) == ("inference", "margin") else {}
    for value in ranges[argument]:
        with pytest.raises(SettingError, match=rf"^{argument}(\[\d\])?: expected ") as caught:
            call(**(given | {argument: value}))
        found = value[-1] if isinstance(value, list) and "]:" in str(caught.value) else value
        assert str(caught.value).endswith(f"got {'null' if found is None else repr(found)}"), caught.value


def test_gradient_arguments_of_the_toy_experiment():
    from ribseg.models import ToyNet

    for gradient in ({"sigma": -1}, {"threshold": "low"}, {"normalise": "mean"}):
        with pytest.raises(SettingError, match=next(iter(gradient))):
            BottleneckModule(ToyNet(), ribseg.GAP(), gradient=gradient, preset="paper", loss_views=[0])
    with pytest.raises(SettingError, match="wrong_class"):
        BottleneckModule(ToyNet(), ribseg.GAP(), wrong_class="no", preset="paper", loss_views=[0])


def test_checks_accept_what_is_in_range():
    import numpy as np

    for value in (0, 3, np.int64(3), 10**400):
        check_number("n", value, low=0, whole=True)
    for value in (0.5, np.float32(0.5), 1, "auto"):
        check_number("n", value, 0, 1, words=("auto",))
    check_number("n", None, words=(None,))
    check_numbers("n", (1, 2.5), number=2, above=0)
    check_switch("n", False)
    check_choice("n", "a", ("a", "b"))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, "a number"),
        ({"low": 0}, "a number >= 0"),
        ({"low": 0, "high": 1, "words": (None, "auto")}, "a number in [0, 1], or null, or auto"),
        ({"above": 0, "below": 1}, "a number > 0 and < 1"),
        ({"low": 0, "high": 2**32 - 1, "whole": True}, "an integer in [0, 4294967295]"),
    ],
)
def test_ranges_are_said_in_full(arguments, expected):
    with pytest.raises(SettingError) as caught:
        check_number("n", math.nan, **arguments)
    assert str(caught.value) == f"n: expected {expected}, got nan"


@pytest.mark.parametrize("override", ["rib.steps=2.5", "classifier.module.optimizer.betas=3", "seed=-1"])
def test_a_whole_run_leaves_no_stage_behind(tmp_path, tree, override):
    with pytest.raises(ConfigError, match=r"expected|classifier\.module\.optimizer"):
        folder_run(tmp_path, tree, f"++{override}")
    assert not [path for path in (tmp_path / "store").glob("*") if not path.name.startswith("data-")]
