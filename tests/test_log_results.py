"""What loggers get at the end of a run: the files of W&B and TensorBoard are read back."""

import csv
import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from pytorch_lightning.loggers import CSVLogger
from quick_run import folder_run, make_learnable_tree, settings, without_wandb_settings
from test_loggers import OWN

from ribseg.data.io.masks import read_mask
from ribseg.pipeline.report.log_results import Loggable, log_results, steps, strip
from ribseg.pipeline.report.pictures import Example
from ribseg.pipeline.report.records import records_of
from ribseg.pipeline.report.tables import file_tables

CHAIN = "run=[classifier,cam,rib,pseudo_masks,segmenter,evaluate,report]"
LIGHT = ("refine.variants=[none]", "segmenter.sources=[rib]", "report.examples=2")
CURVE = {
    "thresholds": [0.0, 0.5, 1.0],
    "miou": [0.1, 0.4, 0.2],
    "precision": [0.2, 0.5, None],
    "recall": [0.9, 0.6, 0.0],
}


GIVEN = """
    def log_image(self, key, images, caption=()):
        seen.append(("image", key, len(images), list(caption)))

    def log_table(self, key, columns=None, data=None):
        seen.append(("table", key, columns, data))

    def log_file(self, path):
        raise ConnectionError("the server is [gone]")
"""


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """Folder and results of a run with the loggers of W&B, TensorBoard, CSV files, and one of the user's."""
    folder = tmp_path_factory.mktemp("logged")
    (folder / "own_results_logger.py").write_text(OWN + GIVEN)
    tree, own = make_learnable_tree(folder / "tree"), "+logger.mine._target_=own_results_logger.Own"
    with pytest.MonkeyPatch.context() as patch, without_wandb_settings(folder):
        patch.syspath_prepend(str(folder))
        return folder, folder_run(folder, tree, "logger=many", own, CHAIN, *LIGHT)


def records(folder):
    """The records of an offline run of W&B, read from its file, whose end is written a moment later."""
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = folder.glob("*.wandb")
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        found = [Record.FromString(data) for data in pieces(path.read_bytes())]
        if any(record.WhichOneof("record_type") == "exit" for record in found):
            return found
        time.sleep(0.1)
    raise AssertionError(f"{path} has no end")


def pieces(data, block=32768, header=7):
    """The byte strings in a file of LevelDB's log format, which begins with W&B's own header."""
    place, collected = header, b""
    assert data[:4] == b":W&B"
    while place + header <= len(data):
        if block - place % block < header:  # too short for another one: filled with zeros
            place += block - place % block
            continue
        size, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        collected += data[place + header : place + header + size]
        place += header + size
        if kind in (1, 4):  # whole, or the last part
            yield collected
            collected = b""


def history_of(found):
    """Key -> last value; of media, a dictionary."""
    values = {}
    for record in found:
        for item in record.history.item:
            key, *inner = [item.key] if item.key else item.nested_key
            value = json.loads(item.value_json)
            if inner:
                values.setdefault(key, {})[inner[0]] = value
            else:
                values[key] = value
    return values


def wandb_runs(out):
    """Job type -> (folder, records) of the offline runs."""
    runs = {}
    for folder in out.glob("wandb/offline-run-*"):
        found = records(folder)
        (begun,) = [record.run for record in found if record.WhichOneof("record_type") == "run"][:1]
        runs[begun.job_type] = (begun, folder, found)
    return runs


def test_wandb_offline_holds_images_with_masks_tables_curves_and_the_report(logged):
    place, results = logged
    runs = wandb_runs(place / "out")
    assert {"classifier", "segmenter_rib", "results"} == set(runs)  # predictions log nothing
    assert len({begun.run_group for begun, *_ in runs.values()}) == 1
    _, folder, found = runs["results"]
    history = history_of(found)
    best = results["localization"]["rib"]["best_miou"]
    assert history["localization/rib/best_miou"] == pytest.approx(best)
    for split in ("train", "val"):
        shown = history[f"examples/{split}"]
        assert (shown["_type"], shown["count"]) == ("images/separated", 2)
        names = set(shown["all_masks"][0])
        assert "ground truth" in names
        assert {"CAM", "RIB", "pseudo mask (none)"} <= names
        assert "RIB at 0." in shown["captions"][0] or "RIB at 1." in shown["captions"][0]
    assert "segmenter (rib)" in history["examples/val"]["all_masks"][0]
    truth = Image.open(folder / "files" / history["examples/val"]["all_masks"][0]["ground truth"]["path"])
    first = read_mask(place / "tree" / "SegmentationClass" / "im_06.png")  # of val
    assert np.array_equal(np.asarray(truth)[: first.shape[0], : first.shape[1]], first)
    table = json.loads((folder / "files" / history["iou/localization/val"]["path"]).read_text())
    assert table["columns"][:2] == ["class", "CAM"]
    assert [row[0] for row in table["data"]] == ["background", "a", "b"]
    assert "curves/val" in history
    assert "curves/val/miou_table" in history
    (artifact,) = [
        r.artifact for r in found if r.WhichOneof("record_type") == "artifact" and r.artifact.type == "report"
    ]
    kept = {entry.path for entry in artifact.manifest.contents}
    if not kept:  # newer versions keep the list in a file
        kept = set(json.loads(Path(artifact.manifest.manifest_file_path).read_text()))
    assert {"results.json", "report.html", "log.txt", "tables/iou_localization_val.csv"} <= kept
    summary = {i.key or "/".join(i.nested_key): i.value_json for r in found for i in r.summary.update}
    assert json.loads(summary["localization/rib/best_miou"]) == pytest.approx(best)


