"""Logging the results of a run: W&B and TensorBoard each get what they can show, all others the numbers.

A logger of another class also gets images, tables and files, if it has the methods `log_image`, `log_table`
and `log_file`.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger

from ribseg.data.base import BaseDataset
from ribseg.data.io.masks import IGNORE
from ribseg.errors import reason
from ribseg.pipeline.recipe.loggers import finish_loggers
from ribseg.pipeline.recipe.session import Session
from ribseg.pipeline.report.pictures import Example, example_images
from ribseg.pipeline.report.records import Record
from ribseg.pipeline.report.table import Cell, TableData
from ribseg.pipeline.report.table_files import TABLES_FOLDER
from ribseg.pipeline.report.tables import file_tables, own_tables, run_records
from ribseg.plot.maps import OPACITY

LOGGED = ("localization", "adaptation", "pseudo_masks", "bottleneck", "segmenter")
Step = tuple[str, Callable[[], object]]  # what it logs, and how


class Loggable:
    """What a run has to log; each part is read when the first logger wants it."""

    def __init__(self, session: Session, results: dict[str, Any]) -> None:
        self.session, self.results, self.name = session, results, str(session.cfg.name)

    @cached_property
    def numbers(self) -> dict[str, float]:
        """The scalars of the parts of the results that are logged, by path."""
        return numbers({key: self.results[key] for key in LOGGED if key in self.results})

    @cached_property
    def records(self) -> list[Record]:
        """The numbers of tables and curves."""
        return run_records(self.session, self.results)

    @cached_property
    def examples(self) -> list[tuple[BaseDataset, list[Example]]]:
        """Images with masks, by split."""
        return list(example_images(self.session, self.results))

    @cached_property
    def tables(self) -> dict[str, TableData]:
        """Tables by name."""
        return file_tables(self.records, own_tables(self.session).values())

    @cached_property
    def curves(self) -> dict[str, dict[str, list[Record]]]:
        """Split and measure, as "val/miou" -> label of a source -> its curve over the thresholds."""
        found: dict[str, dict[str, list[Record]]] = {}
        for record in self.records:
            if record.measure == "curve":
                lines = found.setdefault(f"{record.split}/{record.place}", {})
                lines.setdefault(record.label, []).append(record)
        return found

    @cached_property
    def files(self) -> dict[str, Path]:
        """Name -> file in the run's folder: what this run has written, and its settings.

        By time, because `hydra.run.dir` may be a folder with files of others.
        """
        output = self.session.output
        places = [*output.glob("*"), *output.glob(f"{TABLES_FOLDER}/*")]
        new = [path for path in places if path.is_file() and path.stat().st_mtime >= self.session.started]
        settings = output.glob(".hydra/*.yaml")
        return {str(path.relative_to(output)): path for path in sorted([*new, *settings])}


def numbers(tree: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers in nested dictionaries by path, as "localization/rib/best_miou"; lists are left out.

    >>> numbers({"a": {"b": 1, "c": None, "d": [2]}})
    {'a/b': 1.0}
    """
    flat: dict[str, float] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float):
            flat[f"{prefix}{key}"] = float(value)
    return flat


def log_results(session: Session, results: dict[str, Any]) -> None:
    """Logs the results; what a logger cannot take for an error is said, and the others go on."""
    things = Loggable(session, results)
    for logger in session.result_loggers:
        for what, log in steps(logger, things):
            _try(session, logger, what, log)
    _try(session, None, "end of the run", finish_loggers)


def _try(session: Session, logger: Logger | None, what: str, log: Callable[[], object]) -> None:
    try:
        log()
    except Exception as error:  # noqa: BLE001 - any: from a network, a server, or a user's class
        name = "the loggers" if logger is None else type(logger).__name__
        said = f"{name} did not take the {what}: {type(error).__name__}: {reason(error)}. "
        said += f"Nothing is lost: {session.output} has the results"
        session.console.say(said, "warning", "yellow")


