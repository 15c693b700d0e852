"""Logging the results of a run: each logger gets what its methods can take.

Known by their methods, not by their class: `log_image` and `log_table` as Lightning's WandbLogger has them,
`log_file`, and an `experiment` with `add_image`, `add_text` and `add_scalar`, as TensorBoard's writer. W&B
alone also gets curves drawn, an artifact and a summary.
"""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from pytorch_lightning.loggers import Logger, WandbLogger

from ribseg.data.base import BaseDataset
from ribseg.errors import reason
from ribseg.pipeline.recipe.context import Context
from ribseg.pipeline.recipe.loggers import finish_loggers, result_numbers
from ribseg.pipeline.report.logged import (
    Curves,
    Example,
    Table,
    all_tables,
    example_images,
    threshold_curves,
    written_files,
)

OPACITY = 0.6  # of a mask over its image
IGNORE = 255
Step = tuple[str, Callable[[], object]]  # what it logs, and how


class Loggable:
    """What a run has to log; each part is read when the first logger wants it."""

    def __init__(self, context: Context, results: dict[str, Any]) -> None:
        self.context, self.results, self.name = context, results, str(context.cfg.name)

    @cached_property
    def numbers(self) -> dict[str, float]:
        """The scalars of the results by path."""
        return result_numbers(self.results)

    @cached_property
    def examples(self) -> list[tuple[BaseDataset, list[Example]]]:
        """Images with masks, by split."""
        return list(example_images(self.context, self.results))

    @cached_property
    def tables(self) -> dict[str, Table]:
        """Tables by name."""
        return all_tables(self.context, self.results)

    @cached_property
    def curves(self) -> dict[str, Curves]:
        """Curves over thresholds, by split."""
        return threshold_curves(self.results)

    @cached_property
    def files(self) -> dict[str, Path]:
        """The files of the run, by name."""
        return written_files(self.context)


def log_results(context: Context, results: dict[str, Any]) -> None:
    """Logs the results; what a logger cannot take for an error is said, and the others go on."""
    things = Loggable(context, results)
    for logger in context.result_loggers:
        _try(context, logger, "results", partial(_log, context, logger, things))
    _try(context, None, "end of the run", finish_loggers)


def _log(context: Context, logger: Logger, things: Loggable) -> None:
    for what, log in steps(logger, things):
        _try(context, logger, what, log)


def _try(context: Context, logger: Logger | None, what: str, log: Callable[[], object]) -> None:
    try:
        log()
    except Exception as error:  # noqa: BLE001 - any: from a network, a server, or a user's class
        name = "the loggers" if logger is None else type(logger).__name__
        said = f"{name} did not take the {what}: {type(error).__name__}: {reason(error)}. "
        said += f"Nothing is lost: {context.output} has the results"
        context.console.say(said, "warning", "yellow")


def steps(logger: Logger, things: Loggable) -> Iterator[Step]:
    """What a logger gets, in order."""
    yield "numbers", lambda: logger.log_metrics(things.numbers)
    writer = getattr(logger, "experiment", None)
    if hasattr(logger, "log_image"):
        yield "images", partial(give_images, logger.log_image, things)
    elif hasattr(writer, "add_image"):
        yield "images", partial(write_images, writer, things)
    if hasattr(logger, "log_table"):
        yield "tables", partial(give_tables, logger.log_table, things)
    elif hasattr(writer, "add_text"):
        yield "tables", partial(write_tables_as_text, writer, things)
    if isinstance(logger, WandbLogger):
        yield "curves", partial(draw_curves, logger, things)
        yield "files", partial(add_artifact, logger, things)
    elif hasattr(writer, "add_scalar"):
        yield "curves", partial(write_curves, writer, things)
    if hasattr(logger, "log_file"):
        yield "files", lambda: [logger.log_file(str(path)) for path in things.files.values()]
    yield "end", lambda: logger.finalize("success")


def give_images(log_image: Callable[..., object], things: Loggable) -> None:
    """Hands the examples to `log_image(key, images, caption=, masks=)`.

    `masks` is a list, in W&B's form, of name -> {"mask_data": (H, W), "class_labels": id -> name}; for a
    `log_image` that does not take it the masks are drawn beside the image.
    """
    for folder, examples in things.examples:
        key, captions = f"examples/{folder.split}", [caption(one) for one in examples]
        if accepted(log_image, masks=None):
            images, masks = with_masks(examples, folder.classes)
            log_image(key, images, **accepted(log_image, caption=captions, masks=masks))
        else:
            strips = [strip(one, folder.palette) for one in examples]
            log_image(key, strips, **accepted(log_image, caption=captions))


