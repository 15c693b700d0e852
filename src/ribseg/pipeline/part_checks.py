"""Checks, before the first stage, that everything a run will build can be built."""

from collections.abc import Callable, Sequence
from typing import get_args

from omegaconf import DictConfig, OmegaConf

from ribseg.checks import within
from ribseg.data.augment.seeding import share_of
from ribseg.errors import ConfigError
from ribseg.functional.attention import check_attention
from ribseg.functional.dense_crf import check_dense_crf
from ribseg.functional.pixel_adaptive import check_pixel_adaptive
from ribseg.methods.refine import check_confidence, check_walk
from ribseg.methods.segments import check_felzenszwalb, check_segments, check_slic
from ribseg.methods.trial import check_network
from ribseg.models import Classifier
from ribseg.models.attention import check_blocks
from ribseg.models.inference import check_inference
from ribseg.modules import ClassifierModule
from ribseg.pipeline.plan import check_sources
from ribseg.pipeline.recipe.build import build
from ribseg.pipeline.recipe.context import Context
from ribseg.pipeline.recipe.methods import check_entries, entries
from ribseg.pipeline.recipe.numerics import check_normalization, check_precision, slow_precision
from ribseg.pipeline.recipe.parts import check_arguments, check_optimizer, check_targets, check_training
from ribseg.pipeline.settings import check_ranges, check_trainer
from ribseg.pipeline.stages.affinity import AffinityStage, backbone_weights, new_network, new_training
from ribseg.pipeline.stages.attention import AttentionStage
from ribseg.pipeline.stages.bottleneck import BottleneckStage
from ribseg.pipeline.stages.classifier import (
    ClassifierStage,
    given_checkpoint,
    loaded_checkpoint,
    new_classifier,
)
from ribseg.pipeline.stages.learning_rate import check_rate_search
from ribseg.pipeline.stages.maps import localization_module
from ribseg.pipeline.stages.segmenter import SegmenterStage
from ribseg.pipeline.stages.toy_networks import ToyNetworksStage
from ribseg.store.digest import plain
from ribseg.store.stage import Stage
from ribseg.types import Trainable


def check_settings(cfg: DictConfig) -> None:
    """Checks the settings that can be checked without building anything."""
    check_ranges(cfg)
    check_trainer(cfg)
    check_sources(cfg)
    check_entries(cfg)
    if "evaluate" in cfg.run and not cfg.data.eval_splits:
        raise ConfigError(
            "run=[..., evaluate] needs data.eval_splits=[...] with masks; leave evaluate out without"
        )
    check_functions(cfg)


def check_functions(cfg: DictConfig) -> None:
    """Checks the sections that hold the arguments of a function."""
    scores = {name: cfg.refine.labels[name] for name in ("foreground", "background")}
    with within("refine.labels"):
        if "auto" not in scores.values():
            check_confidence(**scores)
    sections: dict[str, Callable[..., None]] = {
        "refine.crf": check_dense_crf,
        "refine.pixel_adaptive": check_pixel_adaptive,
        "refine.segments": check_segments,
        "refine.segments.slic": check_slic,
        "refine.segments.felzenszwalb": check_felzenszwalb,
        "refine.walk": check_walk,
        "refine.attention": check_attention,
        "segmenter.test": check_inference,
    }
    for path, check in sections.items():
        with within(path):
            check_arguments(check, OmegaConf.select(cfg, path))


def check_imports(cfg: DictConfig, stages: Sequence[Stage]) -> None:
    """Checks that everything a run will build can be imported."""
    run = [stage for stage in stages if stage.name in cfg.run]
    used = ["trainer", "pooling", "callbacks"]
    if any(stage.reads_data for stage in run):
        used += ["prepare", "data", "classifier"]
    kinds = {"affinity": AffinityStage, "segmenter": SegmenterStage, "bottleneck": BottleneckStage}
    used += [part for part, kind in kinds.items() if any(isinstance(stage, kind) for stage in run)]
    for section in used:
        check_targets(section, plain(cfg[section]))
    for entry in entries(cfg).values():
        if entry.name in cfg.run or entry.maps_of is not None:
            check_targets(entry.path, entry.node)


