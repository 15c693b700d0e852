"""Progress as a bar and as lines, of loops, Trainers and several processes; the log file of a run."""

import io
import logging
import pickle
import time
import warnings

import pytest
from quick_run import folder_run
from rich.console import Console

from ribseg import progress
from ribseg.checks import SettingError
from ribseg.errors import DataError
from ribseg.modules.progress import TrainerProgress
from ribseg.pipeline.recipe.console import LOG_FILE, LoggedConsole, log_file
from ribseg.progress import Tracker, check_progress, mode_of, track
from ribseg.store.usage import Usage
from ribseg.workers import RANKS


class Clock:
    """A clock that moves when it is told to."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def plain(file):
    return Console(file=file, width=200)


def logged(folder):
    """The lines of a log, without their times."""
    lines = (folder / LOG_FILE).read_text().splitlines()
    assert all(time.strptime(line[:19], "%Y-%m-%d %H:%M:%S") for line in lines)
    return [line[21:] for line in lines]


def test_lines_once_a_minute_with_rate_and_remaining_time(clock):
    file = io.StringIO()
    for _ in track(range(100), "Predicting rib", console=plain(file)):
        clock.now += 20
    said = file.getvalue().splitlines()
    assert said[0] == "Predicting rib: 3/100 images, 20 s/image, about 32:20 left"
    assert said[-1] == "Predicting rib: 100/100 images in 33:20, 20 s/image"
    assert len(said) == 34


def test_a_short_job_is_not_worth_a_line(clock):
    file = io.StringIO()
    assert list(track("abc", "Reading", console=plain(file))) == ["a", "b", "c"]
    assert file.getvalue() == ""


def test_what_was_done_before_does_not_count_for_the_rate(clock):
    tracker = Tracker("Training", 100, "lines", plain(io.StringIO()), "batch", done=60)
    clock.now += 10
    tracker.update(80, "loss 0.5")
    assert tracker.line() == "Training: 80/100 batches, 2 batches/s, about 0:10 left, loss 0.5"


def test_a_job_that_ends_early_says_so(clock):
    file = io.StringIO()

    def work(number):
        clock.now += 3
        return 1 / (2 - number)

    with pytest.raises(ZeroDivisionError):
        list(map(work, track(range(5), "Reading", console=plain(file))))
    assert file.getvalue() == "Reading: 2/5 images done, stopped after 0:09, 4.5 s/image\n"


def test_items_without_a_length(clock):
    file = io.StringIO()
    for _ in track(iter("ab"), "Writing", console=plain(file), unit="file"):
        clock.now += 61
    assert file.getvalue().splitlines()[0] == "Writing: 1 files, 61 s/file"


def test_a_bar_on_a_terminal_and_its_lines_in_the_log(clock, tmp_path):
    terminal = io.StringIO()
    console = LoggedConsole(file=terminal, force_terminal=True, width=100)
    with log_file(tmp_path, True):
        for _ in track(range(4), "Evaluating val", show="auto", console=console):
            clock.now += 70
            console.print("[bold]between[/]")
    assert "━" in terminal.getvalue()
    assert "4/4 images, 4:40" in terminal.getvalue()
    said = logged(tmp_path)
    assert said.count("between") == 4
    assert not {"━", "\x1b"} & set("".join(said))
    assert "Evaluating val: 4/4 images in 4:40, 70 s/image" in said


def test_a_job_inside_another_one_has_lines_instead_of_a_second_bar(clock):
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    outer, inner = (Tracker(name, 2, "bar", console) for name in ("outer", "inner"))
    assert (outer.mode, inner.mode) == ("bar", "lines")
    inner.close()
    outer.close()


def test_modes(monkeypatch):
    file, terminal = plain(io.StringIO()), Console(file=io.StringIO(), force_terminal=True)
    monkeypatch.delenv("TERM", raising=False)
    for name in RANKS:
        monkeypatch.delenv(name, raising=False)
    assert [mode_of(show, file) for show in ("auto", True, "bar", "lines", False)] == [
        "lines", "lines", "bar", "lines", None
    ]  # fmt: skip
    assert mode_of("auto", terminal) == "bar"
    assert mode_of("auto", Console(quiet=True)) is None
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert mode_of("bar", file) is None
    for wrong in ("yes", 1, None):
        with pytest.raises(SettingError, match=r"progress: expected auto \| bar \| lines"):
            check_progress("progress", wrong)


def trainer_of(world=1, **values):
    """As much of a Trainer as the callback looks at."""
    from types import SimpleNamespace as Space

    given = {"world_size": world, "is_global_zero": True, "num_predict_batches": [5], "max_steps": -1}
    total = Space(completed=0)
    loop = Space(epoch_loop=Space(batch_progress=Space(total=total)))
    return Space(**given | {"fit_loop": loop, "accumulate_grad_batches": 1} | values)


def test_several_processes_are_counted_together(clock):
    file, counted = io.StringIO(), []
    callback = TrainerProgress("rib", "lines", plain(file), lambda *facts: counted.append(facts))
    callback._trainer = trainer = trainer_of(world=4)
    callback.on_predict_start(trainer, None)
    for number in range(5):
        clock.now += 60
        callback.on_predict_batch_end(trainer, None, None, None, number)
    callback.on_predict_end(trainer, None)
    said = file.getvalue().splitlines()
    assert said[0] == "Predicting rib: 4/20 images, 15 s/image, about 4:00 left"
    assert said[-1] == "Predicting rib: 20/20 images in 5:00, 15 s/image"
    assert counted == [("image", 20)]


def test_the_callback_can_be_sent_to_spawned_processes():
    there = pickle.loads(pickle.dumps(TrainerProgress("rib", "bar", Console(), print)))  # noqa: S301 - ours
    assert (there.title, there.show, there.console) == ("rib", "bar", None)


def test_the_log_has_lines_with_times_and_no_control_characters(tmp_path):
    console = LoggedConsole(file=io.StringIO(), force_terminal=True, width=100)
    with log_file(tmp_path, True):
        console.print("[bold]bold[/]\n\n  and more")
    assert logged(tmp_path)[1:] == ["bold", "", "  and more", "finished"]


def test_a_quiet_console_and_one_without_a_run_log_nothing(tmp_path):
    LoggedConsole(file=io.StringIO()).print("before")
    with log_file(tmp_path, True):
        LoggedConsole(quiet=True).print("quiet")
    assert logged(tmp_path)[1:] == ["finished"]


def test_a_run_logs_what_it_prints_and_how_it_ends(tmp_path, tree, capsys, monkeypatch):
    monkeypatch.setattr(progress, "SHORT", 0)
    folder_run(tmp_path, tree, "run=[classifier,cam,evaluate]", "progress=lines")
    said, log = capsys.readouterr().out, (tmp_path / "out" / LOG_FILE).read_text()
    for text in (
        "classifier: ",
        "Predicting cam: 10/10 images",
        "done: cam, 10 images",
        "Localization maps on",
    ):
        assert text in said
        assert text in log
    assert log.splitlines()[-1].endswith("finished")


def test_a_crash_leaves_its_traceback_and_warnings(tmp_path):
    def crash():
        with log_file(tmp_path, True):
            logging.getLogger("a.library").warning("beware")
            logging.getLogger("a.library").info("not worth a line")
            warnings.warn("on thin ice", stacklevel=1)
            raise RuntimeError("on purpose")

    with pytest.warns(UserWarning, match="thin ice"), pytest.raises(RuntimeError, match="on purpose"):
        crash()
    said = logged(tmp_path)
    assert said[1] == "WARNING a.library: beware"
    assert "UserWarning: on thin ice" in said[2]
    assert said[-1] == "RuntimeError: on purpose"
    assert {"failed:", "Traceback (most recent call last):"} <= set(said)
    assert "not worth a line" not in said


@pytest.mark.parametrize(
    ("error", "end"), [(DataError("no\nimages"), ["failed: no", "images"]), (KeyboardInterrupt(), None)]
)
def test_how_a_run_ended_is_in_the_log(tmp_path, error, end):
    with pytest.raises(type(error)), log_file(tmp_path, True):
        raise error
    said = logged(tmp_path)
    assert said[1:] == end if end else "interrupted:" in said


def test_only_the_first_process_logs(tmp_path):
    with log_file(tmp_path, False):
        pass
    assert not (tmp_path / LOG_FILE).exists()


def test_the_summary_of_a_stage(tmp_path):
    usage = Usage()
    usage.count("image", 3)
    line = usage.line("rib", tmp_path)
    assert line.startswith("done: rib, 3 images, in 0.0 s, ")
    assert "memory 0." in line or "memory 1." in line
    assert line.endswith(str(tmp_path))


def test_paths_are_printed_in_one_line_and_as_they_are(tmp_path):
    terminal = io.StringIO()
    console = LoggedConsole(file=terminal, width=40)
    folder = f"/data/[bold]{'runs/' * 30}classifier-924b57c5d4de"
    with log_file(tmp_path, True):
        console.say(folder, "classifier")
        console.say("the masks hold only background", "  warning", "yellow")
    assert terminal.getvalue().splitlines() == logged(tmp_path)[1:-1] == [
        f"classifier: {folder}",
        "  warning: the masks hold only background",
    ]  # fmt: skip
