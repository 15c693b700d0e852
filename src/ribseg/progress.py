"""How far a long job is: a bar on a terminal, else one plain line a minute, as in a batch system's file."""

import logging
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

from ribseg.checks import SettingError
from ribseg.workers import rank

T = TypeVar("T")
MODES = ("auto", "bar", "lines")
EVERY = 60.0  # seconds between two lines
WIDTH = 20  # of a bar, in characters
SHORT = 2.0  # seconds of a job that is not worth a line
LOG = logging.getLogger("ribseg.run")  # what a run prints, for its log.txt alone
LOG.setLevel(logging.INFO)
LOG.propagate = False
_shared: list[Console] = []
_bars: list["Tracker"] = []  # that are drawn now


def check_progress(name: str, value: Any) -> None:
    """Raises a SettingError unless a setting is auto, bar, lines, true (as auto) or false.

    >>> check_progress("progress", "line")
    Traceback (most recent call last):
    ribseg.checks.SettingError: progress: expected auto | bar | lines | true | false, got 'line'
    """
    if not (isinstance(value, bool) or (isinstance(value, str) and value in MODES)):
        found = "null" if value is None else repr(value)
        raise SettingError(f"{name}: expected {' | '.join(MODES)} | true | false, got {found}")


def mode_of(show: bool | str, console: Console) -> str | None:
    """How progress is shown: "bar", "lines" or None. Only the first process of a distributed run shows any.

    Args:
        show: see `check_progress`.
        console: auto chooses a bar on a terminal that can draw one.
    """
    check_progress("progress", show)
    if show is False or console.quiet or rank() > 0:
        return None
    if show in ("bar", "lines"):
        return str(show)
    return "bar" if console.is_terminal and not console.is_dumb_terminal else "lines"


@contextmanager
def shared_console(console: Console) -> Iterator[None]:
    """Lets all progress go to this console, where none is given."""
    _shared.append(console)
    try:
        yield
    finally:
        _shared.remove(console)


def duration(seconds: float) -> str:
    """Seconds as text.

    >>> duration(66), duration(3725.4)
    ('1:06', '1:02:05')
    """
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def speed(done: float, seconds: float, unit: str) -> str:
    """The rate as text; "" before anything is done.

    >>> speed(13, 2, "image"), speed(5, 16, "image"), speed(2468, 2, "file")
    ('6.5 images/s', '3.2 s/image', '1234 files/s')
    """
    if done <= 0 or seconds <= 0:
        return ""
    rate = done / seconds
    return f"{_short(rate)} {plural(unit)}/s" if rate >= 1 else f"{_short(1 / rate)} s/{unit}"


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def plural(unit: str) -> str:
    """The plural of a unit.

    >>> plural("image"), plural("batch")
    ('images', 'batches')
    """
    return f"{unit}es" if unit.endswith(("ch", "s", "x")) else f"{unit}s"


class Tracker:
    """Shows how far one job is, with its rate and the remaining time.

    The rate is the mean over the whole job, without what was done before it began.

    Args:
        title: what is done, as "Predicting rib".
        total: number of items; None if it is not known.
        show: see `check_progress`.
        console: where; None for the shared one, else standard output.
        unit: of an item.
        done: number of items that were done before.

    Attributes:
        done: number of items.
        note: shown behind the rest, as a loss.
    """

    def __init__(
        self,
        title: str,
        total: int | None,
        show: bool | str = True,
        console: Console | None = None,
        unit: str = "image",
        done: int = 0,
    ) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.console = console or (_shared[-1] if _shared else Console(highlight=False))
        self.done = self.before = done
        self.note, self.begin = "", time.monotonic()
        self.said = self.begin
        self.mode = mode_of(show, self.console)
        if self.mode == "bar" and _bars:  # a terminal has room for one; rich before 14.1 draws no second
            self.mode = "lines"
        self.bar = self._start_bar() if self.mode == "bar" else None

    def update(self, done: int, note: str = "") -> None:
        """Sets the number of items that are done; prints a line if the last one is a minute ago."""
        self.done, self.note = done, note
        if self.bar is not None:
            self.bar.update(self.bar.task_ids[0], completed=done, description=self.title)
        if self.mode is not None and time.monotonic() - self.said >= EVERY:
            self._say(self.line())

    def close(self) -> None:
        """Ends the bar or prints the last line, unless the job was short; a second call does nothing."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
            _bars.remove(self)
        if self.mode is not None and self._seconds() >= SHORT:
            self._say(self.last_line())
        self.mode = None

    def line(self) -> str:
        """The state of the job.

        As "Predicting rib: 120/550 images, 6.5 images/s, about 1:06 left".
        """
        return ", ".join([f"{self.title}: {self._count()}", *self.facts()])

    def last_line(self) -> str:
        """What was done in all, and in which time."""
        ended = self.total is None or self.done >= self.total
        rate = speed(self.done - self.before, self._seconds(), self.unit)
        end = f"{'in' if ended else 'done, stopped after'} {duration(self._seconds())}"
        return f"{self.title}: {self._count()} {end}{rate and f', {rate}'}"

    def facts(self) -> list[str]:
        """Rate, remaining time and note, as far as they are known."""
        here, seconds = self.done - self.before, self._seconds()
        facts = [speed(here, seconds, self.unit)]
        if self.total is not None and here > 0:
            facts.append(f"about {duration(max(0, self.total - self.done) * seconds / here)} left")
        return [fact for fact in (*facts, self.note) if fact]

    def _count(self) -> str:
        return f"{self.done}{'' if self.total is None else f'/{self.total}'} {plural(self.unit)}"

    def _seconds(self) -> float:
        return time.monotonic() - self.begin

    def _say(self, line: str) -> None:
        self.said = time.monotonic()
        if self.mode == "lines":
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:  # the log holds lines instead of bars
            LOG.info(line)

    def _start_bar(self) -> Progress:
        columns = (TextColumn("{task.description}", markup=False), BarColumn(WIDTH), _Facts(self))
        bar = Progress(*columns, console=self.console)
        bar.add_task(self.title, total=self.total, completed=self.done)
        bar.start()
        _bars.append(self)
        return bar


class _Facts(ProgressColumn):
    """The count, elapsed time, rate and remaining time of a tracker; drawn anew while an item takes long."""

    def __init__(self, tracker: Tracker) -> None:
        super().__init__(Column(no_wrap=True))  # a narrow terminal cuts the end off
        self.tracker = tracker

    def render(self, task: Task) -> Text:
        """The text of the column."""
        tracker = self.tracker
        return Text(", ".join([tracker._count(), duration(tracker._seconds()), *tracker.facts()]))


def track(
    items: Iterable[T],
    title: str,
    total: int | None = None,
    show: bool | str = True,
    console: Console | None = None,
    unit: str = "image",
) -> Iterator[T]:
    """The items, with the progress shown as they are taken.

    Args:
        items: may be computed as they are taken.
        title: what is done.
        total: number of items; None for their length, if they have one.
        show: see `check_progress`.
        console: see `Tracker`.
        unit: of an item.
    """
    length = len(items) if total is None and isinstance(items, Sized) else total
    tracker = Tracker(title, length, show, console, unit)
    try:
        for number, item in enumerate(items, start=1):
            yield item
            tracker.update(number)
    finally:
        tracker.close()
