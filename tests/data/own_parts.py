"""Parts as a user writes them outside the package: none has our settings."""

import pytorch_lightning as pl
import torch
from torch import nn

from ribseg.methods.cam import cam


class Pooling:
    def __init__(self, exponent):
        self.exponent = exponent

    def __call__(self, maps, labels):
        return maps.mean((-2, -1)) ** self.exponent


class Method:
    """CAMs, made sharper."""

    def __init__(self, classifier, strength=1):
        self.classifier, self.strength = classifier, strength

    def __call__(self, views, labels):
        result = cam(self.classifier, views, labels)
        maps = [view**self.strength for view in result.maps]
        return result._replace(maps=type(result.maps)(maps, result.classes))


class PooledMethod(Method):
    """Draws references and random numbers, too."""

    def __init__(self, classifier, pooling, strength=1):
        super().__init__(classifier, strength)
        self.pooling = pooling

    def __call__(self, views, labels, references, generator):
        images, others = next(iter(references))
        assert images is None or len(images) == len(others)
        generator.random()
        return super().__call__(views, labels)


class NoMethod:
    """Cannot be called."""

    def __init__(self, classifier):
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