def steps(logger: Logger, things: Loggable) -> Iterator[Step]:
    """What a logger gets, in order."""
    yield "numbers", lambda: logger.log_metrics(things.numbers)
    if isinstance(logger, WandbLogger):
        yield "images", lambda: wandb_images(logger, things)
        yield "tables", lambda: give_tables(logger.log_table, things)
        yield "curves", lambda: wandb_curves(logger, things)
        yield "files", lambda: wandb_artifact(logger, things)
    elif isinstance(logger, TensorBoardLogger):
        yield "images", lambda: write_images(logger.experiment, things)
        yield "tables", lambda: write_tables_as_text(logger.experiment, things)
        yield "curves", lambda: write_curves(logger.experiment, things)
    else:
        own: Any = logger
        if hasattr(own, "log_image"):
            yield "images", lambda: give_images(own.log_image, things)
        if hasattr(own, "log_table"):
            yield "tables", lambda: give_tables(own.log_table, things)
        if hasattr(own, "log_file"):
            yield "files", lambda: [own.log_file(str(path)) for path in things.files.values()]
    yield "end", lambda: logger.finalize("success")


def give_images(log_image: Callable[..., object], things: Loggable) -> None:
    """Hands the examples to `log_image(key, images, caption=)`, each with its masks beside it."""
    for folder, examples in things.examples:
        strips = [strip(one, folder.palette) for one in examples]
        log_image(f"examples/{folder.split}", strips, caption=[caption(one) for one in examples])


def give_tables(log_table: Callable[..., object], things: Loggable) -> None:
    """Hands the tables to `log_table(key, columns=, data=)`."""
    for name, table in things.tables.items():
        log_table(name, columns=table.columns, data=table.rows)


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


# TensorBoard


def write_images(writer: Any, things: Loggable) -> None:
    """Adds each example with its masks beside it, and their names as text."""
    for folder, examples in things.examples:
        for one in examples:
            key = f"examples/{folder.split}/{one.image_id}"
            writer.add_image(key, strip(one, folder.palette), dataformats="HWC")
        writer.add_text(f"examples/{folder.split}", "\n\n".join(map(caption, examples)))


def write_tables_as_text(writer: Any, things: Loggable) -> None:
    """Adds the tables as Markdown; the curves are scalars."""
    for name, table in things.tables.items():
        if not name.startswith("curves/"):
            writer.add_text(name, markdown(table.columns, table.rows))


def markdown(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """A table in Markdown.

    >>> print(markdown(["class", "CAM"], [["cat", 0.5], ["dog", None]]))
    | class | CAM |
    |---|---|
    | cat | 0.5000 |
    | dog | - |
    """
    lines = [columns, *([_text(value) for value in row] for row in rows)]
    text = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([text[0], f"|{'---|' * len(columns)}", *text[1:]])


def _text(value: Cell) -> str:
    return "-" if value is None else value if isinstance(value, str) else f"{value:.4f}"


def write_curves(writer: Any, things: Loggable) -> None:
    """Adds each curve as scalars, with the threshold in percent as the step."""
    for name, lines in things.curves.items():
        for label, curve in lines.items():
            for record in curve:
                if record.value is not None:
                    step = round(100 * (record.threshold or 0))
                    writer.add_scalar(f"curves/{name}/{label}", record.value, step)


# W&B


def wandb_images(logger: WandbLogger, things: Loggable) -> None:
    """Adds the examples with masks to switch on and off."""
    for folder, examples in things.examples:
        images, masks = with_masks(examples, folder.classes)
        captions = [caption(one) for one in examples]
        logger.log_image(f"examples/{folder.split}", images, caption=captions, masks=masks)


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


def wandb_curves(logger: WandbLogger, things: Loggable) -> None:
    """Adds a chart of each measure, with a line per source; the table has the same numbers."""
    import wandb

    charts = {}
    for name, lines in things.curves.items():
        split, _, measure = name.rpartition("/")
        charts[f"curves/{name}"] = wandb.plot.line_series(
            [[record.threshold for record in line] for line in lines.values()],
            [[record.value for record in line] for line in lines.values()],
            keys=list(lines),
            title=f"{measure} on {split}",
            xname="threshold",
        )
    if charts:
        logger.experiment.log(charts)


def wandb_artifact(logger: WandbLogger, things: Loggable) -> None:
    """Adds the files of the run as an artifact of type "report", and the numbers to the summary."""
    import wandb

    logger.experiment.summary.update(things.numbers)
    artifact = wandb.Artifact(re.sub(r"[^\w.-]+", "-", f"{things.name}-report"), type="report")
    for name, path in things.files.items():
        artifact.add_file(str(path), name=name)
    logger.experiment.log_artifact(artifact)
