"""Labels in the forms of label tools; the files are as the tools wrote them, with other images."""

import json
import shutil

import numpy as np
import pytest

from ribseg.data.io import label_forms
from ribseg.data.io.label_forms import read_labels
from ribseg.data.io.masks import write_mask
from ribseg.data.voc import VOCFolder
from ribseg.errors import ConfigError, DataError, DatasetNotFoundError

IDS, CLASSES = ["im_00", "im_01", "im_02", "im_03"], ["zebra", "dog", "cat"]
EXPECTED = [[0, 1, 0], [1, 0, 1], [0, 0, 0], [0, 0, 1]]
TABLES = {
    # Roboflow: blanks after the commas, an ending; the order of the columns is its own.
    "_classes.csv": "filename, cat, dog, zebra\nim_00.jpg, 0, 1, 0\nim_01.jpg, 1, 0, 1\nim_02.jpg, 0, 0, 0\n"
    "im_03.jpg, 1, 0, 0\n",
    # Label Studio 2.1, CSV; uploads have eight digits before their name.
    "studio.csv": "annotation_id,annotator,choice,created_at,id,image,lead_time,updated_at\n"
    "1,1,dog,2026-11-30,1,/data/upload/1/0a1b2c3d-im_00.jpg,3.1,2026-11-30\n"
    '2,1,"{""choices"": [""zebra"",""cat""]}",2026-11-30,2,/data/upload/1/1a1b2c3d-im_01.jpg,2.0,2026-11-30\n'
    "3,1,,2026-11-30,3,/data/upload/1/2a1b2c3d-im_02.jpg,2.0,2026-11-30\n"
    "4,1,cat,2026-11-30,4,/data/upload/1/3a1b2c3d-im_03.jpg,2.0,2026-11-30\n",
    # Hugging Face's imagefolder: a list in a CSV is the text of one.
    "metadata.csv": "file_name,labels\nim_00.jpg,['dog']\nim_01.jpg,\"['zebra', 'cat']\"\nim_02.jpg,[]\n"
    "im_03.jpg,['cat']\n",
    "metadata.jsonl": '{"file_name": "im_00.jpg", "labels": ["dog"]}\n'
    '{"file_name": "im_01.jpg", "labels": ["cat", "zebra"]}\n{"file_name": "im_02.jpg", "labels": []}\n'
    '{"file_name": "im_03.jpg", "labels": ["cat"]}\n',
    # Label Studio, JSON-MIN.
    "min.json": json.dumps(
        [
            {"image": "/data/upload/1/0a1b2c3d-im_00.jpg", "id": 1, "choice": "dog", "annotator": 1},
            {"image": "/data/local-files/?d=photos/im_01.jpg", "choice": {"choices": ["zebra", "cat"]}},
            {"image": "https://example.org/a/im_02.jpg?size=3", "id": 3},
            {"image": "im_03.jpg", "choice": "cat"},
        ]
    ),
}


def task(name, *annotations):
    return {"id": 1, "data": {"image": f"/data/upload/1/0a1b2c3d-{name}.jpg"}, "annotations": annotations}


def chosen(*names, **more):
    value = {"type": "choices", "value": {"choices": list(names)}, "from_name": "choice"}
    return {"result": [value] if names else [], "was_cancelled": False} | more


