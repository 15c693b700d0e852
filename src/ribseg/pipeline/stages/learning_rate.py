"""The learning rate search of lr=auto on a few training images; its result is kept in the store."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from ribseg.errors import ConfigError
from ribseg.functional.random import rng
from ribseg.methods.rate import check_search, find_rate
from ribseg.modules import LocalizationModule
from ribseg.pipeline.recipe.build import build
from ribseg.pipeline.recipe.context import Context
from ribseg.pipeline.recipe.methods import Entry
from ribseg.store.artefact import Artefact
from ribseg.store.digest import contents, settings_of, with_sources
from ribseg.store.stage import NOT_FOR_MAPS
from ribseg.types import Adaptation, PredictItem

VERSION = 1
PARTS = ("data", "trainer", "tf32", "seed", "rate_search")
Make = Callable[[float], LocalizationModule]


def rate_artefact(context: Context, entry: Entry) -> Artefact:
    """The artefact of a found rate, shared by a method and the control that wraps it."""
    own = {"method": contents(entry.inner_settings)}
    settings = with_sources(settings_of(context.cfg, PARTS, NOT_FOR_MAPS) | own)
    inputs = {"classifier": context.artefacts["classifier"]}
    data = context.data.train.fingerprint(masks=False)
    return context.store.artefact("rate", settings, inputs, data, VERSION)


def searched_rate(context: Context, entry: Entry, make: Make) -> float:
    """The learning rate that `find_rate` chooses; from the store after the first search.

    Args:
        context: of the run.
        entry: of the method.
        make: learning rate -> module of its method.
    """
    artefact = rate_artefact(context, entry)
    if not artefact.finished and (context.is_first or not dist.is_initialized()):
        artefact.compute(lambda: search(context, make), context.console.say)
    context.wait()
    return float(artefact.facts["lr"])


def search(context: Context, make: Make) -> dict[str, Any]:
    """The chosen rate and all trials, as facts for the manifest."""
    settings = context.cfg.rate_search
    labelled = context.data.train.labels.any(1).nonzero()[0]
    chosen = rng(context.cfg.seed, "rate").permutation(labelled)[: settings.images]
    items = [context.data.predict_dataset([context.data.train.ids[i]])[0] for i in chosen]
    context.console.say(f"  searching the learning rate on {len(items)} training images")
    adapt = partial(adapt_all, context, make, items, device_of(context))
    found = find_rate(adapt, settings.low, settings.high, settings.completed, settings.growth)
    for trial in found.trials:
        context.console.say(
            f"    lr {trial.lr:<8g} logits grow {trial.growth:.3g}-fold, {trial.completed:.0%} of the images "
            "took all steps"
        )
    context.console.say(f"  lr {found.lr:g} is taken")
    return {"lr": found.lr, "trials": [trial._asdict() for trial in found.trials]}


def adapt_all(
    context: Context, make: Make, items: list[PredictItem], device: torch.device, lr: float
) -> list[Adaptation]:
    """The adaptations to a few images at one learning rate."""
    module = make(lr).to(device)
    tried = context.track(items, f"Trying lr {lr:g}", len(items), "trial")
    return [module.localize(item.id, item.views, item.labels) for item in tried]


def device_of(context: Context) -> torch.device:
    """The device of the configured Trainer."""
    return build(context.cfg.trainer, logger=False).strategy.root_device


def check_rate_search(context: Context, method: Any) -> None:
    """Raises a ConfigError if the settings of the search cannot work for a method."""
    settings = context.cfg.rate_search
    check_search(settings.low, settings.high, settings.completed, settings.growth)
    if settings.growth is None and not getattr(method, "has_stop_rule", True):
        raise ConfigError(
            "lr=auto goes by the stop rules; give rib.area_limit a number, or rib.margin (which stops "
            "nothing with rib.preset=paper); or go by the logits: rate_search.growth=5"
        )