def check_parts(context: Context, stages: Sequence[Stage]) -> None:
    """Builds what the stages will build, so that wrong arguments are found before any training."""
    check_precision(context.cfg)
    if warning := slow_precision(context.cfg):
        context.console.say(warning, "warning", "yellow")
    with within("trainer"):
        processes = context.processes  # builds a Trainer
    check_batches(context, stages, processes)
    classifier = check_classifier(context)
    check_methods(context, classifier)
    if any(isinstance(stage, AttentionStage) and stage.name in context.cfg.run for stage in stages):
        with within("refine.attention"):
            check_blocks(classifier, context.cfg.refine.attention.blocks)
    if will_train_affinity(context, stages):
        check_affinity(context, classifier)


def will_train_affinity(context: Context, stages: Sequence[Stage]) -> bool:
    """Whether this run trains an affinity network, of any chain."""
    return any(isinstance(stage, AffinityStage) and context.will_run(stage.name) for stage in stages)


def check_batches(context: Context, stages: Sequence[Stage], processes: int) -> None:
    """Checks that the batches of the trainings can be divided among the processes."""
    if context.will_run("classifier"):
        share_of(context.cfg.data.batch_size, processes, "data.batch_size")
    if will_train_affinity(context, stages):
        share_of(context.cfg.affinity.batch_size, processes, "affinity.batch_size")


def check_classifier(context: Context) -> Classifier:
    """Builds the classifier and its training; returns it, with initial weights if it is to be trained."""
    cfg = context.cfg
    with within("classifier"):
        given = given_checkpoint(context)
        if given:
            classifier, left_out = loaded_checkpoint(context)
            if left_out:
                names = ", ".join(left_out)
                context.console.say(f"  the classifier is taken without {names}: maps have no bias")
    if not given:
        # Pretrained weights are loaded only if they will be needed.
        trains = context.will_run("classifier")
        with within("classifier.model"):
            classifier = new_classifier(context, pretrained=None if trains else False)
    check_normalization(classifier, cfg)
    module = check_training("classifier.module", cfg.classifier.module, classifier=classifier)
    learns = isinstance(module, ClassifierModule) and "classifier" in cfg.run and not given
    check_network(classifier, context.data.num_classes, learns, adapted_part(cfg))
    return classifier


def adapted_part(cfg: DictConfig) -> Trainable | None:
    """The part of the network that the run's methods adapt; None if unknown or none does."""
    chosen = [entry.inner.get("trainable") for name, entry in entries(cfg).items() if name in cfg.run]
    return next((part for part in chosen if part in get_args(Trainable)), None)


def check_callbacks(context: Context, stages: Sequence[Stage]) -> None:
    """Builds the callbacks of every training of the run."""
    kinds: dict[str, type[Stage]] = {
        "classifier": ClassifierStage,
        "affinity": AffinityStage,
        "segmenter": SegmenterStage,
        "bottleneck": ToyNetworksStage,
    }
    for part, kind in kinds.items():
        if any(isinstance(stage, kind) and stage.name in context.cfg.run for stage in stages):
            with within(f"callbacks, or {part}.callbacks"):
                context.callbacks(part)


def check_methods(context: Context, classifier: Classifier) -> None:
    """Builds the pooling and the methods of the run."""
    with within("pooling"):
        build(context.cfg.pooling)
    for name, entry in entries(context.cfg).items():
        if name not in context.cfg.run:
            continue
        rate = 1.0 if entry.searches_rate else None
        localization_module(context, entry, classifier, lr=rate)
        if entry.searches_rate:
            with within("rate_search"):
                check_rate_search(context, entry.build(classifier, rate, True, context.data.classes))


def check_affinity(context: Context, classifier: Classifier) -> None:
    """Builds the affinity network and its training."""
    shared = backbone_weights(context) == "classifier"
    with within("affinity.network"):
        network = new_network(context, classifier.backbone if shared else None)
    with within("affinity.module"):
        module = new_training(context, network)
    with within("affinity.module.optimizer"):
        check_optimizer(module, context.cfg.affinity.module)