TAXONOMY = {"result": [{"type": "taxonomy", "value": {"taxonomy": [["dog"]]}, "from_name": "t"}]}
TWO_CONTROLS = [{"value": {"choices": ["dog"]}, "from_name": name} for name in ("animal", "quality")]
TASKS = [
    task("im_00", chosen("cat", was_cancelled=True), chosen("dog")),
    task("im_01", {"result": [{"value": {"rectanglelabels": [n]}} for n in ("zebra", "cat", "cat")]}),
    task("im_02", chosen()),
    task("im_03", chosen("cat")),
]
COCO = {
    "images": [{"id": n + 7, "file_name": f"train/{i}.jpg"} for n, i in enumerate(IDS)],
    "categories": [{"id": n + 3, "name": name} for n, name in enumerate(reversed(CLASSES))],
    "annotations": [
        {"id": n, "image_id": image, "category_id": category}
        for n, (image, category) in enumerate([(7, 4), (8, 3), (8, 5), (8, 3), (10, 3)])
    ],
}
CVAT = """<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version><meta><task><labels><label><name>dog</name></label></labels></task></meta>
<image id="0" name="im_00.jpg" width="50" height="40"><tag label="dog"></tag></image>
<image id="1" name="sub/im_01.jpg" width="50" height="40">
  <tag label="zebra"></tag><tag label="cat"></tag></image>
<image id="2" name="im_02.jpg" width="50" height="40"></image>
<image id="3" name="im_03.jpg" width="50" height="40">
  <box label="cat" xtl="1" ytl="1" xbr="9" ybr="9"></box></image>
</annotations>"""


@pytest.fixture
def forms(tmp_path):
    """Name -> path of the labels in every form."""
    folder = tmp_path / "forms"
    main = folder / "voc" / "Main"
    main.mkdir(parents=True)
    for name, text in (TABLES | {"tasks.json": json.dumps(TASKS), "coco.json": json.dumps(COCO)}).items():
        (folder / name).write_text(text)
    (folder / "cvat.xml").write_text(CVAT)
    # Datumaro 1.13: imagenet_txt, and voc_classification, where im_02 is in no class's list.
    (folder / "synsets.txt").write_text("zebra\ndog\ncat\n")
    (folder / "train.txt").write_text("im_00.jpg 1\nim_01.jpg 0 2\nim_02.jpg \nim_03.jpg 2\n")
    (main / "zebra_train.txt").write_text("im_00 -1\nim_01  1\nim_03 -1\n")
    (main / "dog_train.txt").write_text("im_00  1\nim_01 -1\nim_03 -1\n")
    (main / "cat_train.txt").write_text("im_00 -1\nim_01  1\nim_03  1\n")
    (main / "train.txt").write_text("\n".join(IDS))
    for place in ("dog/im_00", "zebra/im_01", "cat/im_01", "no_label/im_02", "cat/im_03"):
        path = folder / "classes" / f"{place}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    names = (*TABLES, "tasks.json", "coco.json", "cvat.xml", "train.txt")
    return {name: folder / name for name in names} | {"lists": main, "folders": folder / "classes"}


def test_every_form_has_the_same_labels(forms):
    for name, path in forms.items():
        labels, source = read_labels(path, IDS, CLASSES)
        assert labels.astype(int).tolist() == EXPECTED, name
        assert source.startswith(path.name)


def test_classes_by_name_whatever_their_order(forms):
    for path in forms.values():
        labels, _ = read_labels(path, IDS[::-1], CLASSES[::-1])
        assert labels.astype(int).tolist() == np.array(EXPECTED)[::-1, ::-1].tolist()


