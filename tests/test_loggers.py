"""Loggers: any of Lightning's by `_target_`, several at once, for every stage; W&B offline without a key."""

import csv
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from quick_run import begun, folder_run, settings

from ribseg.errors import ConfigError
from ribseg.pipeline.recipe import loggers
from ribseg.pipeline.recipe.loggers import logger_settings, wandb_login

CSV = "pytorch_lightning.loggers.CSVLogger"
TENSORBOARD = "pytorch_lightning.loggers.TensorBoardLogger"
WANDB = "pytorch_lightning.loggers.WandbLogger"
EACH = "trainer.log_every_n_steps=1"
TRAINED = "run=[classifier,cam,rib,affinity_labels,affinity,evaluate]"
OWN = """
from pytorch_lightning.loggers import Logger

seen = []

class Own(Logger):
    version = 0

    def __init__(self, name, save_dir, greeting="none"):
        super().__init__()
        self.stage, self.folder, self.greeting = name, save_dir, greeting

    @property
    def name(self):
        return self.stage

    def log_hyperparams(self, *args, **kwargs):
        pass

    def log_metrics(self, metrics, step=None):
        seen.append((self.stage, self.greeting, dict(metrics)))
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module of the user's with a logger in it."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "own_logger.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    yield __import__("own_logger")
    del sys.modules["own_logger"]


def needs_a_package(self, name):
    raise ModuleNotFoundError("this logger needs a package")


def columns(path):
    with path.open() as file:
        return next(csv.reader(file))


def test_two_loggers_at_once_one_of_them_the_users_own(tmp_path, tree, own):
    given = [f"+logger.csv._target_={CSV}", "+logger.mine._target_=own_logger.Own"]
    folder_run(tmp_path, tree, *given, "+logger.mine.greeting='hello {stage}'", TRAINED, EACH)
    for stage, metric in (
        ("classifier", "train/loss"),
        ("affinity", "train/loss"),
        ("results", "localization/rib/best_miou"),
    ):
        told = [metrics for name, words, metrics in own.seen if (name, words) == (stage, f"hello {stage}")]
        assert any(metric in metrics for metrics in told), stage
        assert metric in columns(tmp_path / "out" / "logs" / stage / "metrics.csv")


@pytest.mark.parametrize("change", ["logger=csv", f"+logger._target_={CSV}"])
def test_csv_by_name_and_by_its_target(tmp_path, tree, change):
    folder_run(tmp_path, tree, change, EACH, "run=[classifier,cam,evaluate]")
    assert "train/loss" in columns(tmp_path / "out" / "logs" / "classifier" / "metrics.csv")
    assert "localization/cam/best_miou" in columns(tmp_path / "out" / "logs" / "results" / "metrics.csv")


def test_another_class_takes_the_place_of_a_named_one(tmp_path, tree):
    cfg = settings(
        "rib_folder", tmp_path, f"data.root={tree}", "logger=csv", f"logger._target_={TENSORBOARD}"
    )
    (logger,) = begun(cfg, tmp_path / "out").loggers("classifier")
    assert type(logger).__name__ == "TensorBoardLogger"
    assert Path(logger.log_dir) == tmp_path / "out" / "logs" / "classifier"


def test_everything_that_is_given_is_honoured(tmp_path):
    node = OmegaConf.create({"_target_": CSV, "save_dir": "{output}/x", "name": "mine", "prefix": "{stage}-"})
    (found,) = logger_settings(node, "classifier", tmp_path)
    expected = {"save_dir": f"{tmp_path}/x", "name": "mine", "prefix": "classifier-"}
    # No version is set under a name of the user's: the stages would write into one folder.
    assert {k: v for k, v in found.items() if not k.startswith("_")} == expected
    given = {"project": "p", "group": "g", "name": "n", "offline": True, "tags": ["{stage}", "{run}"]}
    (found,) = logger_settings(OmegaConf.create({"_target_": WANDB, **given}), "cam", tmp_path / "a" / "b")
    assert found | given | {"tags": ["cam", "a b"]} == found
    assert found["job_type"] == "cam"


def test_wandb_has_one_group_a_run_and_one_job_a_stage(tmp_path, monkeypatch):
    monkeypatch.setattr(loggers, "wandb_login", lambda: True)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    node = OmegaConf.create({"_target_": WANDB})
    first, second = (logger_settings(node, stage, tmp_path)[0] for stage in ("cam", "rib"))
    assert first["group"] == second["group"]
    assert (first["job_type"], second["job_type"]) == ("cam", "rib")
    assert first["name"] != second["name"]
    assert "mode" not in first
    monkeypatch.setattr(loggers, "wandb_login", lambda: False)
    assert logger_settings(node, "cam", tmp_path)[0]["mode"] == "offline"


def test_wandb_asks_nothing_where_the_user_has_decided(tmp_path, monkeypatch):
    monkeypatch.setattr(loggers, "wandb_login", lambda: pytest.fail("asked"))
    monkeypatch.setenv("WANDB_MODE", "online")

    def mode(**given):
        return logger_settings(OmegaConf.create({"_target_": WANDB, **given}), "cam", tmp_path)[0].get("mode")

    assert (mode(), mode(offline=True), mode(mode="disabled")) == ("online", "offline", "disabled")
    monkeypatch.delenv("WANDB_MODE")
    assert (mode(offline=False), mode(offline=True), mode(mode="online")) == (None, "offline", "online")


def test_wandb_stays_offline_with_a_warning_where_the_server_refuses(wandb_alone, monkeypatch):
    import wandb

    def login(prompt):
        assert prompt is False
        raise wandb.errors.AuthenticationError("no such key")

    monkeypatch.setattr(wandb, "login", login)
    with pytest.warns(UserWarning, match="no such key.*stay offline"):
        assert not wandb_login()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"_target_": CSV, "nonsense": 1}, r"logger: .*CSVLogger.*nonsense"),
        (
            {"a": {"_target_": "no.such.Logger"}},
            r"logger\.a\._target_=no\.such\.Logger: expected",
        ),
        ({"a": {"save_dir": "x"}}, r"expected logger\.a to be a logger's settings.*_target_"),
        ({"a": 3}, r"expected logger\.a to be a logger's settings, got 3"),
        ([{"_target_": CSV}], r"expected logger to be a logger's settings"),
        ({"_target_": CSV, "name": "???"}, r"logger\.name|name has no default"),
        ({"_target_": "math.pi"}, "logger._target_=math.pi: expected an importable class or function"),
        ({"_target_": "ribseg.GAP"}, "no logger of Lightning"),
    ],
)
def test_what_is_no_logger_is_refused_by_its_place(tmp_path, tree, given, message):
    cfg = settings("rib_folder", tmp_path, f"data.root={tree}")
    OmegaConf.set_struct(cfg, False)
    cfg.logger = given
    with pytest.raises(ConfigError, match=message):
        begun(cfg, tmp_path / "out").loggers("classifier")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["logger=csv", "+logger.nonsense=1"], "nonsense"),
        (["+logger.a._target_=own_logger.Absent"], "needs a package"),
    ],
)
def test_a_bad_logger_is_said_before_the_first_stage(tmp_path, tree, own, given, message):
    own.Absent = type("Absent", (own.Own,), {"__init__": needs_a_package})
    with pytest.raises(ConfigError, match=message):
        folder_run(tmp_path, tree, *given)
    assert not (tmp_path / "store").exists() or not any((tmp_path / "store").iterdir())


def test_no_logger_and_names_set_to_null(tmp_path):
    assert logger_settings(None, "cam", tmp_path) == []
    assert logger_settings(OmegaConf.create({"a": None}), "cam", tmp_path) == []


def test_tensorboard_without_its_package_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(loggers, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'ribseg\[tensorboard\]'.*logger=csv"):
        logger_settings(OmegaConf.create({"_target_": TENSORBOARD}), "cam", tmp_path)
    assert logger_settings(OmegaConf.create({"_target_": CSV}), "cam", tmp_path)
