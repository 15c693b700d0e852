"""The training images, decoded once into the store, for reference images."""

import shutil
import time

import torch.distributed as dist

from ribseg.data.feed.image_pool import ImagePool, build_pool, image_sizes, pool_bytes
from ribseg.pipeline.engine.context import Context
from ribseg.pipeline.engine.store import Artefact

GIB = 1024**3


def decoded_images(context: Context) -> ImagePool | None:
    """The training images, decoded, in the store; None where there are too many."""
    limit, train, artefact = pool_limit(context), context.data.train, pool_artefact(context)
    if not limit:
        return None
    if not artefact.finished and (context.is_first or not dist.is_initialized()):
        sizes = image_sizes(train)
        need, free = pool_bytes(sizes), shutil.disk_usage(context.store.root).free
        reason = "maps.pool_gib allows" if need > limit else "the store's disk has" if need > free else None
        amount = f"{len(train)} decoded training images for references: {need / GIB:.2f} GiB"
        if reason:
            context.console.print(
                f"  {amount}; {reason} {min(limit, free) / GIB:.2f}: decoding at each draw instead"
            )
        else:
            context.console.print(f"  {amount} in {artefact.folder}")
            start = time.perf_counter()
            build_pool(artefact.folder, train, sizes, progress=context.cfg.progress)
            artefact.finish({"images": len(train), "bytes": need}, time.perf_counter() - start)
    context.wait()
    return ImagePool(artefact.folder) if artefact.finished else None


def pool_limit(context: Context) -> float:
    """Bytes that the decoded images may have; 0 decodes at each draw."""
    return context.cfg.maps.pool_gib * GIB


def pool_artefact(context: Context) -> Artefact:
    """Where the pool lies in the store."""
    return context.store.artefact("pool", {}, {}, context.data.train.fingerprint(masks=False))
