"""IRNet: pairs and losses against slow loops, levels of backbones, the released format, and its training."""

import itertools
import math

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from ribseg.data import VOCFolder
from ribseg.data.augment.segmentation import (
    SegmentationDataset,
    segmentation_eval_transform,
    segmentation_train_transform,
)
from ribseg.errors import ConfigError
from ribseg.functional.irn import affinity_losses, pair_affinity
from ribseg.models import Backbone, IRNet, load_official_irn
from ribseg.modules.irn import IRNModule, strided_labels


def pairs(height, width, radius):
    """All pairs ((y, x), (v, u)): forward ones of pixels that have all their neighbours inside."""
    reach = radius - 1
    for y, x in itertools.product(range(height - reach), range(reach, width - reach)):
        for v, u in itertools.product(range(y, y + radius), range(x - reach, x + radius)):
            if 0 < math.hypot(v - y, u - x) < radius and (v > y or u > x):
                yield (y, x), (v, u)


def highest_between(edge, start, end):
    (y, x), (v, u) = start, end
    length = math.hypot(v - y, u - x)
    return max(
        edge[q][p]
        for q in range(min(y, v), max(y, v) + 1)
        for p in range(min(x, u), max(x, u) + 1)
        if abs((v - y) * (p - x) - (u - x) * (q - y)) / length < 1 - 1e-9
    )


def slow_losses(boundary, displacement, labels, radius):
    kinds = {name: [] for name in ("background", "foreground", "negative", "shift_fg", "shift_bg")}
    for image in range(len(boundary)):
        edge, label = boundary[image].tolist(), labels[image].tolist()
        shift = displacement[image].permute(1, 2, 0).tolist()
        for (y, x), (v, u) in pairs(*boundary.shape[1:], radius):
            if 255 in (label[y][x], label[v][u]):
                continue
            affinity = 1 - highest_between(edge, (y, x), (v, u))
            dy, dx = (shift[y][x][axis] - shift[v][u][axis] for axis in (0, 1))
            if label[y][x] != label[v][u]:
                kinds["negative"].append(-math.log(1 - affinity + 1e-5))
            elif label[y][x] == 0:
                kinds["background"].append(-math.log(affinity + 1e-5))
                kinds["shift_bg"].append((abs(dy) + abs(dx)) / 2)
            else:
                kinds["foreground"].append(-math.log(affinity + 1e-5))
                kinds["shift_fg"].append((abs(dy - (v - y)) + abs(dx - (u - x))) / 2)
    return [sum(values) / (len(values) + 1e-5) for values in kinds.values()]


def example(count=2, height=14, width=17):
    generator = torch.Generator().manual_seed(0)
    boundary = torch.rand(count, height, width, generator=generator, dtype=torch.float64)
    displacement = torch.randn(count, 2, height, width, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 3, (count, 3, 3), generator=generator)
    labels = labels.repeat_interleave(6, 1)[:, :height].repeat_interleave(6, 2)[:, :, :width]
    labels[:, 3:5, 6:9] = 255
    return boundary, displacement, labels


@pytest.mark.parametrize("radius", [2, 3, 5])
def test_losses_against_a_slow_double_loop(radius):
    boundary, displacement, labels = example()
    losses = affinity_losses(boundary, displacement, labels, radius)
    expected = slow_losses(boundary, displacement, labels, radius)
    assert min(expected) > 0.01
    torch.testing.assert_close(torch.stack(losses), torch.tensor(expected, dtype=torch.float64))
    positive, shift = (expected[0] + expected[1]) / 2, (expected[3] + expected[4]) / 2
    assert losses.total.item() == pytest.approx((positive + expected[2]) / 2 + shift)


def test_gradient_of_the_losses():
    boundary, displacement, labels = example(1, 9, 10)
    boundary = (boundary * 0.8 + 0.1).requires_grad_()
    displacement.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda b, d: affinity_losses(b, d, labels, 3).total, (boundary, displacement)
    )


def test_losses_without_any_pair():
    boundary, displacement, labels = example(1)
    assert affinity_losses(boundary, displacement, torch.full_like(labels, 255), 3).total == 0


