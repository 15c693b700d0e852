"""Parts as a user writes them outside the package: none has our settings."""

import pytorch_lightning as pl
import torch
from torch import nn

from ribseg.methods.cam import cam
from ribseg.modules import LocalizationModule


class Pooling:
    def __init__(self, exponent):
        self.exponent = exponent

    def __call__(self, maps, labels):
        return maps.mean((-2, -1)) ** self.exponent


class Method(LocalizationModule):
    """CAMs, made sharper."""

    def __init__(self, classifier, strength):
        super().__init__(classifier)
        self.strength = strength

    def localize(self, image_id, views, labels):
        result = cam(self.classifier, views, labels)
        maps = [view**self.strength for view in result.maps]
        return result._replace(maps=type(result.maps)(maps, result.classes))


class PooledMethod(Method):
    def __init__(self, classifier, pooling, references, strength=1):
        super().__init__(classifier, strength)
        self.pooling, self.references = pooling, references


class BareMethod(pl.LightningModule):
    """Without `localize`."""

    def __init__(self, classifier):
        super().__init__()
        self.classifier = classifier


class Training(pl.LightningModule):
    """Of any network."""

    def __init__(self, classifier=None, network=None, model=None, pace=0.1, optimizer=None):
        super().__init__()
        self.network, self.pace, self.optimizer = classifier or network or model, pace, optimizer

    def training_step(self, batch, batch_idx):
        return self.network(batch.image).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.network.parameters(), lr=self.pace)


class Classifier(nn.Module):
    """Not cut into trunk and tail, and without weights to load."""

    def __init__(self, num_classes, width):
        super().__init__()
        self.num_classes = num_classes
        self.layer = nn.Conv2d(3, width, 3, stride=8, padding=1)
        self.weight = nn.Parameter(torch.zeros(num_classes, width))

    def features(self, images):
        return self.layer(images).relu()

    def forward(self, images):
        return self.features(images).mean((-2, -1)) @ self.weight.T


class Affinities(nn.Module):
    """A network without a backbone of ours."""

    def __init__(self, width):
        super().__init__()
        self.layer = nn.Conv2d(3, width, 3, stride=8, padding=1)

    def forward(self, images):
        return self.layer(images)

    def predict(self, views, crop_size):
        return self(views[:1])[0]
