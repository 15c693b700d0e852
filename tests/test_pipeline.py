"""The chain of stages through Hydra's configurations, on fabricated trees."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import open_dict
from PIL import Image
from quick_run import CONF, begun, chosen, folder_run, settings
from safetensors.torch import load_file

from ribseg.data.io.masks import write_mask
from ribseg.errors import ConfigError, DataError
from ribseg.pipeline.report.sweep_tables import sweep_tables
from ribseg.pipeline.run import gather, run
from ribseg.pipeline.stages import learning_rate
from ribseg.pipeline.sweep import SweepTable, read_job
from ribseg.store.artefact import Store

EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
# Those that need other data have tests of their own: test_bottleneck.py, test_coco.py.
ON_DATA = [name for name in EXPERIMENTS if name not in ("toy_bottleneck", "rib_coco")]


def test_there_are_the_promised_experiments():
    assert {"demo", "rib_voc", "rib_voc_lite", "rib_folder"} <= set(EXPERIMENTS)


@pytest.mark.parametrize("experiment", ON_DATA)
def test_every_experiment_runs_dry(experiment, tmp_path, tree, request):
    figures = None if experiment == "demo" else request.getfixturevalue("undrawn")
    whole = "run=[classifier,cam,rib,controls,refine,segmenter,evaluate,report]"
    # Two threads, as the demo has, wait for each other on a core that another test uses.
    data = (f"data.root={tree}", "data.labels=auto", "prepare=null")
    # An untrained network has maps below zero everywhere, from which GNDRP keeps nothing.
    growth = ("rate_search.growth=1.5", "rate_search.high=100", "pooling=gap")
    growth = growth if experiment == "rib_voc_lite" else ()
    cfg = settings(experiment, tmp_path, *data, whole, *growth)
    results = run(cfg, tmp_path / "out")
    for source in ("cam", "rib", "wrong_class", "feature_norm", "centre_prior", "whole_image"):
        scores = results["localization"][source]
        assert set(scores["split"]) == {"train", "val"}
        assert 0 <= scores["best_miou"] <= 1
        val = scores["split"]["val"]
        assert val["fixed_threshold"] == scores["split"]["train"]["best_threshold"]
        assert val["images"] == 4
    assert results["adaptation"]["images"] == 10
    check_pseudo_masks(results, tree)
    assert 0 <= results["segmenter"]["rib"]["miou"] <= 1
    written = json.loads((tmp_path / "out" / "results.json").read_text())
    assert written["localization"]["rib"] == results["localization"]["rib"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "wrong class *" in page
    assert "data:image/png;base64" in page
    assert "mIoU by number of classes in the image, val" in page
    assert "Coverage of objects by distance from CAM&#39;s peak, val" in page
    assert len(results["localization"]["rib"]["split"]["val"]["coverage"]) == 10
    assert figures or Image.open(tmp_path / "out" / "coverage.png").size[0] > 100
    assert figures or Image.open(tmp_path / "out" / "grid.png").size[0] > 100


def check_pseudo_masks(results, tree):
    """Every variant has a palette PNG of the original size for every image, and its scores."""
    scores = results["pseudo_masks"]
    assert scores["variant"] == "random_walk_crf"
    assert 0 <= scores["miou"] <= 1
    for variant, values in scores["variants"].items():
        assert 0 <= values["threshold"] <= 1
        assert {"miou", "false_positive", "false_negative"} <= set(values["val"])
        for image in (tree / "JPEGImages").iterdir():
            mask = Image.open(Path(results["store"]["pseudo_masks"], variant, f"{image.stem}.png"))
            assert mask.mode == "P"
            assert mask.size == Image.open(image).size
            assert set(np.unique(mask)) <= {0, 1, 2}
    cut = results["localization"]["rib"]["split"]["train"]
    # Cut at the oracle threshold, the masks score what the sweep said.
    assert scores["variants"]["none"]["train"]["miou"] == pytest.approx(cut["best_miou"], abs=1e-6)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_published_settings_are_what_the_specification_says(experiment, tmp_path):
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", [f"experiment={experiment}"])
    assert cfg.name == experiment
    # The dry runs replace some of these; as they stand they must fit together, too.
    cfg.run = [*cfg.run, "refine"]
    assert begun(cfg, tmp_path / "out").run.chosen
    if experiment != "rib_voc":
        return
    assert (cfg.rib.steps, cfg.rib.lr, cfg.rib.references, cfg.rib.margin) == (10, 8e-6, 20, 600)
    assert (cfg.rib.area_limit, cfg.rib.area_threshold, cfg.pooling.threshold) == (0.7, 0.3, 0.4)
    assert (cfg.rib.preset, list(cfg.rib.loss_views), list(cfg.data.scales)) == (
        "official",
        [0, 2, 3],
        [1, 0.5, 1.5, 2],
    )
    assert (cfg.data.crop_size, list(cfg.data.resize_long), cfg.data.batch_size) == (512, [320, 640], 16)
    assert (cfg.classifier.epochs, cfg.classifier.module.lr, cfg.classifier.module.power) == (5, 0.1, 0.9)
    assert cfg.classifier.model.backbone == "resnet50.tv_in1k"


@pytest.mark.usefixtures("stored")
def test_a_second_run_computes_nothing_and_says_the_same(tmp_path, tree):
    first = folder_run(tmp_path, tree)
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "store").rglob("*") if p.is_file()}
    second = folder_run(tmp_path, tree, output="again")
    assert stamps == {p: p.stat().st_mtime_ns for p in (tmp_path / "store").rglob("*") if p.is_file()}
    assert first["localization"] == second["localization"]


def test_a_moved_data_set_is_the_same_data_set(tmp_path, tree):
    first = folder_run(tmp_path, tree, "run=[classifier]")
    shutil.move(tree, tmp_path / "moved")
    second = folder_run(tmp_path, tmp_path / "moved", "run=[classifier]")
    assert first["store"] == second["store"]


@pytest.mark.usefixtures("stored")
def test_a_sweep_over_pooling_trains_one_classifier(tmp_path, tree):
    runs = [
        folder_run(tmp_path, tree, f"pooling.threshold={t}", "rib.lr=1e-3", output=str(i))
        for i, t in enumerate((0.2, 0.6))
    ]
    assert runs[0]["store"]["classifier"] == runs[1]["store"]["classifier"]
    assert runs[0]["store"]["cam"] == runs[1]["store"]["cam"]
    assert runs[0]["store"]["rib"] != runs[1]["store"]["rib"]


def map_bytes(folder):
    return {path.name: path.read_bytes() for path in sorted(Path(folder, "maps").glob("*.npz"))}


@pytest.mark.usefixtures("stored")
def test_an_interrupted_stage_goes_on_to_the_same_bytes(tmp_path, tree):
    rib = Path(folder_run(tmp_path, tree, "rib.lr=1e-2")["store"]["rib"])
    whole = map_bytes(rib)
    assert len(whole) == 10
    # What a kill leaves: no manifest, some maps, a torn record, a temporary file.
    (rib / "manifest.json").unlink()
    for name in sorted(whole)[3:]:
        (rib / "maps" / name).unlink()
    with (rib / "records-0.jsonl").open("a") as file:
        file.write('{"id": "im_0')
    (rib / "maps" / ".im_05.npz.abc.tmp").write_bytes(b"half")
    results = folder_run(tmp_path, tree, "rib.lr=1e-2", "run=[rib]")
    assert map_bytes(rib) == whole
    assert results["adaptation"]["images"] == 10


def test_classifier_training_goes_on_from_the_last_epoch(tmp_path, tree):
    folder = Path(
        folder_run(tmp_path, tree, "run=[classifier]", "classifier.epochs=2")["store"]["classifier"]
    )
    whole = load_file(folder / "classifier.safetensors")
    (folder / "manifest.json").unlink()
    (folder / "classifier.safetensors").unlink()
    folder_run(tmp_path, tree, "run=[classifier]", "classifier.epochs=2")
    again = load_file(folder / "classifier.safetensors")
    assert all(torch.equal(whole[key], again[key]) for key in whole)


def test_the_rate_is_searched_once_and_shared_with_the_control(tmp_path, tree):
    results = folder_run(tmp_path, tree, "rib.lr=auto")
    assert results["adaptation"]["steps_mean"] > 0
    rates = list((tmp_path / "store").glob("rate-*"))
    assert len(rates) == 1
    assert json.loads((rates[0] / "manifest.json").read_text())["facts"]["lr"] == pytest.approx(1e-4)


def save_odd_images(tree):
    """Replaces images by what cameras and scanners leave; masks keep their sizes."""
    images = tree / "JPEGImages"
    names = sorted(path.stem for path in images.glob("*.jpg"))
    for name, mode in zip(names, ("CMYK", "L", "RGBA", "P", "I;16"), strict=False):
        image = Image.open(images / f"{name}.jpg")
        (images / f"{name}.jpg").unlink()
        if mode == "I;16":
            gray = np.asarray(image.convert("L")).astype(np.uint16) * 257
            Image.fromarray(gray).save(images / f"{name}.png")
        else:
            image.convert(mode).save(images / f"{name}.{'jpg' if mode in ('CMYK', 'L') else 'png'}")
    for name, size in ((names[5], (37, 1)), (names[7], (1, 1))):
        Image.new("RGB", size, (90, 20, 10)).save(images / f"{name}.jpg")
        write_mask(tree / "SegmentationClass" / f"{name}.png", np.ones(size[::-1], np.uint8))


def test_images_as_they_come(tmp_path, tree):
    save_odd_images(tree)
    results = folder_run(tmp_path, tree)
    assert results["adaptation"]["images"] == 10
    assert results["adaptation"]["stopped"]["not_finite"] == 0


def test_ids_with_dollar_signs_and_thin_images_in_the_report(tmp_path, tree):
    for path in [*tree.rglob("im_06*")]:
        path.rename(path.with_name(path.name.replace("im_06", "a$b^$c")))
    for path in (tree / "image_labels.csv", tree / "ImageSets/Segmentation/val.txt"):
        path.write_text(path.read_text().replace("im_06", "a$b^$c"))
    Image.new("RGB", (37, 1)).save(tree / "JPEGImages" / "im_08.jpg")
    write_mask(tree / "SegmentationClass" / "im_08.png", np.ones((1, 37), np.uint8))
    folder_run(tmp_path, tree, "run=[classifier,cam,rib,evaluate,report]", "report.examples=4")
    assert (tmp_path / "out" / "grid.png").is_file()


def test_a_single_class_is_a_data_set(tmp_path, tree):
    (tree / "classes.txt").write_text("a\n")
    (tree / "image_labels.csv").write_text("image,classes\n" + "".join(f"im_{i:02d},a\n" for i in range(10)))
    for path in (tree / "SegmentationClass").iterdir():
        mask = np.array(Image.open(path))
        write_mask(path, np.where(mask == 2, 1, mask))
    results = folder_run(tmp_path, tree, "rib.lr=1e-4")
    assert results["localization"]["wrong_class"]["best_miou"] < 1


def test_masks_that_only_ignore_are_refused(tmp_path, tree):
    for path in (tree / "SegmentationClass").iterdir():
        write_mask(path, np.full_like(np.array(Image.open(path)), 255))
    with pytest.raises(DataError, match="255"):
        folder_run(tmp_path, tree)


def test_data_without_any_label_is_refused(tmp_path, tree):
    (tree / "image_labels.csv").write_text("image,classes\n" + "".join(f"im_{i:02d},\n" for i in range(10)))
    with pytest.raises(DataError, match="nothing to learn"):
        folder_run(tmp_path, tree)


def test_masks_of_a_split_that_is_evaluated_later_are_checked_then(tmp_path, tree):
    path = tree / "SegmentationClass" / "im_00.png"
    Image.open(path).convert("RGB").save(path)
    folder_run(tmp_path, tree, "data.eval_splits=[val]", "run=[classifier,cam,evaluate]")
    with pytest.raises(DataError, match="im_00"):
        folder_run(tmp_path, tree, "data.eval_splits=[train,val]")


@pytest.mark.usefixtures("stored")
def test_lost_files_of_the_store_are_made_again(tmp_path, tree):
    store = folder_run(tmp_path, tree)["store"]
    whole = map_bytes(store["rib"])
    (Path(store["rib"]) / "maps" / "im_01.npz").unlink()
    (Path(store["classifier"]) / "classifier.safetensors").unlink()
    folder_run(tmp_path, tree)
    assert map_bytes(store["rib"]) == whole
    assert (Path(store["classifier"]) / "classifier.safetensors").is_file()


@pytest.mark.parametrize("content", [b"", b"junk"])
def test_a_torn_checkpoint_is_passed_over(tmp_path, tree, stored, capsys, content):
    (folder,) = stored.glob("classifier-*")
    (folder / "manifest.json").unlink()
    (folder / "checkpoints" / "last.ckpt").write_bytes(content)
    folder_run(tmp_path, tree, "run=[classifier]")
    assert "starts anew" in capsys.readouterr().out
    assert (folder / "manifest.json").is_file()


def test_a_trainer_that_stops_early_does_not_count_as_done(tmp_path, tree):
    with pytest.raises(ConfigError, match="limit_predict_batches"):
        folder_run(tmp_path, tree, "+trainer.limit_predict_batches=2", "run=[classifier,cam]")
    assert not list((tmp_path / "store").glob("cam-*/manifest.json"))


def test_a_diverged_classifier_is_called_so(tmp_path, tree):
    with pytest.raises(ConfigError, match="diverged"):
        folder_run(tmp_path, tree, "classifier.module.lr=1e30", "classifier.epochs=4", "run=[classifier]")


def test_a_report_of_the_classifier_alone(tmp_path, tree):
    folder_run(tmp_path, tree, "run=[classifier,report]")
    assert (tmp_path / "out" / "report.html").is_file()


def test_images_without_a_class_get_empty_maps(tmp_path, tree):
    rows = (tree / "image_labels.csv").read_text().replace("im_07,b", "im_07,")
    (tree / "image_labels.csv").write_text(rows)
    results = folder_run(tmp_path, tree)
    assert results["adaptation"]["without_class"] == 1
    assert results["localization"]["rib"]["split"]["val"]["images"] == 4


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["run=[clasifier]"], "expected run="),
        (["run=[]"], "nothing"),
        (["run=[rib]"], r"run=\[classifier,rib\]"),
        (["run=[evaluate]"], "nothing to evaluate"),
        (["data.eval_splits=[]"], "leave evaluate out"),
        (["rib.lr=auto", "rib.margin=null", "rib.area_limit=null"], "stop rules"),
        (["data.batch_size=0"], "batch_size"),
        (["run=null"], "nothing"),
        (["trainer.accelerator=gpuu"], "Trainer"),
        (["data.root=???"], r"data\.root=\.\.\."),
    ],
)
def test_settings_that_cannot_work_fail_before_the_training(tmp_path, tree, overrides, message):
    with pytest.raises(ConfigError, match=message):
        folder_run(tmp_path, tree, *overrides)
    assert not list((tmp_path / "store").glob("classifier-*"))


def test_broken_files_fail_before_the_training(tmp_path, tree):
    image = tree / "JPEGImages" / "im_03.jpg"
    image.write_bytes(image.read_bytes()[:300])
    (tree / "SegmentationClass" / "im_08.png").unlink()
    with pytest.raises(DataError) as caught:
        folder_run(tmp_path, tree)
    assert "im_03" in str(caught.value)
    assert "im_08" in str(caught.value)
    assert not list((tmp_path / "store").glob("classifier-*"))


def test_a_store_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"store\.root"):
        Store(tmp_path / "file" / "store")


def test_a_broken_manifest_is_named(tmp_path):
    artefact = Store(tmp_path).artefact("cam", {}, {}, "")
    artefact.folder.mkdir()
    (artefact.folder / "manifest.json").write_text("{")
    with pytest.raises(DataError, match="delete"):
        _ = artefact.facts


def test_digests_follow_settings_inputs_and_data(tmp_path):
    store = Store(tmp_path)
    base = store.artefact("cam", {"a": 1}, {}, "x")
    assert base.folder == store.artefact("cam", {"a": 1}, {}, "x").folder
    other = store.artefact("classifier", {}, {}, "x")
    changed = [
        store.artefact("cam", {"a": 2}, {}, "x"),
        store.artefact("cam", {"a": 1}, {"classifier": other}, "x"),
        store.artefact("cam", {"a": 1}, {}, "y"),
    ]
    assert len({base.digest, *(artefact.digest for artefact in changed)}) == 4


def test_devices_and_loggers_do_not_change_the_digest(tmp_path, tree):
    stores = []
    for overrides in ([], ["logger=csv", "data.num_workers=1", "progress=true"]):
        cfg = settings("rib_folder", tmp_path, f"data.root={tree}", *overrides)
        session = begun(cfg, tmp_path / "out")
        stores.append({stage.name: stage.artefact.digest for stage in session.run.stages[:5]})
    assert stores[0] == stores[1]


def test_run_names(tmp_path):
    cfg = settings("rib_folder", tmp_path)
    assert chosen(cfg, tmp_path, ["methods"]) == ["cam", "rib"]
    assert chosen(cfg, tmp_path, ["controls", "report"]) == ["wrong_class", "feature_norm", "report"]


def test_gather_tells_what_is_there(tmp_path, tree):
    cfg = settings("rib_folder", tmp_path, f"data.root={tree}")
    results = gather(begun(cfg, tmp_path / "out"), {})
    assert results["store"] == {}
    assert "localization" not in results


@pytest.mark.usefixtures("stored")
def test_sweep_table(tmp_path, tree, capsys):
    for number, threshold in enumerate((0.2, 0.6)):
        override = f"pooling.threshold={threshold}"
        folder_run(tmp_path, tree, override, "rib.lr=1e-3", output=f"sweep/{number}")
        hydra = tmp_path / "sweep" / str(number) / ".hydra"
        hydra.mkdir(exist_ok=True)
        (hydra / "overrides.yaml").write_text(f"- experiment=rib_folder\n- {override}\n")
    jobs = [read_job(tmp_path / "sweep" / n) for n in "01"]
    assert len(sweep_tables(jobs)[0].rows) == 2
    cfg = settings("rib_folder", tmp_path, f"data.root={tree}")
    with open_dict(cfg):
        cfg.hydra = {"sweep": {"dir": str(tmp_path / "sweep")}}
    SweepTable().on_multirun_end(cfg)
    printed = capsys.readouterr().out
    assert "pooling.threshold=0.6" in printed
    assert "experiment=" not in printed
    assert len(json.loads((tmp_path / "sweep" / "sweep.json").read_text())) == 2


@pytest.mark.parametrize(
    ("devices", "expected"), [([3], "cuda:3"), ([2, 3], "cuda:2"), (2, "cuda:0"), ("auto", "cuda:0")]
)
def test_the_rate_is_searched_on_the_first_device_of_the_trainer(
    devices, expected, tmp_path, tree, monkeypatch
):
    class Moved:
        def to(self, device):
            found.append(device)
            return self

        def localize(self, *_):
            return None

    def find(adapt, *_):
        adapt(1e-3)
        return SimpleNamespace(lr=1e-3, trials=[])

    found = []
    monkeypatch.setattr(learning_rate, "find_rate", find)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    cfg = settings("rib_folder", tmp_path, f"data.root={tree}", "trainer.accelerator=gpu")
    cfg.trainer.devices = devices
    learning_rate.search(begun(cfg, tmp_path / "out"), lambda lr: Moved())
    assert found == [torch.device(expected)]
