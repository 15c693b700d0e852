"""The pool of decoded training images, from which reference images are drawn."""

import shutil

from ribseg.data.feed.image_pool import ImagePool, build_pool, image_sizes, pool_bytes
from ribseg.pipeline.recipe.session import Session

GIB = 1024**3


def decoded_images(session: Session, limit_gib: float) -> ImagePool | None:
    """The pool of decoded training images in the store; None if it or the disk has no room for it.

    Args:
        session: of the run.
        limit_gib: maximum size; 0 decodes at each draw instead.
    """
    if not limit_gib:
        return None
    train = session.data.train
    artefact = session.store.artefact("pool", {}, {}, train.fingerprint(masks=False))
    if not session.group.agree(artefact.finished):
        sizes = image_sizes(train)
        need, free = pool_bytes(sizes) / GIB, shutil.disk_usage(session.store.root).free / GIB
        amount = f"{len(train)} decoded training images for references: {need:.2f} GiB"
        if session.group.agree(need > min(limit_gib, free)):
            reason = "maps.pool_gib allows" if need > limit_gib else "the store's disk has"
            session.say(f"  {amount}; {reason} {min(limit_gib, free):.2f}: decoding at each draw instead")
            return None

        def decode() -> dict[str, int]:
            session.say(f"  {amount} in {artefact.folder}")
            build_pool(artefact.folder, train, sizes, progress=session.progress)
            return {"images": len(train), "bytes": round(need * GIB)}

        session.computed(artefact, decode)
    return ImagePool(artefact.folder)