def test_one_field_changed_is_an_error_that_names_the_file(forms, tmp_path):
    for name, path in forms.items():
        with pytest.raises(DataError, match=path.name):
            read_labels(path, IDS, ["zebra", "wolf", "cat"])
        if name not in ("lists", "folders"):  # these leave images without any class out
            with pytest.raises(DataError, match="im_99"):
                read_labels(path, [*IDS, "im_99"], CLASSES)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.csv", "filename,kind,tag\nim_00.jpg,dog,cat\n", "kind and tag both can be it"),
        ("a.csv", "filename,label\nim_00.jpg,4\n", "none of label can be it"),
        ("a.csv", "filename,dog,cat\nim_00.jpg,1,0\n", "no column for"),
        ("a.csv", "filename,dog,cat,zebra,wolf\nim_00.jpg,1,0,0,1\n", "no such class as"),
        ("a.csv", "name;class\nim_00;dog\n", "no form of labels"),
        ("a.csv", "filename,label\nim_00.jpg,dog\nim_00.jpg,cat\n", "two rows that differ"),
        ("a.json", json.dumps([task("im_00", chosen("dog"), chosen("cat"))]), "two rows that differ"),
        ("a.json", '{"a": 1}', "no form of labels"),
        ("a.csv", "filename,dog,dog,cat\nim_00.jpg,1,0,0\n", "several columns of one name"),
        ("a.json", json.dumps([task("im_00", TAXONOMY)]), r"no choices and no labels: \['taxonomy'\]"),
        ("a.json", json.dumps([task("im_00", {"result": TWO_CONTROLS})]), "several controls"),
        ("a.json", json.dumps(COCO | {"images": COCO["images"][:1] * 2}), "images of one id"),
        ("a.json", '{"a": ', "cannot be read as labels"),
        ("a.txt", "im_00.jpg 1\n", "no form of labels"),
        ("a.npy", "", "no form of labels"),
        ("a.xml", "<html/>", "no form of labels"),
    ],
)
def test_what_can_be_read_in_two_ways_or_none(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=said):
        read_labels(tmp_path / name, ["im_00"], CLASSES)


def bare(tree):
    """The tree without labels."""
    shutil.rmtree(tree / "Annotations", ignore_errors=True)
    for path in tree.glob("*.csv"):
        path.unlink()
    return tree


