"""The pool of decoded training images, from which reference images are drawn."""

import shutil

import torch.distributed as dist

from ribseg.data.feed.image_pool import ImagePool, build_pool, image_sizes, pool_bytes
from ribseg.pipeline.recipe.context import Context
from ribseg.store.artefact import Artefact

GIB = 1024**3


def decoded_images(context: Context) -> ImagePool | None:
    """The pool of decoded training images in the store; None if it would be too large."""
    artefact = pool_artefact(context)
    if not pool_limit(context):
        return None
    if not artefact.finished and (context.is_first or not dist.is_initialized()):
        decode_images(context, artefact)
    context.wait()
    return ImagePool(artefact.folder) if artefact.finished else None


def decode_images(context: Context, artefact: Artefact) -> None:
    """Fills the pool if `maps.pool_gib` and the disk have room for it."""
    limit, train = pool_limit(context), context.data.train
    sizes = image_sizes(train)
    need, free = pool_bytes(sizes), shutil.disk_usage(context.store.root).free
    amount = f"{len(train)} decoded training images for references: {need / GIB:.2f} GiB"
    if need > min(limit, free):
        reason = "maps.pool_gib allows" if need > limit else "the store's disk has"
        context.console.say(
            f"  {amount}; {reason} {min(limit, free) / GIB:.2f}: decoding at each draw instead"
        )
        return

    def build() -> dict[str, int]:
        context.console.say(f"  {amount} in {artefact.folder}")
        build_pool(artefact.folder, train, sizes, progress=context.cfg.progress)
        return {"images": len(train), "bytes": need}

    artefact.compute(build, context.console.say)


def pool_limit(context: Context) -> float:
    """Maximum size of the pool in bytes; 0 decodes at each draw instead."""
    return context.cfg.maps.pool_gib * GIB


def pool_artefact(context: Context) -> Artefact:
    """The artefact of the pool."""
    return context.store.artefact("pool", {}, {}, context.data.train.fingerprint(masks=False))
