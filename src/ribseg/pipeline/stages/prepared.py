"""What a method learns from the training images before its first image; the result is kept in the store."""

from contextlib import closing
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from ribseg.files import atomic_write
from ribseg.modules import LocalizationModule
from ribseg.pipeline.recipe.data import PIXELS, VIEWS
from ribseg.pipeline.recipe.methods import Entry
from ribseg.pipeline.recipe.session import Session
from ribseg.progress import Tracker
from ribseg.seeds import rng
from ribseg.store.artefact import Artefact
from ribseg.store.digest import counting
from ribseg.types import TrainingImages

VERSION = 1
FILE = "state.safetensors"


def prepare(session: Session, entry: Entry, inputs: dict[str, Artefact], module: LocalizationModule) -> None:
    """Lets a method that has a `prepare` learn from the training images, or gives it what it has learnt.

    Args:
        session: of the run.
        entry: of the method.
        inputs: the classifier, unless the method is made without.
        module: with the method.
    """
    if not hasattr(module.method, "prepare"):
        return
    common = session.counted("trainer", "tf32", "seed", data=(*PIXELS, *VIEWS))
    settings = counting(common | {"method": entry.settings}, session.resolve)
    data = session.data.train.fingerprint(masks=False)
    artefact = session.store.artefact(f"{entry.name}_state", settings, inputs, data, VERSION)
    session.computed(artefact, lambda: _learn(session, entry, module, artefact))
    method: Any = module.method
    method.use(load_file(artefact.folder / FILE))


def _learn(session: Session, entry: Entry, module: LocalizationModule, artefact: Artefact) -> dict[str, Any]:
    """Writes the tensors; returns their shapes as facts for the manifest."""
    method: Any = module.to(session.hardware.strategy.root_device).method
    train = session.data.train
    items = session.data.predict_dataset(train.ids)
    session.say(f"  {entry.label} learns from {len(train)} training images")
    labels = torch.from_numpy(train.labels).float()
    passes = method.passes_per_image(labels) if hasattr(method, "passes_per_image") else None
    generator = rng(session.cfg.seed, entry.name, "prepare")
    with closing(Tracker(f"{entry.label} learning", passes, session.progress, session.console)) as shown:

        def views(index: int) -> list[Tensor]:
            found = items[index].views
            shown.update(shown.done + 1)
            return found

        state: dict[str, Tensor] = method.prepare(TrainingImages(labels, views), generator)
    atomic_write(artefact.folder / FILE, save({n: t.cpu().contiguous() for n, t in state.items()}))
    return {"shapes": {name: list(tensor.shape) for name, tensor in state.items()}}
