"""Notes on masks whose scores would mislead: wrong ids, no background, contradictions with labels."""

from collections.abc import Iterator, Sequence

from ribseg.data.check.mask_facts import MaskFacts
from ribseg.data.check.note import Note, first_of
from ribseg.data.io.masks import IGNORE

MANY = 0.1  # share of images with differing labels and masks above which it is noted; VOC has fewer
MOST = 0.5  # share of pixels
SEVERAL = 5  # images from which on masks are refused if all contradict their labels


def unusable_masks(split: str, facts: MaskFacts, classes: Sequence[str]) -> str | None:
    """The reason why scores on these masks would be meaningless; None if there is none.

    Args:
        split: its name.
        facts: of its masks.
        classes: C names.
    """
    if facts.masks and not facts.foreground:
        found = ", ".join(f"{number} (in {masks})" for number, masks, *_ in facts.ids)
        return (
            f"no pixel of the {facts.masks} masks of {split} belongs to a class; ids found: {found}. Only "
            f"background could be scored; {IGNORE} is left out. Expected 1 for the first name in classes.txt "
            f"({classes[0]!r}) and so on. Correct the masks, set data.masks_dir, or take {split} out of "
            "data.eval_splits"
        )
    if facts.judged > 1 and facts.misfits == facts.judged and facts.renumbered:
        return (
            f"class ids in masks of {split} do not follow classes.txt: {_moved(facts, classes)}. Expected "
            "0 for background and 1 for the first name. Correct the masks or the order of classes.txt, and "
            "check that each mask has the name of its image"
        )
    if facts.labelled - facts.empty >= SEVERAL and not facts.common:
        return (
            f"labels and masks of {split} contradict each other: in none of the {facts.labelled} labelled "
            "images does the mask hold a class of the label. Do the masks hold class ids (0 background, 1 "
            "the first name in classes.txt), not ids of instances, and do they belong to these images?"
        )
    return None


def mask_notes(split: str, facts: MaskFacts, classes: Sequence[str]) -> Iterator[Note]:
    """Notes on masks that can be scored."""
    yield from _against_labels(split, facts, classes)
    yield from _background_notes(split, facts)
    if facts.colours:
        several = first_of([f"{i} ({n} colours)" for i, n in facts.colours])
        yield Note(
            "mask_colours",
            f"ids of the masks of {split} have other colours in other files: {several}",
            "If a program numbered the colours of each file anew, an id means another class in each.",
            "Write all masks with one palette, ids in the order of classes.txt.",
        )
    if len(classes) == 1:
        yield from _inverted_notes(split, facts, classes[0])


def _background_notes(split: str, facts: MaskFacts) -> Iterator[Note]:
    background, ignored = facts.pixels(0, 0), facts.pixels(IGNORE, IGNORE)
    pixels = background + facts.foreground + ignored
    if not background:
        yield Note(
            "masks_without_background",
            f"no pixel of the {facts.masks} masks of {split} is background (0)",
            "A map that covers the whole image is never wrong there, and the background has no IoU.",
            f"Write 0 where there is no object, {IGNORE} only where a pixel is to be ignored.",
        )
    elif ignored > MOST * pixels:
        yield Note(
            "masks_mostly_ignored",
            f"{ignored / pixels:.0%} of the pixels of the masks of {split} are {IGNORE}",
            "They are left out of all scores.",
            f"If {IGNORE} is background or an object there, write 0 or the class's id.",
        )


def _inverted_notes(split: str, facts: MaskFacts, name: str) -> Iterator[Note]:
    background, at_border = facts.pixels(0, 0), facts.pixels(1, IGNORE - 1, border=True)
    scored, border = background + facts.foreground, at_border + facts.pixels(0, 0, border=True)
    if background and at_border > MOST * border and at_border * scored > facts.foreground * border:
        yield Note(
            "masks_inverted",
            f"{at_border / border:.0%} of the pixels at the borders of the images of {split} belong to "
            f"{name!r}, but {facts.foreground / scored:.0%} of all",
            "The masks look inverted: objects seldom surround the background.",
            "Expected 0 for background and 1 for the object.",
        )


def _against_labels(split: str, facts: MaskFacts, classes: Sequence[str]) -> Iterator[Note]:
    if facts.empty:
        yield Note(
            "masks_without_class",
            f"{facts.empty} of {facts.labelled} labelled images of {split} have a mask without any class",
            "Whatever maps find in them counts as wrong.",
            f"If {IGNORE} marks the objects, write the class's id; if there are none, correct the labels.",
        )
    if facts.renumbered:
        yield Note(
            "masks_renumbered",
            f"in the masks of {split} other ids stand for some classes: {_moved(facts, classes)}",
            "Their IoU compares different classes.",
            "Expected 0 for background and 1 for the first name in classes.txt.",
        )
    elif facts.differing - facts.empty > MANY * facts.labelled:
        yield Note(
            "masks_differ_from_labels",
            f"in {facts.differing} of {facts.labelled} labelled images of {split} the mask holds other "
            "classes than the label",
            "Labels that lack a class cost its IoU; so do masks that were enlarged with interpolation "
            "(between 1 and 3 lies 2), saved as JPEG on the way, or hold ids of instances.",
            "run=[check_data] lists the images.",
        )


def _moved(facts: MaskFacts, classes: Sequence[str]) -> str:
    return first_of([f"{classes[c]!r} is {found}, not {c + 1}" for c, found in facts.renumbered])