def test_many_loggers_and_wandb_offline_without_a_key(logged):
    out = logged[0] / "out"
    for stage in ("classifier", "results"):
        assert (out / "logs" / stage / "metrics.csv").is_file()
        assert list((out / "logs" / stage).glob("events*"))
    stages = {path.name for path in (out / "logs").iterdir()}
    assert (
        len(list(out.glob("wandb/offline-run-*"))) == len(stages) == 3
    )  # a run per training, and one of the results


def test_tensorboard_holds_images_tables_and_curves(logged):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    place, results = logged
    events = EventAccumulator(str(place / "out/logs/results"), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    tags = events.Tags()
    assert sum(tag.startswith("examples/val/") for tag in tags["images"]) == 2
    image = events.Images(next(tag for tag in tags["images"] if tag.startswith("examples/val/")))[0]
    assert image.width > 2 * 24  # the masks are beside the image
    curve = events.Scalars("curves/val/miou/CAM")
    expected = results["localization"]["cam"]["split"]["val"]["curve"]
    steps = [round(100 * threshold) for threshold in expected["thresholds"]]
    assert [one.step for one in curve] == steps
    assert [one.value for one in curve] == pytest.approx(expected["miou"], abs=1e-5)
    assert "localization/cam/best_miou" in tags["scalars"]
    text = events.Tensors("iou/localization/val/text_summary")[0].tensor_proto.string_val[0].decode()
    assert text.startswith("| class | CAM |")


def test_every_run_has_its_tables_as_csv(logged):
    place, results = logged
    with (place / "out/tables/iou_localization_val.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == ["background", "a", "b"]
    values = results["localization"]["cam"]["split"]["val"]["iou_at_fixed"]
    assert [float(row["CAM"]) for row in rows] == pytest.approx(values)
    with (place / "out/tables/curves_val.csv").open() as file:
        rows = list(csv.DictReader(file))
    curve = results["localization"]["cam"]["split"]["val"]["curve"]
    rows = [row for row in rows if row["maps"] == "CAM"]
    for name, column in (("thresholds", "threshold"), ("miou", "miou"), ("precision", "precision")):
        assert [float(row[column]) for row in rows] == pytest.approx(curve[name])


def test_a_logger_of_the_users_own_takes_part_by_its_methods(logged):
    seen = sys.modules["own_results_logger"].seen
    images = {one[1]: one for one in seen if one[0] == "image"}
    assert images["examples/val"][2] == 2
    assert "ground truth" in images["examples/val"][3][0]
    tables = {one[1]: one for one in seen if one[0] == "table"}
    assert tables["iou/localization/val"][2][0] == "class"
    said = " ".join((logged[0] / "out" / "log.txt").read_text().split())
    assert (
        "warning: Own did not take the files: ConnectionError: the server is [gone]. Nothing is lost" in said
    )


def test_a_logger_that_fails_ends_nothing(tmp_path, tree, capsys):
    class Broken(CSVLogger):
        @property
        def experiment(self):
            raise OSError("no network")

    from quick_run import begun

    context = begun(settings("rib_folder", tmp_path, f"data.root={tree}"), tmp_path / "out")
    context.result_loggers = [Broken(tmp_path)]
    log_results(context, {"bottleneck": {"saturation": 0.5}})
    assert "did not take the numbers: OSError: no network" in " ".join(capsys.readouterr().out.split())


def test_a_plain_logger_gets_the_numbers_alone(tmp_path):
    context = SimpleNamespace(cfg=SimpleNamespace(name="x"))
    assert [what for what, _ in steps(CSVLogger(tmp_path), Loggable(context, {}))] == ["numbers", "end"]


def test_tables_and_curves_of_results_made_by_hand():
    values = {"iou": [0.9, 0.1], "iou_at_fixed": None, "curve": CURVE}
    results = {
        "localization": {"rib": {"label": "RIB", "split": {"val": values}}},
        "pseudo_masks": {"variants": {"crf": {"val": {"iou": [0.8, None]}, "threshold": 0.3}}},
        "segmenter": {"rib": {"split": {"val": {"iou": [0.7, 0.2]}}}},
    }
    tables = file_tables(records_of(results, ["cat"]))
    assert tables["iou/localization/val"].rows == [["background", 0.9], ["cat", 0.1]]
    assert tables["iou/pseudo_masks/val"].columns == ["class", "crf"]
    assert tables["iou/segmenter/val"].rows[1] == ["cat", 0.2]
    assert tables["curves/val"].columns == ["maps", "threshold", "miou", "precision", "recall"]
    assert tables["curves/val"].rows[2] == ["RIB", 1.0, 0.2, None, 0.0]
    data = SimpleNamespace(classes=("cat",))
    things = Loggable(SimpleNamespace(cfg=SimpleNamespace(name="x"), data=data), results)
    assert list(things.curves) == ["val/miou", "val/precision", "val/recall"]
    (curve,) = things.curves["val/precision"].values()
    assert [one.threshold for one in curve] == CURVE["thresholds"]
    assert [one.value for one in curve] == CURVE["precision"]


def test_a_strip_shows_the_masks_over_the_image():
    image, mask = np.full((2, 3, 3), 100, np.uint8), np.array([[0, 1, 255], [0, 0, 0]], np.uint8)
    palette = np.zeros((256, 3), np.uint8)
    palette[1] = 200
    shown = strip(Example("a", image, {"ground truth": mask}, {}), palette)
    assert shown.shape == (2, 6, 3)
    assert shown[0, 3:, 0].tolist() == [100, 160, 100]
