"""What a method learns from the training images before its first image; the result is kept in the store."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save
from torch import Tensor

from ribseg.files import atomic_write
from ribseg.functional.random import rng
from ribseg.modules import LocalizationModule
from ribseg.pipeline.recipe.context import Context
from ribseg.pipeline.recipe.methods import Entry
from ribseg.pipeline.stages.learning_rate import device_of
from ribseg.progress import Tracker
from ribseg.store.artefact import Artefact
from ribseg.store.digest import contents, settings_of, with_sources
from ribseg.store.stage import CROPS, NOT_FOR_MAPS
from ribseg.types import TrainingImages

VERSION = 1
PARTS = ("data", "trainer", "tf32", "seed")
FILE = "state.safetensors"


def prepared(context: Context, entry: Entry, make: Callable[[], LocalizationModule]) -> LocalizationModule:
    """The module of a method, which has learnt from the training images if it has a `prepare`.

    Args:
        context: of the run.
        entry: of the method.
        make: builds the module.
    """
    module = make()
    method: Any = module.method
    if not hasattr(method, "prepare"):
        return module
    artefact = state_artefact(context, entry)
    if not artefact.finished and (context.is_first or not dist.is_initialized()):
        artefact.compute(lambda: _prepare(context, entry, make(), artefact), context.console.say)
    context.wait()
    method.use(load_file(artefact.folder / FILE))
    return module


def state_artefact(context: Context, entry: Entry) -> Artefact:
    """The artefact of what a method has learnt."""
    own = {"method": contents(entry.settings)}
    settings = with_sources(settings_of(context.cfg, PARTS, (*CROPS, *NOT_FOR_MAPS)) | own)
    inputs = {} if entry.without_classifier else {"classifier": context.artefacts["classifier"]}
    data = context.data.train.fingerprint(masks=False)
    return context.store.artefact(f"{entry.name}_state", settings, inputs, data, VERSION)


def _prepare(
    context: Context, entry: Entry, module: LocalizationModule, artefact: Artefact
) -> dict[str, Any]:
    """Writes the tensors; returns their shapes as facts for the manifest."""
    method: Any = module.to(device_of(context)).method
    train = context.data.train
    items = context.data.predict_dataset(train.ids)
    context.console.say(f"  {entry.label} learns from {len(train)} training images")
    labels = torch.from_numpy(train.labels).float()
    passes = method.passes_per_image(labels) if hasattr(method, "passes_per_image") else None
    shown = Tracker(f"{entry.label} learning", passes, context.cfg.progress, context.console)

    def views(index: int) -> list[Tensor]:
        found = items[index].views
        shown.update(shown.done + 1)
        return found

    try:
        generator = rng(context.cfg.seed, entry.name, "prepare")
        state: dict[str, Tensor] = method.prepare(TrainingImages(labels, views), generator)
    finally:
        shown.close()
    atomic_write(artefact.folder / FILE, save({n: t.cpu().contiguous() for n, t in state.items()}))
    return {"shapes": {name: list(tensor.shape) for name, tensor in state.items()}}
