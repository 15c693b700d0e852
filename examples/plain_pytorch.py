"""A plain PyTorch loop: trains a classifier and makes RIB's maps, without Lightning and without Hydra.

    python examples/plain_pytorch.py DATA --weights efficientnet_lite0 --backbone tf_efficientnet_lite0

DATA is a folder in VOC layout with the lists train and val. With nothing but DATA a small network learns from
scratch.
"""

import argparse
from pathlib import Path

import torch
from torch.utils.data import DataLoader

import ribseg
from ribseg.data import VOCFolder, multi_scale_views, train_transform
from ribseg.functional.losses import cross_entropy


def new_classifier(data: VOCFolder, backbone: str, weights: str | None) -> ribseg.Classifier:
    """A classifier of the data's classes; from scratch everything learns, else the published parts do."""
    freeze = "none" if weights is None else "published"
    return ribseg.Classifier(backbone, data.num_classes, weights=weights, freeze=freeze, classes=data.classes)


def train(classifier: ribseg.Classifier, data: VOCFolder, epochs: int, crop: int, lr: float) -> None:
    """Trains on crops; the head learns ten times as fast as the backbone."""
    transform = train_transform(crop, (crop, 2 * crop), classifier.mean, classifier.std)
    loader = DataLoader(data.with_transform(transform), batch_size=8, shuffle=True)
    backbone, head = classifier.parameter_groups()
    optimizer = torch.optim.AdamW([{"params": backbone, "lr": lr}, {"params": head, "lr": 10 * lr}])
    classifier.train()
    for epoch in range(epochs):
        total = 0.0
        for batch in loader:
            loss = cross_entropy(classifier(batch.image), batch.labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        print(f"epoch {epoch + 1}: loss {total / len(loader):.3f}")
    classifier.eval()


def score(classifier: ribseg.Classifier, data: VOCFolder, images: int) -> dict[str, float]:
    """The best mIoU over all thresholds, of CAM and of RIB."""
    rib = ribseg.RIB(classifier, steps=5, lr=1e-4, margin=None, area_limit=None, loss_views=(0, 1))
    thresholds = torch.linspace(0, 1, 101)
    sweeps = {name: ribseg.ThresholdSweep(data.num_classes, thresholds) for name in ("cam", "rib")}
    for image_id in data.ids[:images]:
        image, mask = data.image(image_id), torch.from_numpy(data.mask(image_id)).long()
        labels = torch.from_numpy(data.labels[data.index(image_id)]).float()
        views = multi_scale_views(image, (1.0, 0.5), classifier.mean, classifier.std)
        for name, result in (
            ("cam", ribseg.cam(classifier, views, labels)),
            ("rib", rib(views, labels)),
        ):
            maps = ribseg.merge_maps(result.maps, image.shape[:2])
            sweeps[name].update(maps.full, maps.classes, mask)
    return {name: float(sweep.compute()["best_miou"]) for name, sweep in sweeps.items()}


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Trains, saves and scores."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("data", type=Path)
    add("--backbone", default="resnet18")
    add("--weights", help="a file of weights, or efficientnet_lite0; none: from scratch")
    add("--epochs", type=int, default=5)
    add("--crop", type=int, default=256)
    add("--lr", type=float, default=2e-4)
    add("--images", type=int, default=50, help="how many of val are scored")
    add("--out", type=Path, default=Path("classifier.safetensors"))
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    data = VOCFolder(options.data, "train")
    classifier = new_classifier(data, options.backbone, options.weights)
    train(classifier, data, options.epochs, options.crop, options.lr)
    classifier.save(options.out)
    scores = score(classifier, VOCFolder(options.data, "val"), options.images)
    print(", ".join(f"{name} {100 * value:.1f} mIoU" for name, value in scores.items()))
    return scores


if __name__ == "__main__":
    main()
