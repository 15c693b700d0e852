"""The measuring stage of the toy experiment: gradients of every network before and after RIB."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from ribseg.analysis import binned_information, saturation
from ribseg.analysis.summary import summarize_seeds
from ribseg.checks import within
from ribseg.data.demo.digits import ToyBatches, ToyImages, split_digits, toy_images
from ribseg.files import atomic_file, write_json
from ribseg.functional.activations import last_activation
from ribseg.methods.pooling import Activated
from ribseg.models import ToyNet, read_state_dict
from ribseg.modules.toy import BottleneckModule, Measured
from ribseg.pipeline.recipe.build import build
from ribseg.pipeline.recipe.loggers import finish_loggers
from ribseg.pipeline.recipe.session import Session
from ribseg.pipeline.stages.toy_networks import (
    BottleneckSettings,
    ToyNetworksStage,
    ToyStage,
    for_seeds,
    network_path,
)
from ribseg.store.artefact import Artefact
from ribseg.store.settings import counted
from ribseg.store.stage import Stage
from ribseg.types import REGIONS

RESULT, EXAMPLES = "bottleneck.json", "examples.npz"


class BottleneckStage(ToyStage):
    """Measures the gradients of every network before and after RIB, on unseen images."""

    name = "bottleneck"
    sections = ("bottleneck",)
    files = (RESULT, EXAMPLES)
    version = 2  # version 1 compared the result with bounds

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self.networks = ToyNetworksStage(session)

    def inputs(self) -> Sequence[Stage[Session]]:
        """The networks."""
        return [self.networks]

    def settings(self) -> dict[str, Any]:
        """Its own, and the pooling."""
        common = self.session.counted("pooling", "trainer", "seed", "tf32")
        return common | {"bottleneck": counted(self.cfg)}

    def check(self) -> None:
        """Builds what it measures with."""
        if self.networks.name not in self.session.run.chosen:  # else the run does so
            self.networks.check()
        split_digits(self.digits(), self.cfg.split)
        with within("pooling"):
            build(self.session.cfg.pooling)
        with within("bottleneck.rib"):
            self.module(ToyNet())

    def module(self, network: ToyNet) -> BottleneckModule:
        """The configured module that applies RIB and measures gradients."""
        cfg = self.cfg
        return build(
            cfg.rib,
            network=network,
            pooling=Activated(build(self.session.cfg.pooling), cfg.activation),
            activation=None if cfg.final == "logit" else last_activation(cfg.training.activation),
            gradient=dict(cfg.gradient),
            wrong_class=cfg.wrong_class,
            _convert_="all",
        )

    def work(self, target: Artefact) -> dict[str, Any]:
        """Measures the missing seeds, in the first process, and summarizes all of them."""
        self.session.group.on_first(lambda: self._measure(target))
        return {}

    def _measure(self, target: Artefact) -> None:
        paths, first = {seed: record_path(target, seed) for seed in self.seeds}, self.seeds[0]
        missing = [seed for seed, path in paths.items() if not path.is_file()]
        if first not in missing and not (target.folder / EXAMPLES).is_file():
            missing.append(first)
        for_seeds(self, target, measure_seed, missing)
        records = [json.loads(path.read_text()) for path in paths.values()]
        write_json(target.folder / RESULT, summarize(records))


def record_path(artefact: Artefact, seed: int) -> Path:
    """The file of a seed's measurements."""
    return artefact.folder / f"seed-{seed}.json"


def measure_seed(stage: ToyStage, target: Artefact, seed: int) -> None:
    """Measures one network: high gradient ratios before and after RIB, accuracy, saturation."""
    stage, cfg = cast(BottleneckStage, stage), stage.cfg
    digits = split_digits(stage.digits(), cfg.split)
    network = ToyNet()
    network.load_state_dict(read_state_dict(network_path(stage.networks.artefact, seed)))
    measured = toy_images(digits, cfg.images.measured, 1.0, seed, f"{cfg.split} measured")
    scored = toy_images(digits, cfg.images.scored, cfg.marked, seed, f"{cfg.split} scored")
    trainer = stage.trainer(f"bottleneck-{seed}", target, inference_mode=False)
    predictions = trainer.predict(stage.module(network), ToyBatches(measured, 1))
    finish_loggers()
    items = cast(list[Measured], predictions)
    if seed == stage.seeds[0]:
        save_examples(target.folder / EXAMPLES, measured, items[: cfg.examples])
    record = {
        "seed": seed,
        "images": len(items),
        "steps_mean": float(np.mean([item.steps for item in items])),
        "stopped": dict(Counter(item.stopped for item in items if item.stopped)),
        "before": by_region(item.before for item in items),
        "after": by_region(item.after for item in items),
        "network": score_network(cfg, network.cpu(), scored),
    }
    write_json(record_path(target, seed), record)


def by_region(ratios: Iterable[Tensor]) -> dict[str, list[float | None]]:
    """Region -> mean ratio per layer, over the images that have one, from (L + 1, R) ratios per image."""
    mean = torch.stack(list(ratios)).nanmean(0).T
    return {name: [number(v) for v in row.tolist()] for name, row in zip(REGIONS, mean, strict=True)}


def number(value: float) -> float | None:
    """The value; None if it is not finite, which JSON cannot hold."""
    return value if math.isfinite(value) else None


@torch.no_grad()
def score_network(cfg: BottleneckSettings, network: ToyNet, toy: ToyImages) -> dict[str, Any]:
    """Accuracy, logits and saturation of a network on N images."""
    features = network.features(toy.images).mean((-2, -1))
    logits = network.head(features)
    truth = toy.labels.argmax(1)
    finite = bool(logits.isfinite().all())
    activation = last_activation(cfg.training.activation)
    facts: dict[str, Any] = {
        "finite": finite,
        "accuracy": float((logits.argmax(1) == truth).float().mean()) if finite else None,
        "logit_of_class": number(float((logits * toy.labels).sum(1).mean())),
        "logit_of_other": number(float((logits * (1 - toy.labels)).sum(1).mean())),
        "saturation": saturation(logits, activation, cfg.saturation, toy.labels),
    }
    if cfg.information_bins is not None and finite:
        layers = {"pooled_features": features, "logits": logits, "activations": activation(logits)}
        facts["information_bits"] = {
            name: binned_information(values, truth, cfg.information_bins)._asdict()
            for name, values in layers.items()
        }
    return facts


def save_examples(path: Path, toy: ToyImages, items: Iterable[Measured]) -> None:
    """Writes images (E, H, W), regions (E, R, H, W) and gradient maps (E, 2, L + 1, H, W) for the figure."""
    maps = np.stack([item.maps.numpy() for item in items])
    images, regions = toy.images[: len(maps), 0].numpy(), toy.regions[: len(maps)].numpy()
    with atomic_file(path) as file:
        np.savez_compressed(file, maps=maps.astype(np.float32), images=images, regions=regions)


def summarize(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Means and standard deviations over seeds, and all records: "bottleneck" in `results.json`."""
    summary = summarize_seeds(records)
    accuracies = [record["network"]["accuracy"] for record in records]
    there = [value for value in accuracies if value is not None]
    return summary | {
        "accuracy": float(np.mean(there)) if there else None,
        "diverged": sum(not record["network"]["finite"] for record in records),
        "saturation": float(np.mean([record["network"]["saturation"] for record in records])),
        "by_seed": records,
    }