def test_auto_takes_the_only_labels_and_says_which(tree):
    bare(tree)
    data = VOCFolder(tree, "train")
    assert data.labels_source == "the ground-truth masks"
    names = [[data.classes[c] for c in np.flatnonzero(row)] for row in data.labels]
    rows = [{"file_name": f"{i}.jpg", "labels": n} for i, n in zip(data.ids, names, strict=True)]
    (tree / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    again = VOCFolder(tree, "train")
    assert (again.labels == data.labels).all()
    assert again.labels_source == f"metadata.jsonl, column 'labels', {len(rows)} images"
    (tree / "Annotations").mkdir()  # as Datumaro leaves one beside class lists
    assert VOCFolder(tree, "train").labels_source == again.labels_source
    (tree / "more.csv").write_text("image,classes\n")
    with pytest.raises(ConfigError, match=r"metadata\.jsonl and in .*more\.csv"):
        VOCFolder(tree, "train")


def test_a_file_is_parsed_once_until_it_changes(forms, monkeypatch):
    parsed = []
    reader = label_forms.READERS[".json"]
    monkeypatch.setitem(label_forms.READERS, ".json", lambda *given: parsed.append(given) or reader(*given))
    path = forms["coco.json"]
    for split in (IDS[:2], IDS[2:]):
        read_labels(path, split, CLASSES)
    assert len(parsed) == 1
    path.write_text(path.read_text() + " ")
    read_labels(path, IDS, CLASSES)
    assert len(parsed) == 2


def test_a_folder_of_xml_files_and_one_beside_the_data(tmp_path, tree, monkeypatch):
    data = VOCFolder(tree, "train", labels="mask")
    folder = tmp_path / "mine" / "xml"
    folder.mkdir(parents=True)
    for image_id, row in zip(data.ids, data.labels, strict=True):
        names = "".join(f"<object><name>{data.classes[c]}</name></object>" for c in np.flatnonzero(row))
        (folder / f"{image_id}.xml").write_text(f"<annotation>{names}</annotation>")
    monkeypatch.chdir(tmp_path)
    again = VOCFolder(tree, "train", labels="mine/xml")
    assert (again.labels == data.labels).all()
    assert again.labels_source == "xml/*.xml"
    with pytest.raises(ConfigError, match="'mine/nowhere' is neither there nor in"):
        VOCFolder(tree, "train", labels="mine/nowhere")


def test_auto_does_not_take_masks_where_something_may_be_meant_as_labels(tree):
    bare(tree)
    (tree / "project.json").write_text('[{"image": "im_00.jpg", "choice": "horse"}]')
    with pytest.raises(DataError, match=r"no labels are read[\s\S]*project\.json[\s\S]*data\.labels=mask"):
        VOCFolder(tree, "train")
    assert VOCFolder(tree, "train", labels="mask").labels.any()
    (tree / "project.json").unlink()
    (tree / "Annotations").mkdir(exist_ok=True)
    (tree / "Annotations" / "im_00.json").write_text("{}")
    with pytest.raises(DataError, match=r"no XML file, but im_00\.json"):
        VOCFolder(tree, "train")


@pytest.mark.parametrize(
    "name",
    [
        "labels.txt",
        "labels.parquet",
        "train/metadata.jsonl",
        "labels/im_00.txt",
        "a.ndjson",
        "x/_classes.csv",
    ],
)
def test_other_places_and_kinds_that_may_be_labels(tree, name):
    path = bare(tree) / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("im_00.jpg b")
    with pytest.raises(DataError, match=r"no labels are read.*[\s\S]*data\.labels=mask"):
        VOCFolder(tree, "train")


def test_an_unreadable_table_beside_readable_labels(tree):
    (tree / "more_labels.csv").write_text("image;classes\nim_00;a\n")
    with pytest.raises(
        DataError, match=r"more_labels\.csv cannot be read.*there are labels in .*image_labels\.csv"
    ):
        VOCFolder(tree, "train")


def test_columns_beside_those_of_the_classes(tmp_path):
    (tmp_path / "a.csv").write_text(
        "filename,width,dog,cat,zebra,split\nim_00.jpg,500,True,False,False,train\n"
    )
    assert read_labels(tmp_path / "a.csv", ["im_00"], CLASSES)[0].tolist() == [[False, True, False]]


def test_different_photographs_of_one_name(tmp_path):
    for number, name in enumerate(("dog", "cat")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "im_00.jpg").write_bytes(bytes([number]))
    with pytest.raises(DataError, match="are different photographs"):
        read_labels(tmp_path, ["im_00"], CLASSES)


def test_converted_to_a_table(forms, tmp_path):
    from ribseg.interop import convert_labels

    for number, name in enumerate(("studio.csv", "tasks.json", "coco.json")):
        convert_labels(forms[name], tmp_path / f"{number}.csv", CLASSES)
        assert read_labels(tmp_path / f"{number}.csv", IDS, CLASSES)[0].astype(int).tolist() == EXPECTED
    (tmp_path / "long.csv").write_text("filename,label\nx.jpg,dog\nx.jpg,cat\n")
    with pytest.raises(DataError, match="two rows that differ"):
        convert_labels(tmp_path / "long.csv", tmp_path / "out.csv", CLASSES)


def test_no_labels_and_no_masks(tree):
    shutil.rmtree(bare(tree) / "SegmentationClass")
    with pytest.raises(DatasetNotFoundError, match=r"looked for XML files.*There are ImageSets, JPEGImages"):
        VOCFolder(tree, "train")


@pytest.mark.parametrize("line", ["im_00  1", "im_00 -1", "im_00 4 5", "im_00 dog"])
def test_a_list_with_labels_is_no_list_of_ids(tree, line):
    (tree / "ImageSets" / "Segmentation" / "cat_train.txt").write_text(f"{line}\n")
    with pytest.raises(DataError, match=r"more than an id[\s\S]*data\.labels"):
        VOCFolder(tree, "cat_train")


def test_labels_of_masks_are_noted(tmp_path, tree):
    from quick_run import folder_run

    write_mask(tree / "SegmentationClass" / "im_00.png", np.ones((4, 4), dtype=np.uint8))
    bare(tree)
    with pytest.raises(DataError):
        folder_run(tmp_path, tree, "run=[check_data]")
    written = json.loads((tmp_path / "out" / "check_data.json").read_text())["data"]
    assert written["labels"] == {"train": "the ground-truth masks", "val": "the ground-truth masks"}
    assert written["notes"][0]["key"] == "labels_from_masks"
