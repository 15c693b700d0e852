"""The toy experiment through its configuration: stages, resuming, results, report, sweeps."""

import json
import re
import shutil
from pathlib import Path

import pytest
from omegaconf import open_dict
from PIL import Image
from quick_run import begun, chosen, settings

from ribseg.errors import ConfigError, DatasetNotFoundError
from ribseg.pipeline.run import reads_data, run
from ribseg.pipeline.sweep import SweepTable
from ribseg.types import REGIONS

ALONE = "run=[bottleneck]"


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    """A folder with a finished run of two seeds in it, and of one; without reports."""
    folder = tmp_path_factory.mktemp("computed")
    return folder, toy_run(folder, ALONE), toy_run(folder, "bottleneck.seeds=1", ALONE, output="one_seed")


@pytest.fixture
def first(computed, tmp_path):
    """The results of a run of two seeds that is in the test's store."""
    shutil.copytree(computed[0] / "store", tmp_path / "store")
    return in_store(tmp_path, computed[1])


@pytest.fixture
def one_seed(computed, tmp_path):
    """The same with one seed."""
    shutil.copytree(computed[0] / "store", tmp_path / "store")
    return in_store(tmp_path, computed[2])


def in_store(folder, results):
    places = {name: str(folder / "store" / Path(place).name) for name, place in results["store"].items()}
    return results | {"store": places}


def toy_run(tmp_path, *overrides, output="out"):
    return run(settings("toy_bottleneck", tmp_path, *overrides), tmp_path / output)


def files(tmp_path):
    return {p: p.stat().st_mtime_ns for p in (tmp_path / "store").rglob("*") if p.is_file()}


@pytest.mark.usefixtures("first")
def test_the_experiment_runs_without_data(tmp_path, capsys):
    results = toy_run(tmp_path, "bottleneck.information_bins=5")
    written = json.loads((tmp_path / "out" / "results.json").read_text())["bottleneck"]
    assert written == results["bottleneck"]
    assert written["seeds"] == 2
    for values in (written["before"], written["after"], written["std"]["before"], written["std"]["after"]):
        assert set(values) == set(REGIONS)
        assert all(len(layers) == 6 for layers in values.values())
        assert all(0 <= value <= 1 for layers in values.values() for value in layers)
    means = [record["before"]["irrelevant"][1] for record in written["by_seed"]]
    assert written["before"]["irrelevant"][1] == pytest.approx(sum(means) / 2)
    assert written["before"]["discriminative"][:5] != written["after"]["discriminative"][:5] or (
        written["before"]["irrelevant"] != written["after"]["irrelevant"]
    )
    assert set(written["by_seed"][0]["network"]["information_bits"]) == {
        "pooled_features",
        "logits",
        "activations",
    }
    page = (tmp_path / "out" / "report.html").read_text()
    assert "data:image/png;base64" in page
    assert "<caption>High gradient ratio, mean ± std, seeds: 2</caption>" in page
    assert Image.open(tmp_path / "out" / "bottleneck.png").size[0] > 300
    printed = capsys.readouterr().out
    assert "High gradient ratio" in printed
    assert re.search(r"after\s+│ mark", printed)


def test_nothing_is_computed_twice_and_a_sweep_trains_once(tmp_path, first):
    stamps = files(tmp_path)
    second = toy_run(tmp_path, ALONE, output="again")
    assert stamps == files(tmp_path)
    assert first["bottleneck"] == second["bottleneck"]
    swept = toy_run(tmp_path, "pooling.threshold=0.1", "bottleneck.rib.lr=1e-3", ALONE)
    assert swept["store"]["toy_networks"] == first["store"]["toy_networks"]
    assert swept["store"]["bottleneck"] != first["store"]["bottleneck"]


def test_a_killed_run_goes_on_to_the_same_result(tmp_path, first):
    networks, measured = (Path(first["store"][name]) for name in ("toy_networks", "bottleneck"))
    weights = networks / "seed-0" / "network.pt"
    kept = weights.stat().st_mtime_ns
    for path in (
        networks / "manifest.json",
        networks / "seed-1" / "network.pt",
        measured / "manifest.json",
        measured / "bottleneck.json",
        measured / "examples.npz",
        measured / "seed-1.json",
    ):
        path.unlink()
    assert toy_run(tmp_path, ALONE)["bottleneck"] == first["bottleneck"]
    assert weights.stat().st_mtime_ns == kept


@pytest.mark.nightly
def test_two_processes_give_the_same(tmp_path, first):
    second = toy_run(tmp_path / "two", "engine.processes=2", "progress=true")
    assert first["bottleneck"] == second["bottleneck"]
    assert Path(first["store"]["bottleneck"]).name == Path(second["store"]["bottleneck"]).name


