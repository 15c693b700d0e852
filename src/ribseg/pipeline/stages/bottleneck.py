"""The measuring stage of the toy experiment: gradients of every network before and after RIB."""

import io
import json
import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor

from ribseg.analysis import binned_information, saturation
from ribseg.analysis.regions import check_gradient
from ribseg.analysis.summary import summarize_seeds
from ribseg.checks import within
from ribseg.data.demo.digits import (
    REGIONS,
    SPLITS,
    ToyBatches,
    ToyImages,
    digits_fingerprint,
    split_digits,
    toy_images,
)
from ribseg.errors import ConfigError
from ribseg.files import atomic_write, write_json
from ribseg.functional.activations import last_activation
from ribseg.methods.pooling import Activated
from ribseg.models import ToyNet, read_state_dict
from ribseg.modules.toy import BottleneckModule, Measured, ToyModule
from ribseg.pipeline.recipe.build import build
from ribseg.pipeline.recipe.context import Context
from ribseg.pipeline.recipe.loggers import finish_loggers
from ribseg.pipeline.recipe.parts import check_arguments
from ribseg.pipeline.stages.toy_networks import (
    for_seeds,
    network_path,
    seeds,
    single_trainer,
    toy_digits,
    training_loss,
)
from ribseg.store.artefact import Artefact
from ribseg.store.digest import plain
from ribseg.store.stage import Stage

RESULT, EXAMPLES = "bottleneck.json", "examples.npz"
FINALS = ("logit", "activation")


class BottleneckStage(Stage):
    """Measures the gradients of every network before and after RIB, on unseen images."""

    name = "bottleneck"
    parts = ("bottleneck", "pooling", "trainer", "seed", "tf32")
    version = 2  # version 1 compared the result with bounds
    reads_data = False
    needs: ClassVar[tuple[str, ...]] = ("toy_networks",)

    def data(self, context: Context) -> str:
        """The digits."""
        return digits_fingerprint(toy_digits(context))

    def complete(self, context: Context, artefact: Artefact) -> bool:
        """Whether the result and the examples exist."""
        return (artefact.folder / RESULT).is_file() and (artefact.folder / EXAMPLES).is_file()

    def work(self, context: Context, artefact: Artefact) -> dict[str, Any]:
        """Measures the missing seeds, in the first process, and summarizes all of them."""
        context.on_first(lambda: self._measure(context, artefact))
        return {}

    def _measure(self, context: Context, artefact: Artefact) -> None:
        paths = {seed: record_path(artefact, seed) for seed in seeds(context)}
        missing = [seed for seed, path in paths.items() if not path.is_file()]
        if context.cfg.seed not in missing and not (artefact.folder / EXAMPLES).is_file():
            missing.append(context.cfg.seed)
        for_seeds(context, artefact, measure_seed, missing)
        records = [json.loads(path.read_text()) for path in paths.values()]
        write_json(artefact.folder / RESULT, summarize(records))


def check_bottleneck(context: Context) -> None:
    """Checks the settings of the toy experiment before the training.

    Raises:
        ConfigError: one cannot work.
    """
    cfg = context.cfg.bottleneck
    if cfg.split not in SPLITS:
        raise ConfigError(f"expected bottleneck.split {' | '.join(SPLITS)}, got {cfg.split!r}")
    if cfg.final not in FINALS:
        raise ConfigError(f"expected bottleneck.final {' | '.join(FINALS)}, got {cfg.final!r}")
    for split in ("train", cfg.split):
        split_digits(toy_digits(context), split)
    with within("bottleneck.training"):
        ToyModule(ToyNet(), training_loss(context), cfg.training.lr).new_optimizer()
    with within("bottleneck.gradient"):
        check_arguments(check_gradient, cfg.gradient)
    with within("pooling"):
        build(context.cfg.pooling)
    with within("bottleneck.rib"):
        bottleneck_module(context, ToyNet())


def bottleneck_module(context: Context, network: ToyNet) -> BottleneckModule:
    """The configured module that applies RIB and measures gradients."""
    cfg = context.cfg.bottleneck
    looked_at = None if cfg.final == "logit" else last_activation(cfg.training.activation)
    return build(
        cfg.rib,
        network=network,
        pooling=Activated(build(context.cfg.pooling), cfg.activation),
        activation=looked_at,
        gradient=plain(cfg.gradient),
        wrong_class=cfg.wrong_class,
        _convert_="all",
    )


def record_path(artefact: Artefact, seed: int) -> Path:
    """The file of a seed's measurements."""
    return artefact.folder / f"seed-{seed}.json"


def measure_seed(context: Context, artefact: Artefact, seed: int) -> None:
    """Measures one network: high gradient ratios before and after RIB, accuracy, saturation."""
    cfg = context.cfg.bottleneck
    digits = split_digits(toy_digits(context), cfg.split)
    network = ToyNet()
    network.load_state_dict(read_state_dict(network_path(context.artefacts["toy_networks"], seed)))
    measured = toy_images(digits, cfg.images.measured, 1.0, seed, f"{cfg.split} measured")
    scored = toy_images(digits, cfg.images.scored, cfg.marked, seed, f"{cfg.split} scored")
    trainer = single_trainer(context, f"bottleneck-{seed}", artefact, inference_mode=False)
    predictions = trainer.predict(bottleneck_module(context, network), ToyBatches(measured, 1))
    finish_loggers()
    items = cast(list[Measured], predictions)
    if seed == context.cfg.seed:
        save_examples(artefact.folder / EXAMPLES, measured, items[: cfg.examples])
    record = {
        "seed": seed,
        "images": len(items),
        "steps_mean": float(np.mean([item.steps for item in items])),
        "stopped": dict(Counter(item.stopped for item in items if item.stopped)),
        "before": by_region(item.before for item in items),
        "after": by_region(item.after for item in items),
        "network": score_network(context, network.cpu(), scored),
    }
    write_json(record_path(artefact, seed), record)


def by_region(ratios: Iterable[Tensor]) -> dict[str, list[float | None]]:
    """Region -> mean ratio per layer, over the images that have one, from (L + 1, R) ratios per image."""
    mean = torch.stack(list(ratios)).nanmean(0).T
    return {name: [number(v) for v in row.tolist()] for name, row in zip(REGIONS, mean, strict=True)}


def number(value: float) -> float | None:
    """The value; None if it is not finite, which JSON cannot hold."""
    return value if math.isfinite(value) else None


@torch.no_grad()
def score_network(context: Context, network: ToyNet, toy: ToyImages) -> dict[str, Any]:
    """Accuracy, logits and saturation of a network on N images."""
    cfg = context.cfg.bottleneck
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
    buffer = io.BytesIO()
    images, regions = toy.images[: len(maps), 0].numpy(), toy.regions[: len(maps)].numpy()
    np.savez_compressed(buffer, maps=maps.astype(np.float32), images=images, regions=regions)
    atomic_write(path, buffer.getvalue())


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
