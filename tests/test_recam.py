"""ReCAM: loss, gradients and maps of the released program; two trainings in one; its file."""

from pathlib import Path

import numpy as np
import pytest
import torch
from quick_run import folder_run
from torch import nn

import ribseg
from ribseg.checks import SettingError
from ribseg.errors import ConfigError
from ribseg.functional import class_features, single_class_loss
from ribseg.methods.recam import ReCAM
from ribseg.models import ReCAMClassifier, load_into
from ribseg.modules import ReCAMModule

# Made with Net_CAM_Feature, Class_Predictor and CAM.forward2 of the authors' net/resnet50_cam.py (commit
# 2bdbcd2, MIT), over a convolution and a ReLU instead of the ResNet, in double precision on a CPU.
RECORDED = Path(__file__).parent / "data" / "recam.npz"
NARROW = {"channels": (8, 8, 12, 16)}


class Net(nn.Module):
    """The network of the recording."""

    def __init__(self, recorded):
        super().__init__()
        self.stage = nn.Conv2d(3, 6, 4, stride=4).double()
        self.head, self.second = (nn.Conv2d(6, 4, 1, bias=False).double() for _ in range(2))
        parts = {"stage_weight": self.stage.weight, "stage_bias": self.stage.bias}
        parts |= {"head": self.head.weight, "second": self.second.weight}
        for name, weight in parts.items():
            weight.data = recorded[name].clone()

    @property
    def weight(self):
        """Of the first head."""
        return self.head.weight

    def features(self, images):
        """(N, 3, H, W) -> (N, 6, h, w)."""
        return self.stage(images).relu()


@pytest.fixture(scope="module")
def recorded():
    with np.load(RECORDED) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def small(**given):
    torch.manual_seed(0)
    return ReCAMClassifier("resnet10t", 3, backbone_kwargs=NARROW, **given)


def test_loss_and_gradients_are_those_of_the_released_program(recorded):
    network = Net(recorded)
    found = class_features(network.features(recorded["images"]), network.weight)
    torch.testing.assert_close(found.flatten(), recorded["features"].flatten())
    loss = single_class_loss(found @ network.second.weight.flatten(1).T, recorded["labels"])
    torch.testing.assert_close(loss, recorded["loss"])
    loss.backward()
    torch.testing.assert_close(network.stage.weight.grad, recorded["grad_stage"])
    torch.testing.assert_close(network.head.weight.grad, recorded["grad_head"])
    torch.testing.assert_close(network.second.weight.grad, recorded["grad_second"])


def test_maps_are_those_of_the_released_program(recorded):
    image = recorded["images"][0]
    views = [torch.stack([image, image.flip(-1)])]
    found = ReCAM(Net(recorded))(views=views, labels=torch.tensor([1.0, 0.0, 1.0, 1.0]))
    assert found.classes.tolist() == [0, 2, 3]
    torch.testing.assert_close(found.maps[0], recorded["maps"][[0, 2, 3]].float())
    assert len(ReCAM(Net(recorded))(views=views, labels=torch.zeros(4)).maps[0]) == 0


def test_the_classifier_gives_its_second_heads_logits():
    model = small().eval()
    features = model.features(torch.randn(2, 3, 40, 56))
    expected = class_features(features, model.weight) @ model.second.weight.flatten(1).T
    assert torch.equal(model.single_class_logits(features), expected)


def test_without_a_second_head_it_is_refused():
    plain = ribseg.Classifier("resnet10t", 3, backbone_kwargs=NARROW)
    with pytest.raises(ConfigError, match=r"second head, got Classifier; train one with classifier=recam"):
        ReCAM(plain)
    with pytest.raises(ConfigError, match=r"second head, .*got Classifier"):
        ReCAMModule(plain)


@pytest.mark.parametrize(
    ("name", "value"),
    [("start", 1), ("start", -0.1), ("weight", -1), ("second_lr", 0), ("second_factor", -1), ("lr", 0)],
)
def test_settings_out_of_range_are_refused(name, value):
    with pytest.raises(SettingError, match=name):
        ReCAMModule(small(), **{name: value})


class Trainer:
    """As much of Lightning's as the module asks."""

    estimated_stepping_batches, global_step = 9, 0


def trained(module, steps):
    """The rates of each step, and the weights of the second head after it."""
    module.trainer = trainer = Trainer()
    setup = module.configure_optimizers()
    optimizer, schedule = setup["optimizer"], setup["lr_scheduler"]["scheduler"]
    rates, heads = [], []
    batch = ribseg.types.Sample(("a",) * 4, torch.randn(4, 3, 32, 32), torch.eye(3)[[0, 1, 2, 0]])
    for step in range(steps):
        trainer.global_step = step
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.zero_grad()
        module.training_step(batch, step).backward()
        assert all(p.grad is not None for group in optimizer.param_groups for p in group["params"])
        optimizer.step()
        schedule.step()
        heads.append(module.classifier.second.weight.detach().clone())
    return rates, heads


def test_two_trainings_follow_each_other(monkeypatch):
    monkeypatch.setattr(ReCAMModule, "log", lambda *args, **kwargs: None)
    monkeypatch.setattr(ReCAMModule, "trainer", None, raising=False)
    monkeypatch.setattr(ReCAMModule, "global_step", property(lambda self: self.trainer.global_step))
    module = ReCAMModule(small(), start=5 / 9, second_lr=1e-2, second_factor=0.5, lr=0.1)
    before = module.classifier.second.weight.detach().clone()
    rates, heads = trained(module, 9)
    first = [(1 - k / 5) ** 0.9 for k in range(5)]
    second = [(1 - k / 4) ** 0.9 for k in range(4)]
    expected = [[0.1 * f, f, 0.0] for f in first] + [[5e-3 * f, 5e-3 * f, 1e-2 * f] for f in second]
    np.testing.assert_allclose(rates, expected)
    assert torch.equal(heads[4], before)
    assert not torch.equal(heads[5], before)


def test_a_file_of_it_says_what_it_is(tmp_path):
    model = small(classes=["a", "b", "c"])
    model.save(tmp_path / "recam.safetensors")
    found = ribseg.load(tmp_path / "recam.safetensors")
    assert type(found) is ReCAMClassifier
    assert torch.equal(found.second.weight, model.second.weight)
    plain = ribseg.Classifier("resnet10t", 3, backbone_kwargs=NARROW)
    plain.save(tmp_path / "plain.safetensors")
    assert type(ribseg.load(tmp_path / "plain.safetensors")) is ribseg.Classifier
    with pytest.raises(ConfigError, match=r"second\.weight"):
        load_into(small(), tmp_path / "plain.safetensors")


def test_a_run_with_it(tmp_path, tree):
    run = ("run=[classifier,methods,evaluate]", "methods=[cam,recam]", "classifier.epochs=2")
    quick = ("classifier.model.backbone=resnet10t", "classifier.model.pretrained=false")
    results = folder_run(tmp_path, tree, "classifier=recam", *run, *quick, "classifier.module.start=0.5")
    assert set(results["localization"]) == {"cam", "recam"}
    assert (
        type(ribseg.load(Path(results["store"]["classifier"]) / "classifier.safetensors")) is ReCAMClassifier
    )
    with pytest.raises(ConfigError, match=r"methods\.recam: .*train one with classifier=recam"):
        folder_run(tmp_path, tree, *run)