def test_lost_files_are_made_again(tmp_path, one_seed):
    lost = Path(one_seed["store"]["bottleneck"]) / "examples.npz"
    lost.unlink()
    assert toy_run(tmp_path, "bottleneck.seeds=1", ALONE)["bottleneck"] == one_seed["bottleneck"]
    assert lost.is_file()


def test_the_wrong_class_is_adapted_as_a_control(tmp_path, one_seed):
    right = one_seed["bottleneck"]
    changed = ("bottleneck.seeds=1", "bottleneck.wrong_class=true")
    wrong = toy_run(tmp_path, *changed, ALONE)["bottleneck"]
    # The layers before the class prediction do not know of classes; it does.
    assert wrong["before"]["irrelevant"][:5] == right["before"]["irrelevant"][:5]
    assert wrong["before"]["irrelevant"][5] != right["before"]["irrelevant"][5]


@pytest.mark.usefixtures("first")
def test_no_stage_on_data_is_planned(tmp_path):
    cfg = settings("toy_bottleneck", tmp_path)
    for names in (["bottleneck"], ["toy_networks", "bottleneck"]):
        assert chosen(cfg, tmp_path, names) == ["toy_networks", "bottleneck"]
    for names, needs in (
        (["bottleneck", "report"], False),
        (["report"], True),
        (["bottleneck", "cam"], True),
    ):
        cfg.run = names
        assert reads_data(begun(cfg, tmp_path / "out")) == needs
    results = toy_run(tmp_path, ALONE)
    assert set(results["store"]) == {"toy_networks", "bottleneck"}
    assert not (tmp_path / "out" / "report.html").exists()


@pytest.mark.usefixtures("undrawn")
def test_a_diverged_training_is_counted_and_not_averaged(tmp_path):
    overrides = ["bottleneck.training.loss=rib", "bottleneck.training.activation=none"]
    result = toy_run(tmp_path, *overrides, "bottleneck.training.lr=1e30", "bottleneck.training.epochs=3")
    assert result["bottleneck"]["diverged"] == 2
    assert result["bottleneck"]["before"]["discriminative"] == [None] * 6
    assert result["bottleneck"]["accuracy"] is None


@pytest.mark.parametrize("loss", ["rib", "rib_signed", "squared_error"])
def test_losses_without_a_final_activation(tmp_path, loss):
    overrides = [f"bottleneck.training.loss={loss}", "bottleneck.training.activation=none"]
    result = toy_run(tmp_path, *overrides, "bottleneck.seeds=1", ALONE)
    assert result["bottleneck"]["diverged"] == 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["bottleneck.training.activation=tanh"], "squared_error takes any"),
        (["bottleneck.training.loss=hinge"], "rib_signed"),
        (["bottleneck.activation=gelu"], "softsign"),
        (["bottleneck.split=all"], "val"),
        (["bottleneck.final=softmax"], "logit"),
        (["bottleneck.seeds=0", "bottleneck.marked=2"], r"(?s)seeds.*marked"),
        (["bottleneck.gradient.normalise=mean"], "normalise"),
        (["bottleneck.gradient.sigma=-1"], "sigma"),
        (["bottleneck.rib.preset=mine"], "preset"),
        (["pooling.threshold=3"], "threshold"),
    ],
)
def test_settings_that_cannot_work_are_said_at_once(tmp_path, overrides, message):
    with pytest.raises(ConfigError, match=message):
        toy_run(tmp_path, *overrides)
    assert not list((tmp_path / "store").glob("toy_networks-*"))


def test_mnist_that_is_not_there(tmp_path):
    with pytest.raises(DatasetNotFoundError, match="MNIST/raw"):
        toy_run(tmp_path, f"bottleneck.mnist_root={tmp_path}")


@pytest.mark.usefixtures("one_seed")
def test_sweep_table_of_ratios(tmp_path, capsys):
    for index, activation in enumerate(("none", "sigmoid")):
        override = f"bottleneck.activation={activation}"
        toy_run(tmp_path, override, "bottleneck.seeds=1", ALONE, output=f"sweep/{index}")
        hydra = tmp_path / "sweep" / str(index) / ".hydra"
        hydra.mkdir(exist_ok=True)
        (hydra / "overrides.yaml").write_text(f"- experiment=toy_bottleneck\n- {override}\n")
    cfg = settings("toy_bottleneck", tmp_path)
    with open_dict(cfg):
        cfg.hydra = {"sweep": {"dir": str(tmp_path / "sweep")}}
    capsys.readouterr()
    SweepTable().on_multirun_end(cfg)
    printed = capsys.readouterr().out
    assert "bottleneck.activation=sigmoid" in printed
    assert "Accuracy, share" in printed
    assert "experiment=" not in printed


def test_every_seed_logs_for_itself(tmp_path):
    toy_run(tmp_path, "logger=csv", ALONE)
    written = sorted(path.parent.name for path in (tmp_path / "out" / "logs").rglob("metrics.csv"))
    assert [name for name in written if name.startswith("toy")] == ["toy_networks-0", "toy_networks-1"]