def with_masks(
    examples: Sequence[Example], classes: Sequence[str]
) -> tuple[list[np.ndarray], list[dict[str, Any]]]:
    """Images and masks in W&B's form, all of one size: it shows lists of several sizes wrongly."""
    words: dict[int, str] = dict(enumerate(("background", *classes))) | {IGNORE: "ignore"}
    height = max(one.image.shape[0] for one in examples)
    width = max(one.image.shape[1] for one in examples)

    def padded(array: np.ndarray) -> np.ndarray:
        room = ((0, height - array.shape[0]), (0, width - array.shape[1]), (0, 0))
        return np.pad(array, room[: array.ndim])

    masks = [
        # A name is part of a file's name there.
        {
            re.sub(r"[^\w ()+.-]", " ", name): {"mask_data": padded(mask), "class_labels": words}
            for name, mask in one.masks.items()
        }
        for one in examples
    ]
    return [padded(one.image) for one in examples], masks


def accepted(function: Callable[..., object], **given: Any) -> dict[str, Any]:
    """Those of the keyword arguments that a function takes."""
    parameters = inspect.signature(function).parameters
    if any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
        return given
    return {name: value for name, value in given.items() if name in parameters}


def write_images(writer: Any, things: Loggable) -> None:
    """Adds each example with its masks beside it, and their names as text."""
    for folder, examples in things.examples:
        for one in examples:
            key = f"examples/{folder.split}/{one.image_id}"
            writer.add_image(key, strip(one, folder.palette), dataformats="HWC")
        writer.add_text(f"examples/{folder.split}", "\n\n".join(map(caption, examples)))


def strip(example: Example, palette: np.ndarray) -> np.ndarray:
    """The image, and beside it with each mask over it: (H, W', 3) uint8."""
    parts = [example.image]
    for mask in example.masks.values():
        shown = ((mask > 0) & (mask != IGNORE))[..., None] * OPACITY
        parts.append(((1 - shown) * example.image + shown * palette[mask]).astype(np.uint8))
    return np.concatenate(parts, axis=1)


def caption(example: Example) -> str:
    """The image id, and the names of image and masks, from left to right in a strip."""
    names = (
        f"{name} at {example.thresholds[name]:.2f}" if name in example.thresholds else name
        for name in example.masks
    )
    return f"{example.image_id}: {', '.join(['image', *names])}"


def give_tables(log_table: Callable[..., object], things: Loggable) -> None:
    """Hands the tables to `log_table(key, columns=, data=)`."""
    for name, table in things.tables.items():
        log_table(name, columns=table.columns, data=table.rows)


def write_tables_as_text(writer: Any, things: Loggable) -> None:
    """Adds the IoU per class as Markdown; the curves are scalars."""
    for name, table in things.tables.items():
        if not name.startswith("curves/"):
            writer.add_text(name, markdown(table.columns, table.rows))


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str | float | None]]) -> str:
    """A table in Markdown.

    >>> print(markdown(["class", "CAM"], [["cat", 0.5], ["dog", None]]))
    | class | CAM |
    |---|---|
    | cat | 0.5000 |
    | dog | - |
    """
    lines = [columns, *([_cell(value) for value in row] for row in rows)]
    text = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([text[0], f"|{'---|' * len(columns)}", *text[1:]])


def _cell(value: str | float | None) -> str:
    return "-" if value is None else value if isinstance(value, str) else f"{value:.4f}"


def write_curves(writer: Any, things: Loggable) -> None:
    """Adds each curve as scalars, with the threshold in percent as the step."""
    for split, curves in things.curves.items():
        for label, thresholds in curves.thresholds.items():
            for measure, values in curves.values[label].items():
                for threshold, value in zip(thresholds, values, strict=True):
                    if value is not None:
                        step = round(100 * threshold)
                        writer.add_scalar(f"curves/{split}/{measure}/{label}", value, step)


def draw_curves(logger: WandbLogger, things: Loggable) -> None:
    """Adds a chart of each measure, with a line per source; the table has the same numbers."""
    import wandb

    charts = {}
    for split, curves in things.curves.items():
        for measure in dict.fromkeys(name for found in curves.values.values() for name in found):
            labels = [label for label, found in curves.values.items() if measure in found]
            xs = [curves.thresholds[label] for label in labels]
            ys = [curves.values[label][measure] for label in labels]
            charts[f"curves/{split}/{measure}"] = wandb.plot.line_series(
                xs, ys, keys=labels, title=f"{measure} on {split}", xname="threshold"
            )
    if charts:
        logger.experiment.log(charts)


def add_artifact(logger: WandbLogger, things: Loggable) -> None:
    """Adds the files of the run as an artifact of type "report", and the numbers to the summary."""
    import wandb

    summary: Mapping[str, float] = things.numbers
    logger.experiment.summary.update(dict(summary))
    artifact = wandb.Artifact(re.sub(r"[^\w.-]+", "-", f"{things.name}-report"), type="report")
    for name, path in things.files.items():
        artifact.add_file(str(path), name=name)
    logger.experiment.log_artifact(artifact)
