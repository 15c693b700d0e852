"""`-m sweep=NAME`: the jobs of each file in conf/sweep, and that what the command line says comes first."""

import subprocess
import sys

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from quick_run import CONF, TRAIN, begun, train

import ribseg
from ribseg.errors import ConfigError
from ribseg.pipeline import run as runner
from ribseg.pipeline.recipe.configuration import composed
from ribseg.pipeline.sweep import check_swept

# Setting -> its values, as Hydra hands them to the jobs.
JOBS = {
    "pooling": ("pooling", ["gap", "gndrp", "max", "top_k", "log_sum_exp", "generalized_mean"]),
    "steps": ("rib.steps", ["1", "2", "5", "10", "20"]),
    "lr": ("rib.lr", ["2e-06", "4e-06", "8e-06", "1.6e-05", "3.2e-05"]),
    "threshold": ("pooling.threshold", ["0.2", "0.3", "0.4", "0.5", "0.6", "0.8"]),
    "margin": ("rib.margin", ["150", "300", "600", "1000", "2000"]),
    "seeds": ("seed", ["0", "1", "2"]),
}
VOC = ["experiment=rib_voc", "data.root=nowhere"]
PUBLISHED = {
    "rib_voc": {"lr": 8e-6, "threshold": 0.4, "margin": 600},
    "rib_coco": {"threshold": 0.5, "margin": 1000},
}


@pytest.fixture
def jobs(tmp_path, monkeypatch):
    """A function that starts `train.py` and returns the configurations that it would run."""
    seen = []
    monkeypatch.setattr(runner, "run", lambda cfg, output: seen.append(cfg) or {})

    def start(*words):
        places = [f"hydra.run.dir={tmp_path / 'run'}", f"hydra.sweep.dir={tmp_path / 'sweep'}"]
        stopped = train([str(TRAIN), *words, *VOC, *places])
        assert stopped is None, stopped
        return seen

    return start


def values(cfgs, name):
    return [OmegaConf.select(cfg, name) for cfg in cfgs]


def test_every_sweep_is_listed_here():
    assert {path.stem for path in (CONF / "sweep").glob("*.yaml")} == {*JOBS, "optuna"}


def test_a_search_by_optuna_is_better_than_a_grid_of_as_many_jobs(tree, tmp_path):
    """Over threshold and steps, with the maximum between the values of the grid."""
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="needs pip install hydra-optuna-sweeper")
    places = [f"hydra.run.dir={tmp_path / 'run'}", f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    seen = []

    def score(cfg, output):
        seen.append(cfg)
        return {"score": curve(cfg.pooling.threshold, cfg.rib.steps)}

    def curve(threshold, steps):
        return 1 - (threshold - 0.37) ** 2 - ((steps - 6) / 50) ** 2

    words = (
        "-m",
        "sweep=optuna",
        "objective=score",
        "hydra.sweeper.n_trials=15",
        f"data.root={tree}",
        "experiment=rib_voc",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "run", score)
        assert train([str(TRAIN), *words, *places]) is None
    best = OmegaConf.load(tmp_path / "sweep" / "optimization_results.yaml")
    grid = [curve(threshold, steps) for threshold in (0.1, 0.3, 0.5, 0.7, 0.9) for steps in (2, 7, 12)]
    assert len(seen) == len(grid)
    assert best.best_value > max(grid)
    assert seen[0].data.held_out == 0.1
    assert list(seen[0].data.eval_splits) == ["held_out"]


def test_the_command_does_not_import_torch_before_the_cores_are_shared():
    program = "import sys, ribseg.launch; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


def jobs_of(name):
    """The changes of each job that Hydra's sweeper makes of a file."""
    params = composed("config", [*VOC, f"sweep={name}"]).hydra.sweeper.params
    words = OverridesParser.create().parse_overrides([f"{key}={value}" for key, value in params.items()])
    (batch,) = BasicSweeper.split_arguments(words, None)
    return batch


@pytest.mark.parametrize("name", JOBS)
def test_a_sweep_has_the_jobs_that_it_says(name, tmp_path):
    setting, swept = JOBS[name]
    assert jobs_of(name) == [[f"{setting}={value}"] for value in swept]
    if name != "pooling":
        cfg = composed("config", [*VOC, f"sweep={name}", f"{setting}={swept[-1]}"])
        begun(cfg, tmp_path)
        assert f"{OmegaConf.select(cfg, setting):g}" == f"{float(swept[-1]):g}"


@pytest.mark.parametrize("pooling", JOBS["pooling"][1])
def test_the_poolings_of_a_sweep_can_be_set(pooling, tmp_path):
    begun(composed("config", [*VOC, "sweep=pooling", f"pooling={pooling}"]), tmp_path)


@pytest.mark.parametrize("experiment", PUBLISHED)
def test_the_published_values_are_among_those_of_a_sweep(experiment):
    cfg = composed("config", [f"experiment={experiment}", "data.root=nowhere"])
    for name, value in PUBLISHED[experiment].items():
        setting, swept = JOBS[name]
        assert OmegaConf.select(cfg, setting) == value
        assert value in map(float, swept)


def test_sweeps_are_combined_and_the_command_line_replaces_their_values(jobs):
    found = jobs("-m", "sweep=[threshold,seeds]", "pooling.threshold=0.3")
    pairs = list(zip(values(found, "pooling.threshold"), values(found, "seed"), strict=True))
    assert pairs == [(0.3, 0), (0.3, 1), (0.3, 2)]


def test_without_m_a_sweep_is_refused(tmp_path):
    words = [str(TRAIN), *VOC, f"hydra.run.dir={tmp_path / 'run'}"]
    assert "rib.steps, one for each job of a sweep: add -m" in train([*words, "sweep=steps"])
    with pytest.raises(ConfigError, match="add -m"):
        ribseg.train("rib_voc", ["data.root=nowhere", "sweep=steps"])


def test_the_command_of_a_single_job_is_no_sweep(jobs):
    assert values(jobs("sweep=steps", "rib.steps=2"), "rib.steps") == [2]
    check_swept(None, [])
