"""The learning rate search of lr=auto on a few training images; its result is kept in the store."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from ribseg.checks import check_number
from ribseg.errors import ConfigError
from ribseg.methods.rate import check_search, find_rate
from ribseg.modules import LocalizationModule
from ribseg.pipeline.recipe.data import CROPS, PIXELS, VIEWS
from ribseg.pipeline.recipe.methods import Entry
from ribseg.pipeline.recipe.session import Session
from ribseg.seeds import rng
from ribseg.store.artefact import Artefact
from ribseg.store.digest import counting
from ribseg.store.settings import COUNT, SHARE, counted, setting
from ribseg.types import Adaptation, PredictItem

VERSION = 2
Make = Callable[[float], LocalizationModule]


@dataclass(frozen=True, kw_only=True)
class RateSearchSettings:
    """The settings `rate_search`."""

    images: int = setting(COUNT)
    low: float = setting(partial(check_number, above=0))
    high: float = setting(partial(check_number, above=0))
    growth: float | None = setting(partial(check_number, above=1, words=(None,)))
    completed: float = setting(SHARE)


def searched_rate(session: Session, entry: Entry, classifier: Artefact, make: Make) -> float:
    """The learning rate that `find_rate` chooses; from the store after the first search.

    A method and the control that wraps it share it.

    Args:
        session: of the run.
        entry: of the method.
        classifier: its weights.
        make: learning rate -> module of its method.
    """
    common = session.counted("trainer", "tf32", "seed", data=(*CROPS, *PIXELS, *VIEWS))
    own = {"rate_search": counted(session.settings[RateSearchSettings]), "method": entry.inner_settings}
    settings, data = counting(common | own, session.resolve), session.data.train.fingerprint(masks=False)
    artefact = session.store.artefact("rate", settings, {"classifier": classifier}, data, VERSION)
    return float(session.computed(artefact, lambda: search(session, make)).facts["lr"])


def search(session: Session, make: Make) -> dict[str, Any]:
    """The chosen rate and all trials, as facts for the manifest."""
    cfg, train = session.settings[RateSearchSettings], session.data.train
    labelled = train.labels.any(1).nonzero()[0]
    chosen = rng(session.cfg.seed, "rate").permutation(labelled)[: cfg.images]
    items = [session.data.predict_dataset([train.ids[i]])[0] for i in chosen]
    session.say(f"  searching the learning rate on {len(items)} training images")
    device = session.hardware.strategy.root_device

    def adapt(lr: float, share: float = 1.0) -> list[Adaptation]:
        module, tried = make(lr).to(device), items[: math.ceil(share * len(items))]

        def one(item: PredictItem) -> Adaptation:
            return module.localize(item.id, item.views, item.labels)

        return list(session.map(one, tried, f"Trying lr {lr:g}", "trial", "here"))

    found = find_rate(adapt, cfg.low, cfg.high, cfg.completed, cfg.growth)
    for trial in found.trials:
        taken = f"{trial.completed:.0%} of the images took all steps"
        session.say(f"    lr {trial.lr:<8g} logits grow {trial.growth:.3g}-fold, {taken}")
    session.say(f"  lr {found.lr:g} is taken")
    return {"lr": found.lr, "trials": [trial._asdict() for trial in found.trials]}


def check_rate_search(session: Session, method: Any) -> None:
    """Raises a ConfigError if the settings of the search cannot work for a method."""
    cfg = session.settings[RateSearchSettings]
    check_search(cfg.low, cfg.high, cfg.completed, cfg.growth)
    if cfg.growth is None and not getattr(method, "has_stop_rule", True):
        raise ConfigError(
            "lr=auto goes by the stop rules; give rib.area_limit a number, or rib.margin (which stops "
            "nothing with rib.preset=paper); or go by the logits: rate_search.growth=5"
        )
