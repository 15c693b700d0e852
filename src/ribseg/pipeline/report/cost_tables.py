"""Tables of what maps and stages cost: time and memory."""

from collections.abc import Mapping
from typing import Any

from ribseg.pipeline.report.table import Sortable, TableData
from ribseg.store.artefact import Artefact


def cost_table(methods: Mapping[str, Any]) -> TableData:
    """The table of what the maps of each method cost: seconds an image, and memory.

    Args:
        methods: `results["methods"]`.
    """
    kinds = memory_kinds(methods)
    rows = []
    for facts in methods.values():
        seconds, peaks = facts["seconds_per_image"], facts.get("peak_gib", {})
        memory = [f"{peaks[kind]:.2f}" if kind in peaks else "-" for kind in kinds]
        rows.append([facts["label"], str(facts["images"]), Sortable(f"{seconds:.3g}", seconds), *memory])
    columns = ["maps", "images", "s an image", *(f"{kind},\nGiB" for kind in kinds)]
    return TableData("What the maps cost", columns, rows, COST_NOTE)


def memory_kinds(methods: Mapping[str, Any]) -> list[str]:
    """The kinds of memory that were measured for some method: "memory", "GPU memory"."""
    return list(dict.fromkeys(kind for facts in methods.values() for kind in facts.get("peak_gib", {})))


COST_NOTE = (
    "Seconds of one process for the maps of an image with a class, its views at hand; peak memory of the "
    "first process, with the libraries that it has loaded."
)


def time_table(finished: Mapping[str, Artefact]) -> TableData:
    """The table of the stages: time, when and where they were computed."""
    rows, total = [], 0.0
    for name, artefact in finished.items():
        manifest = artefact.manifest
        total += manifest["seconds"]
        moment = str(manifest.get("finished", "-")).replace("T", " ").removesuffix("+00:00")
        seconds = Sortable(_duration(manifest["seconds"]), manifest["seconds"])
        rows.append([name, seconds, moment, artefact.folder.name])
    columns = ["stage", "time", "finished (UTC)", "in the store"]
    return TableData("Time per stage", columns, rows, f"Sum: {_duration(total)}.", text=columns[2:])


def _duration(seconds: float) -> str:
    """A duration as text.

    >>> _duration(3.24), _duration(75), _duration(7322)
    ('3.2 s', '1:15 min', '2:02 h')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, hours = divmod(round(seconds), 60), divmod(round(seconds / 60), 60)
    return f"{minutes[0]}:{minutes[1]:02} min" if seconds < 3600 else f"{hours[0]}:{hours[1]:02} h"
