"""Settings are honoured or refused: callbacks, the Trainer's, sweeps with a bad job, objectives, Ctrl-C."""

import json
import os
import signal
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
from pytorch_lightning import Callback
from pytorch_lightning.callbacks import EarlyStopping
from quick_run import arguments, folder_run, train

from ribseg.errors import ConfigError, RibsegError
from ribseg.pipeline.recipe.trainer import DECIDED
from ribseg.pipeline.run import objective

SEEN = []


class Recorder(Callback):
    """Remembers which trainings it was part of."""

    def __init__(self, name="recorder"):
        self.name = name

    def on_train_end(self, trainer, pl_module):
        """Notes the kind of module."""
        SEEN.append((self.name, type(pl_module).__name__))


class Stopper(Callback):
    """Ends a training after its third iteration, as a limit of time does; once."""

    done = False

    def on_train_batch_end(self, trainer, *_):
        """Asks for the end."""
        if trainer.global_step == 3 and not Stopper.done:
            Stopper.done = trainer.should_stop = True


class GoodEnough(EarlyStopping):
    """Ends a training by its loss, after the first epoch or validation."""

    def __init__(self, monitor):
        super().__init__(monitor, stopping_threshold=1e9)


ME = f"{__name__}.Recorder"


def test_callbacks_of_all_trainings_and_of_one(tmp_path, tree):
    SEEN.clear()
    folder_run(
        tmp_path,
        tree,
        f"+callbacks.all={{_target_: {ME}, name: all}}",
        f"+classifier.callbacks.one={{_target_: {ME}, name: one}}",
        "rib.lr=1e-3",
        "run=[classifier,cam,rib,refine,segmenter]",
    )
    assert SEEN == [
        ("all", "ClassifierModule"),
        ("one", "ClassifierModule"),
        ("all", "IRNModule"),
        ("all", "SegmentationModule"),
    ]


def test_a_callback_may_be_left_out_of_one_training(tmp_path, tree):
    SEEN.clear()
    every = f"+callbacks.all._target_={ME}"
    folder_run(tmp_path, tree, every, "+classifier.callbacks.all=null", "run=[classifier]")
    assert SEEN == []


def test_a_callback_that_changes_is_another_classifier(tmp_path, tree):
    runs = [
        folder_run(tmp_path, tree, f"+callbacks.all={{_target_: {ME}, name: {name}}}", "run=[classifier]")
        for name in "ab"
    ]
    assert runs[0]["store"]["classifier"] != runs[1]["store"]["classifier"]


@pytest.mark.parametrize(
    ("target", "message"),
    [("builtins.dict", "gives dict, no callback"), ("mine.Nothing", "mine"), (ME + "2", "Recorder2")],
)
def test_a_callback_that_cannot_be_is_said_before_the_first_stage(target, message, tmp_path, tree):
    with pytest.raises(ConfigError, match=message):
        folder_run(tmp_path, tree, f"+callbacks.bad._target_={target}", "run=[classifier]")
    assert not list((tmp_path / "store").glob("classifier-*"))


@pytest.mark.parametrize(
    ("part", "settings"),
    [
        ("classifier", ("run=[classifier]", "classifier.epochs=3", "data.batch_size=2")),
        (
            "segmenter_full",
            ("run=[classifier,segmenter]", "segmenter.sources=[full]", "segmenter.max_steps=6",
             "segmenter.check_every=2", "segmenter.validate=true"),
        ),
    ],
)  # fmt: skip
def test_a_training_that_something_cuts_is_not_complete_and_goes_on(tmp_path, tree, part, settings):
    stop = f"+{part.partition('_')[0]}.callbacks.stop._target_={__name__}.Stopper"
    Stopper.done = True
    whole = folder_run(tmp_path / "whole", tree, *settings, stop)["store"][part]
    Stopper.done = False
    with pytest.raises(RibsegError, match=r"was stopped in (epoch|iteration) [123] of [36].*not complete"):
        folder_run(tmp_path, tree, *settings, stop)
    cut = folder_run(tmp_path, tree, *settings, stop)["store"][part]
    name = f"{part.partition('_')[0]}.safetensors"
    assert Path(cut, name).read_bytes() == Path(whole, name).read_bytes()


def test_a_limit_of_time_does_not_make_a_result(tmp_path, tree):
    limit = ("run=[classifier]", "+trainer.max_time={seconds: 0}", "classifier.epochs=2")
    with pytest.raises(RibsegError, match=r"classifier was stopped in epoch 1 of 2, by trainer\.max_time"):
        folder_run(tmp_path, tree, *limit)
    longer = ("run=[classifier]", "classifier.epochs=2", "+trainer.max_time={hours: 1}")
    again = folder_run(tmp_path, tree, *longer)["store"]["classifier"]
    assert folder_run(tmp_path, tree, *longer[:2])["store"]["classifier"] == again  # not another training


