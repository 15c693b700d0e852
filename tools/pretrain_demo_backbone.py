"""Pretrains the backbone of the built-in demo on crops of a procedural world that are generated on the fly.

The network learns to name mark, texture, shape and hue of one creature on a quiet background. It sees no
demo image and no class of the demo data set. It never has to describe a background, and that matters: RIB's
update adds the mean feature of the image to the class's row, which helps where backgrounds are quiet.

    python tools/pretrain_demo_backbone.py                     # about 8 minutes on 2 cores
    python tools/pretrain_demo_backbone.py --steps 200 --out /tmp/try.safetensors

Needs the installed package (make install), nothing else. Same seed, machine and versions: same weights.
"""

import argparse
import json
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from rich.progress import Progress
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from ribseg.data import IMAGENET_MEAN, IMAGENET_STD
from ribseg.data.demo import world
from ribseg.models import Backbone

NAME, KWARGS, OUTPUT_STRIDE = "resnet10t", {"channels": (32, 64, 128, 192), "stem_width": 16}, 8
ATTRIBUTES = {
    "mark": len(world.MARKS),
    "texture": len(world.TEXTURES),
    "shape": len(world.SHAPES),
    "hue": world.HUES,
}
MEAN = torch.tensor(IMAGENET_MEAN).view(3, 1, 1) * 255
STD = torch.tensor(IMAGENET_STD).view(3, 1, 1) * 255
SHOWN = ("whole", "body", "head")  # in a crop
OUT = Path(__file__).parents[1] / "src" / "ribseg" / "assets" / "demo_backbone.safetensors"


class Crop(NamedTuple):
    """A pretraining crop: (S, S, 3) uint8, and its attributes (-1 where the crop does not show one)."""

    image: world.Image
    mark: int
    texture: int
    shape: int
    hue: int


def pretraining_crop(rng: np.random.Generator, size: int = 64) -> Crop:
    """A random crop: a whole creature (half of the crops), a part of a body, or a head."""
    looks = world.random_looks(rng)
    kind = SHOWN[int(rng.choice(3, p=[0.5, 0.25, 0.25]))]
    length, angle = rng.uniform(15, 34), rng.uniform(0, 2 * np.pi)
    # The point of the creature, from the body's centre towards the head, that is at the crop's centre.
    reach = {"whole": 0.4, "body": rng.uniform(-1.6, -0.9), "head": rng.uniform(1.2, 2.2)}[kind]
    shift = rng.uniform(-0.12, 0.12, 2) * size
    x, y = size / 2 + shift - reach * length * np.array([np.cos(angle), np.sin(angle)])
    canvas = world.background(size, rng)
    parts = world.paint(canvas, looks, world.Pose(float(x), float(y), length, angle), rng)
    head_seen = np.count_nonzero(parts == world.HEAD) > 0.8 * np.pi * (0.42 * length) ** 2
    body_seen = np.count_nonzero(parts == world.BODY) > 90
    return Crop(
        world.develop(canvas, rng),
        mark=looks.mark if head_seen else -1,
        texture=looks.texture if body_seen else -1,
        shape=looks.shape if kind == "whole" else -1,
        hue=looks.hue if body_seen else -1,
    )


class Crops(Dataset):
    """Crop i is a function of (seed, i), so that workers and order play no part."""

    def __init__(self, seed: int, length: int) -> None:
        self.seed, self.length = seed, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        sample = pretraining_crop(np.random.default_rng((self.seed, index)))
        attributes = torch.tensor([getattr(sample, name) for name in ATTRIBUTES])
        return torch.from_numpy(sample.image), attributes


class Namer(nn.Module):
    """The backbone, global average pooling, and one linear layer per attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone(NAME, output_stride=OUTPUT_STRIDE, kwargs=KWARGS)
        self.heads = nn.ModuleList(nn.Linear(self.backbone.num_features, n) for n in ATTRIBUTES.values())

    def forward(self, images: Tensor) -> list[Tensor]:
        """(N, S, S, 3) uint8 -> one (N, values) tensor of logits per attribute."""
        pixels = (images.permute(0, 3, 1, 2).float() - MEAN) / STD
        pooled = self.backbone(pixels.contiguous(memory_format=torch.channels_last)).mean((-2, -1))
        return [head(pooled) for head in self.heads]


def pretrain(steps: int, batch: int, lr: float, seed: int) -> Namer:
    """Trains with AdamW on a one-cycle schedule."""
    torch.manual_seed(seed)
    model = Namer().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.2)
    loader = DataLoader(Crops(seed, steps * batch), batch, num_workers=1, prefetch_factor=8)
    with Progress() as progress:
        task = progress.add_task("pretraining", total=steps)
        for images, attributes in loader:
            losses = [
                F.cross_entropy(logits, target, ignore_index=-1, label_smoothing=0.05)
                for logits, target in zip(model(images), attributes.unbind(1), strict=True)
            ]
            optimizer.zero_grad()
            torch.stack(losses).sum().backward()
            optimizer.step()
            schedule.step()
            progress.update(task, advance=1, description=f"loss {sum(loss.item() for loss in losses):.2f}")
    return model.eval()


@torch.inference_mode()
def accuracies(model: Namer, seed: int, crops: int = 4096) -> dict[str, float]:
    """Share of right names on fresh crops, among the crops that show the attribute."""
    right, seen = torch.zeros(len(ATTRIBUTES)), torch.zeros(len(ATTRIBUTES))
    for images, attributes in DataLoader(Crops(seed, crops), 256):
        named = torch.stack([logits.argmax(1) for logits in model(images)], dim=1)
        seen += (attributes >= 0).sum(0)
        right += ((named == attributes) & (attributes >= 0)).sum(0)
    return {name: round(float(r / s), 4) for name, r, s in zip(ATTRIBUTES, right, seen, strict=True)}


def main() -> None:
    """Pretrains, measures, and writes the weights with their metadata."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    start = time.time()
    model = pretrain(arguments.steps, arguments.batch, arguments.lr, arguments.seed)
    measured = accuracies(model, arguments.seed + 1_000_000)
    # "stages.1.layer3.0.conv1.weight" -> "layer3.0.conv1.weight", as in files of timm weights.
    weights = {
        key.split(".", 2)[2]: tensor.half().contiguous()
        for key, tensor in model.backbone.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    metadata = {
        "command": f"python tools/pretrain_demo_backbone.py --steps {arguments.steps} "
        f"--batch {arguments.batch} --lr {arguments.lr} --seed {arguments.seed} "
        f"--threads {arguments.threads}",
        "model": json.dumps({"name": NAME, "output_stride": OUTPUT_STRIDE, "kwargs": KWARGS}),
        "accuracy": json.dumps(measured),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "license": "Apache-2.0, made from generated pictures alone",
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, arguments.out, metadata)
    arguments.out.chmod(0o644)  # safetensors makes it private
    megabytes = arguments.out.stat().st_size / 1e6
    print(f"{arguments.out}: {megabytes:.2f} MB, {measured}, {time.time() - start:.0f} s")


if __name__ == "__main__":
    main()
