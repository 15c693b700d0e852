"""What the LightningModules decide: learning rates of a classifier, random draws of an image."""

import torch
from torch import nn

from ribseg.modules.classification import ClassifierModule
from ribseg.modules.localization import LocalizationModule


class Drawing:
    """A method that draws."""

    def __call__(self, views, labels, generator):
        raise NotImplementedError


class TwoParts(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone, self.head = nn.Linear(2, 3), nn.Linear(3, 1)

    def parameter_groups(self):
        return list(self.backbone.parameters()), list(self.head.parameters())


def test_the_head_learns_at_its_own_rate():
    network = TwoParts()
    first, second = ClassifierModule(network, lr=0.2, head_lr_factor=5).new_optimizer().param_groups
    assert first["params"] == list(network.backbone.parameters())
    assert (first["lr"], second["lr"]) == (0.2, 1.0)
    assert (first["momentum"], first["weight_decay"]) == (1e-4, 1e-4)  # as in the released program


def test_each_image_has_draws_of_its_own():
    def draw(name, seed, image_id):
        module = LocalizationModule(None, Drawing(), name=name, seed=seed)
        return module.given(image_id, torch.ones(1))["generator"].random()

    first = draw("rib", 0, "a")
    assert first == draw("rib", 0, "a")
    others = draw("rib", 0, "b"), draw("rib", 1, "a"), draw("cam", 0, "a")
    assert len({first, *others}) == 4