def test_without_the_trainers_bar_no_stage_shows_one(tmp_path, tree, monkeypatch):
    shown = []

    def track(items, title, total, show, *_):
        shown.append(show)
        return items

    monkeypatch.setattr("ribseg.pipeline.recipe.session.track", track)
    folder_run(
        tmp_path, tree, "run=[classifier,cam]", "engine.processes=2", "trainer.enable_progress_bar=false"
    )
    assert set(shown) == {False}


def test_early_stopping_on_a_metric_may_end_a_training(tmp_path, tree):
    stop = f"+classifier.callbacks.stop={{_target_: {__name__}.GoodEnough, monitor: val/mAP}}"
    folder_run(tmp_path, tree, "run=[classifier]", "classifier.epochs=3", stop)
    stop = f"+segmenter.callbacks.stop={{_target_: {__name__}.GoodEnough, monitor: train/loss}}"
    settings = ("segmenter.sources=[full]", "segmenter.check_every=1", "run=[classifier,segmenter]", stop)
    assert "full" in folder_run(tmp_path, tree, *settings)["segmenter"]


@pytest.mark.parametrize("name", DECIDED)
def test_what_ribseg_decides_is_refused_with_the_setting_to_use(name, tmp_path, tree):
    with pytest.raises(ConfigError, match=rf"trainer\.{name} is decided by ribseg; use"):
        folder_run(tmp_path, tree, f"+trainer.{name}=7", "run=[classifier]")
    assert not list((tmp_path / "store").glob("classifier-*"))


def test_the_summary_of_the_model_is_shown_where_it_is_asked_for(tmp_path, tree, caplog, capsys):
    folder_run(tmp_path, tree, "+trainer.enable_model_summary=true", "run=[classifier]")
    captured = capsys.readouterr()
    assert "Classifier" in captured.out + captured.err + caplog.text


def test_the_objective_is_any_number_of_the_results():
    results = {"a": {"b": [0.25, {"c": 3}]}, "name": "x", "flag": True}
    assert objective(results, "a.b.0") == 0.25
    assert objective(results, "a.b.1.c") == 3.0
    assert objective(results, None) is None


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("a.z", r"a has no 'z'; there is b"),
        ("a.b.7", r"a\.b has no '7'; there is 0, 1"),
        ("name", "expected a number in results.json, found str"),
        ("flag", "expected a number in results.json, found bool"),
        ("name.x", r"name has no 'x'; there is the value 'x'"),
        ("nothing", r"results\.json has no 'nothing'; there is a, name, flag"),
    ],
)
def test_an_objective_that_is_not_there(path, message):
    with pytest.raises(ConfigError, match=message):
        objective({"a": {"b": [0.25, {"c": 3}]}, "name": "x", "flag": True}, path)


def test_a_sweep_with_a_bad_job_runs_the_others_and_says_so(tmp_path, tree, capfd):
    sweep = ("pooling.threshold=0.3,1.5,0.5", "rib.lr=1e-3", "run=[classifier,cam,rib,evaluate]", "-m")
    assert train(arguments(tmp_path, tree, *sweep)) == 1
    jobs = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert ["results" in job for job in jobs] == [True, False, True]
    assert "1.5" in jobs[1]["failure"]
    printed, errors = capfd.readouterr()
    table = printed[printed.rindex("Localization maps on val") :]
    assert "failed" in table
    assert "pooling.threshold=1.5 failed:" in table
    assert "Traceback" not in errors
    assert len(list((tmp_path / "store").glob("classifier-*"))) == 1


@contextmanager
def signalled_at(folder, pattern, number=signal.SIGINT):
    """Sends a signal once there is such a file: that of Ctrl-C, or of `kill` and batch systems."""
    done = threading.Event()

    def wait():
        while not done.wait(0.01):
            if any(folder.glob(pattern)):
                os.kill(os.getpid(), number)
                return

    thread = threading.Thread(target=wait)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize(
    ("long", "file"),
    [
        ("classifier.epochs=100000", "classifier-*/checkpoints/*.ckpt"),
        ("rib.steps=50", "rib-*/maps/*.npz"),
    ],
)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_kill_say_in_one_line_how_to_go_on(number, long, file, tmp_path, tree, capfd):
    with signalled_at(tmp_path / "store", file, number):
        code = train(arguments(tmp_path, tree, long, "rib.lr=1e-9", "run=[classifier,rib]", "logger=csv"))
    assert "interrupted. Nothing that was finished is lost; give the same command again" in code
    assert not list((tmp_path / "store").glob(f"{file.partition('-')[0]}-*/manifest.json"))
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert "Traceback" not in "".join(capfd.readouterr())
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "interrupted:" in log
    assert "KeyboardInterrupt" in log