def test_uint8_labels_and_maps_of_another_size():
    boundary, displacement, labels = example()
    first = affinity_losses(boundary, displacement, labels, 3)
    second = affinity_losses(boundary, displacement, labels.to(torch.uint8), 3)
    assert torch.equal(first.total, second.total)
    with pytest.raises(ValueError, match="stride of the maps"):
        affinity_losses(boundary, displacement, labels[:, 1:], 3)
    with pytest.raises(ValueError, match="smaller radius"):
        pair_affinity(boundary, 10)


@pytest.mark.parametrize(
    "name", ["resnet10t", "efficientnet_b0", "mobilenetv3_small_100", "convnext_atto", "regnetx_002"]
)
def test_any_cnn_with_five_levels(name):
    network = IRNet(Backbone(name)).eval()
    levels = network.features(torch.zeros(1, 3, 96, 64))
    assert [96 // level.shape[2] for level in levels][1:] == [4, 8, 16, 16]
    assert 96 // levels[0].shape[2] in (2, 4)
    views = torch.rand(2, 3, 75, 58)
    predicted = network.predict(views, crop_size=0)
    assert predicted.boundary.shape == (19, 15)
    assert predicted.displacement.shape == (2, 19, 15)
    assert 0 < predicted.boundary.min() <= predicted.boundary.max() < 1


def test_backbone_is_frozen_and_branches_are_not():
    network = IRNet(Backbone("resnet10t")).train()
    assert not network.backbone.training
    assert network.boundary.training
    before = {key: value.clone() for key, value in network.backbone.state_dict().items()}
    output = network(torch.rand(2, 3, 64, 64))
    (output.boundary.sum() + output.displacement.sum()).backward()
    assert all(p.grad is None for p in network.backbone.parameters())
    branches = [*network.boundary.parameters(), *network.displacement.parameters()]
    assert all(p.grad is not None for p in branches)
    assert all(torch.equal(before[key], value) for key, value in network.backbone.state_dict().items())


def test_prediction_is_the_mean_of_image_and_mirror_image():
    network = IRNet(Backbone("resnet10t")).eval()
    network.displacement_mean.copy_(torch.tensor([0.5, -0.25]))
    image = torch.rand(1, 3, 64, 96)
    views = torch.cat([image, image.flip(-1)])
    predicted = network.predict(views, crop_size=96)
    with torch.no_grad():
        output = network(torch.nn.functional.pad(views, (0, 0, 0, 32)))
    logits = output.boundary[:, :16]
    torch.testing.assert_close(predicted.boundary, ((logits[0] + logits[1].flip(-1)) / 2).sigmoid())
    shifted = output.displacement[0, :, :16] - torch.tensor([0.5, -0.25])[:, None, None]
    torch.testing.assert_close(predicted.displacement, shifted)
    torch.testing.assert_close(network.predict(views.flip(0), 96).boundary, predicted.boundary.flip(-1))
    with pytest.raises(ValueError, match="mirror image"):
        network.predict(image)


def test_backbone_without_the_strides():
    backbone = Backbone("resnet10t")
    backbone.stages[0].maxpool = torch.nn.Identity()
    with pytest.raises(ConfigError, match="strides 4 and 8"):
        IRNet(backbone)


def released_state(network):
    """A checkpoint as the released program writes it: every layer up to three times, and index tables."""
    layers = {
        f"fc_edge{i + 1}": {"0": level[0], "1": level[1]} for i, level in enumerate(network.boundary.levels)
    }
    layers["fc_edge6"] = {"": network.boundary.final}
    branch = network.displacement
    layers |= {f"fc_dp{i + 1}": {"0": level[0], "1": level[1]} for i, level in enumerate(branch.levels)}
    layers["fc_dp6"] = {"0": branch.deep[0], "1": branch.deep[1]}
    layers["fc_dp7"] = {"0": branch.merge[0], "1": branch.merge[1], "3": branch.final}
    state = {}
    for name, parts in layers.items():
        number = int(name[-1]) - 1
        for prefix in (name, f"{'edge_layers' if 'edge' in name else 'dp_layers'}.{number}"):
            for index, layer in parts.items():
                path = ".".join(filter(None, (prefix, index)))
                state |= {f"{path}.{key}": value for key, value in layer.state_dict().items()}
    for stage in network.backbone.stages:
        for key, value in stage.state_dict().items():
            state[f"resnet50.{key}"] = value
            layer, rest = key.split(".", 1)
            if layer in ("conv1", "bn1"):
                number = ("conv1", "bn1").index(layer)
                state |= {f"stage1.{number}.{rest}": value, f"backbone.0.{number}.{rest}": value}
            else:
                number = int(layer[-1])
                state |= {f"stage{number + 1}.0.{rest}": value, f"backbone.{number}.0.{rest}": value}
    for key in ("mean_shift.running_mean", "fc_dp7.4.running_mean", "dp_layers.6.4.running_mean"):
        state[key] = network.displacement_mean
    return state | {
        "resnet50.fc.weight": torch.zeros(1000, 2048),
        "path_indices0": torch.zeros(4, 2, 9, dtype=torch.int64),
        "disp_target": torch.zeros(1, 2, 4, 1),
    }


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A released-format checkpoint with random weights, its path, and the network."""
    network = IRNet(Backbone("resnet50.tv_in1k"))
    network.displacement_mean.copy_(torch.tensor([1.5, -2.0]))
    path = tmp_path_factory.mktemp("irn") / "res50_irn.pth"
    state = released_state(network)
    torch.save(state, path)
    return path, state, network


def test_loads_the_released_format(released):
    path, _, network = released
    loaded = load_official_irn(path)
    expected = network.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in loaded.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"edge_layers.0.0.weight": torch.zeros(32, 64, 1, 1)}, "twice"),
        ({"fc_edge6.weight": None, "edge_layers.5.weight": None}, "missing"),
        ({"classifier.weight": torch.zeros(20, 2048, 1, 1)}, "unknown"),
    ],
)
def test_refuses_what_is_not_the_released_format(released, tmp_path, change, message):
    state = {key: value for key, value in (released[1] | change).items() if value is not None}
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(ConfigError, match=message):
        load_official_irn(tmp_path / "other.pth")


def loader(folder, transform, **settings):
    dataset = SegmentationDataset(folder.ids, folder.image, folder.mask, transform)
    return DataLoader(dataset, **settings)


def fit(module, folder, epochs, tmp_path, validate=True):
    trainer = pl.Trainer(
        max_epochs=epochs,
        check_val_every_n_epoch=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=tmp_path,
    )
    training = loader(folder, segmentation_train_transform(64), batch_size=4, drop_last=True)
    plain = loader(folder, segmentation_eval_transform(64), batch_size=3)
    trainer.fit(module, training, plain if validate else None)
    return trainer, plain


def test_training_learns_and_measures_the_mean_displacement(voc_tree, tmp_path):
    pl.seed_everything(0, verbose=False)
    folder = VOCFolder(voc_tree, "train")
    network = IRNet(Backbone("resnet10t"))
    module = IRNModule(network, radius=4)
    trainer, _ = fit(module, folder, 1, tmp_path)
    first = trainer.callback_metrics["train/loss"]
    trainer, plain = fit(module, folder, 8, tmp_path)
    assert trainer.callback_metrics["train/loss"] < first
    assert [group["lr"] for group in trainer.optimizers[0].param_groups] == pytest.approx([0, 0])
    assert [group["initial_lr"] for group in trainer.optimizers[0].param_groups] == [0.1, 1.0]
    with torch.no_grad():
        means = torch.cat([network(batch.image).displacement.mean((2, 3)) for batch in plain])
    torch.testing.assert_close(network.displacement_mean, means.mean(0), rtol=1e-4, atol=1e-5)
    assert "network.displacement_mean" in module.state_dict()


def test_warns_if_the_mean_displacement_is_not_measured(voc_tree, tmp_path):
    module = IRNModule(IRNet(Backbone("resnet10t")), radius=4)
    with pytest.warns(UserWarning, match="mean displacement was not measured"):
        fit(module, VOCFolder(voc_tree, "train"), 1, tmp_path, validate=False)


def test_strided_labels_take_the_middle_of_each_cell():
    mask = torch.randint(0, 256, (2, 32, 24), dtype=torch.uint8)
    assert torch.equal(strided_labels(mask, (8, 6)), mask[:, 2::4, 2::4])
    assert strided_labels(torch.full((1, 30, 30), 255), (8, 8)).unique().tolist() == [255]
