"""What a stage has used: time, memory, and the images it has done."""

import resource
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from ribseg.progress import duration, plural, speed

GIB = 2**30
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Usage:
    """Time and memory from here on, and the items that were done meanwhile.

    Attributes:
        counted: unit -> number of items; a stage that looks at an image twice counts it twice.
    """

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Starts anew."""
        self.counted: Counter[str] = Counter()
        self.start = time.perf_counter()
        _reset_peaks()

    def count(self, unit: str, number: int) -> None:
        """Adds items that were done."""
        self.counted[unit] += number

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.perf_counter() - self.start

    @property
    def peaks(self) -> dict[str, float]:
        """Peak "memory" of this process since the beginning, and its "GPU memory", in GiB."""
        peaks = {"memory": _peak_bytes() / GIB}
        if gpu := _gpu():
            peaks["GPU memory"] = gpu.max_memory_allocated() / GIB
        return peaks

    def line(self, stage: str, folder: Path) -> str:
        """The summary of a stage: items, time, rate, peak memory of this process, and its folder."""
        seconds = self.seconds
        done = [f"{number} {plural(unit)}" for unit, number in self.counted.items() if number]
        rates = [speed(number, seconds, unit) for unit, number in self.counted.most_common(1)]
        peaks = [f"{name} {gib:.2f} GiB" for name, gib in self.peaks.items()]
        time_taken = f"in {duration(seconds)}" if seconds >= 60 else f"in {seconds:.1f} s"
        return f"done: {stage}, {', '.join([*done, time_taken, *filter(None, rates), *peaks])}, {folder}"


def _reset_peaks() -> None:
    with suppress(OSError):  # elsewhere than on Linux the line says the peak of the process's whole life
        CLEAR.write_text("5")
    if gpu := _gpu():
        gpu.reset_peak_memory_stats()


def _gpu() -> Any:
    """`torch.cuda` if torch has been imported and a GPU is in use; else None."""
    cuda = sys.modules["torch"].cuda if "torch" in sys.modules else None
    return cuda if cuda is not None and cuda.is_available() and cuda.is_initialized() else None


def _peak_bytes() -> int:
    if STATUS.is_file():
        lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines() if ":" in line)
        if "VmHWM" in lines:
            return int(lines["VmHWM"].split()[0]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux kilobytes
