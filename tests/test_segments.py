"""Votes of class-agnostic segments: the rule, their files, and the stage."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from quick_run import begun, folder_run, settings

from ribseg.data.coco.instances import runs_of
from ribseg.data.io.masks import read_mask
from ribseg.errors import ConfigError, DataError, RibsegError
from ribseg.functional import vote_segments
from ribseg.interop import check_segment_file, read_segments
from ribseg.methods import segments as superpixels

codes = pytest.importorskip("pycocotools.mask", reason="pip install 'ribseg[coco]'")


def masks(*rows):
    """(S, 1, W) bool from strings of "#" and "."."""
    return torch.tensor([[[sign == "#" for sign in row]] for row in rows])


def voted(labels, segments, share=0.5):
    return vote_segments(torch.tensor([labels]), segments, share)[0].tolist()


@pytest.mark.parametrize(
    ("labels", "share", "expected"),
    [
        ([1, 1, 0, 0], 0.5, [1, 1, 1, 1]),  # exactly the share
        ([1, 0, 0, 0], 0.5, [0, 0, 0, 0]),
        ([1, 0, 0, 0], 0.25, [1, 1, 1, 1]),
        ([1, 1, 2, 0], 0.6, [1, 1, 2, 0]),  # undecided: neither the share nor mostly background
        ([1, 0, 2, 0], 0.6, [0, 0, 0, 0]),
        ([255, 255, 255, 2], 0.5, [255, 255, 255, 2]),  # unsure pixels count in the size, but do not vote
        ([255, 255, 2, 2], 0.5, [2, 2, 2, 2]),
        ([2, 2, 1, 1], 0.5, [1, 1, 1, 1]),  # of equal classes the first
    ],
)
def test_a_segment_takes_a_class_background_or_nothing(labels, share, expected):
    assert voted(labels, masks("####"), share) == expected
    assert voted(labels, torch.tensor([[7, 7, 7, 7]]), share) == expected


def test_overlaps_by_the_stated_order():
    # A whole object whose part is background in the maps: segments with a class come first.
    assert voted([1, 1, 0, 0], masks("####", "..##")) == [1, 1, 1, 1]
    # Of two classes the higher share: .75 of the second segment, .5 of the first.
    assert voted([1, 1, 1, 2, 2, 2], masks("######", "..####")) == [1, 1, 2, 2, 2, 2]
    # Of equal shares the smaller segment, of equal sizes the earlier.
    assert voted([1, 1, 2, 2], masks("####", ".###")) == [1, 2, 2, 2]
    assert voted([1, 2, 2, 1], masks("###.", ".###"), 0.6) == [2, 2, 2, 2]
    assert voted([1, 1, 0, 2, 2], masks("###..", "..###")) == [1, 1, 1, 2, 2]
    assert voted([1, 1, 0, 2, 2], masks("..###", "###..")) == [1, 1, 2, 2, 2]


def test_a_partition_is_a_case_of_overlapping_segments():
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        labels = torch.randint(0, 4, (6, 7), generator=generator)
        labels[labels == 3] = 255
        numbers = torch.randint(0, 5, (6, 7), generator=generator) * 13_000
        stacked = torch.stack([numbers == n for n in numbers.unique() if n])
        for share in (0.2, 0.5, 1.0):
            partition = vote_segments(labels, numbers, share)
            assert torch.equal(partition, vote_segments(labels, stacked, share))
            assert torch.equal(partition[numbers == 0], labels[numbers == 0])


def test_no_segment_changes_nothing():
    labels = torch.tensor([[0, 2, 255]])
    assert torch.equal(vote_segments(labels, torch.zeros(0, 1, 3, dtype=torch.bool)), labels)
    assert torch.equal(vote_segments(labels, torch.zeros(1, 3, dtype=torch.int64)), labels)


@pytest.mark.parametrize(
    ("labels", "segments", "message"),
    [
        (torch.zeros(2, 3, dtype=torch.int64), torch.ones(3, 2, dtype=torch.int64), "same size"),
        (torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.int64), "expected integer labels"),
        (torch.zeros(2, 3, dtype=torch.int64), torch.ones(1, 2, 3, dtype=torch.int64), "of bool"),
        (torch.zeros(2, 3, dtype=torch.int64), torch.ones(2, 3), "segments of integers"),
        (torch.zeros(2, 3, dtype=torch.int64), -torch.ones(2, 3, dtype=torch.int64), "of at least 0"),
        (torch.full((2, 3), 256), torch.ones(2, 3, dtype=torch.int64), r"labels in 0\.\.255"),
    ],
)
def test_votes_of_what_is_no_segment(labels, segments, message):
    with pytest.raises(ValueError, match=message):
        vote_segments(labels, segments)


@pytest.mark.parametrize("share", [0, 1.1, None, "half"])
def test_shares_out_of_range(share):
    with pytest.raises(ConfigError, match=r"share: expected a number"):
        vote_segments(torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1, dtype=torch.int64), share)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_label_images_are_read_as_they_are(tmp_path, dtype):
    numbers = np.array([[0, 1, 2], [7, 200, np.iinfo(dtype).max]], dtype)
    Image.fromarray(numbers).save(tmp_path / "a.png")
    found = read_segments(tmp_path / "a.png", (2, 3))
    assert found.dtype == torch.int64
    assert found.tolist() == numbers.tolist()


def coded(mask, compressed=True):
    code = codes.encode(np.asfortranarray(mask.astype(np.uint8)))
    size, counts = code["size"], code["counts"].decode()
    return {"size": size, "counts": counts if compressed else runs_of(counts)}


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("wrapped", [True, False])
def test_codes_of_coco_are_read(tmp_path, compressed, wrapped):
    generator = np.random.default_rng(0)
    expected = np.stack([generator.random((9, 40)) < p for p in (0, 0.1, 0.5, 0.9, 1)])
    listed = [{"segmentation": coded(mask, compressed), "area": int(mask.sum())} for mask in expected]
    file = tmp_path / "a.json"
    file.write_text(json.dumps({"image": {"image_id": 1}, "annotations": listed} if wrapped else listed))
    assert np.array_equal(read_segments(file, (9, 40)).numpy(), expected)
    file.write_text("[]")
    assert read_segments(file, (9, 40)).shape == (0, 9, 40)


def mask_of(counts, size=(2, 3)):
    return json.dumps([{"segmentation": {"size": list(size), "counts": counts}}])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[{", "cannot be read as JSON"),
        ("\x00\xff", "cannot be read as JSON"),
        ("{}", "without a list of masks"),
        ("3", "holds int without a list"),
        ('[{"segmentation": [[0, 0, 1, 1, 2, 2]]}]', "mask 0 of .* has no run-length code; expected a list"),
        ('[{"bbox": [0, 0, 1, 1]}]', "mask 0 of .* has no run-length code"),
        (mask_of(None), "has no run-length code"),
        (mask_of([1.5, 4.5]), "has no run-length code"),
        (mask_of([3, 3], (3, 2)), r"3 x 2 pixels .* its image has 2 x 3"),
        (mask_of([1, 2]), "add up to 6 pixels, found 3"),
        (mask_of(""), "add up to 6 pixels, found 0"),
        (mask_of("33"[:1]), "add up to 6 pixels, found 3"),
        (mask_of("T"), "found a broken code"),
        (mask_of("\u00e9"), "found a broken code"),
    ],
)
def test_files_that_hold_no_codes(tmp_path, text, message):
    file = tmp_path / "a.json"
    file.write_bytes(text.encode("latin-1" if "\xff" in text else "utf-8"))
    with pytest.raises(DataError, match=message):
        read_segments(file, (2, 3))


def test_label_images_that_are_none(tmp_path):
    Image.new("RGB", (3, 2)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"PNG of mode RGB; expected a label image"):
        read_segments(tmp_path / "a.png", (2, 3))
    Image.new("L", (3, 2)).save(tmp_path / "b.png")
    with pytest.raises(DataError, match=r"2 x 3 pixels .* its image has 3 x 2"):
        check_segment_file(tmp_path / "b.png", (3, 2))
    (tmp_path / "c.png").write_bytes(b"no image")
    for name in ("c.png", "absent.png", "absent.json"):
        with pytest.raises(DataError, match=name):
            read_segments(tmp_path / name, (2, 3))


@pytest.mark.parametrize("name", superpixels.SUPERPIXELS)
def test_superpixels_follow_edges(name):
    pytest.importorskip("skimage", reason="pip install 'ribseg[superpixels]'")
    image = np.zeros((24, 32, 3), np.uint8)
    image[:, 13:] = 200
    made = {"slic": {"n_segments": 12}, "felzenszwalb": {"sigma": 0, "min_size": 10}}[name]
    found = getattr(superpixels, name)(image, **made)
    assert found.dtype == torch.int64
    assert int(found.min()) >= 1
    assert not set(found[:, :13].unique().tolist()) & set(found[:, 13:].unique().tolist())


def test_superpixels_without_their_package(monkeypatch):
    monkeypatch.setattr("ribseg.methods.segments.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'ribseg\[superpixels\]'"):
        superpixels.slic(np.zeros((4, 4, 3), np.uint8))


RUN = ("run=[classifier,cam,pseudo_masks]", "refine.maps=cam", "refine.variants=[none,segments]")


@pytest.fixture
def segments(tmp_path, tree):
    """Label images with the true object as one segment, the rest as another."""
    folder = tmp_path / "segments"
    folder.mkdir()
    for path in (tree / "SegmentationClass").iterdir():
        inside = np.isin(read_mask(path), (1, 2, 255))
        Image.fromarray(np.where(inside, 60_000, 1).astype(np.uint16)).save(folder / path.name)
    return folder


def test_segments_vote_on_pseudo_masks(tmp_path, tree, segments, stored):
    files = ("refine.segments.source=png", f"refine.segments.folder={segments}")
    results = folder_run(tmp_path, tree, *RUN, *files)
    place = Path(results["store"]["pseudo_masks"])
    for path in (place / "segments").iterdir():
        numbers = np.asarray(Image.open(segments / path.name)).astype(np.int64)
        cut = torch.from_numpy(read_mask(place / "none" / path.name))
        assert read_mask(path).tolist() == vote_segments(cut, torch.from_numpy(numbers)).tolist()
        assert len(np.unique(read_mask(path)[numbers == 1])) == 1
    # The same as run-length codes: another source is another digest, with the same masks.
    for path in segments.iterdir():
        inside = np.asarray(Image.open(path)) > 1
        code = [{"segmentation": coded(inside)}, {"segmentation": coded(~inside)}]
        (tmp_path / f"{path.stem}.json").write_text(json.dumps(code))
    files = ("refine.segments.source=coco", f"refine.segments.folder={tmp_path}")
    again = folder_run(tmp_path, tree, *RUN, *files)
    assert again["store"]["pseudo_masks"] != results["store"]["pseudo_masks"]
    for path in (place / "segments").iterdir():
        other = Path(again["store"]["pseudo_masks"]) / "segments" / path.name
        assert other.read_bytes() == path.read_bytes()


@pytest.mark.usefixtures("undrawn")
def test_superpixels_vote_after_everything_else(tmp_path, tree, stored):
    pytest.importorskip("skimage", reason="pip install 'ribseg[superpixels]'")
    run = (
        *RUN[:2],
        "refine.variants=[crf,crf_segments]",
        "refine.segments.source=slic",
        "refine.segments.slic.n_segments=9",
    )
    results = folder_run(tmp_path, tree, *run, "run=[classifier,cam,pseudo_masks,report]")
    place = Path(results["store"]["pseudo_masks"])
    name = "im_00.png"
    image = np.asarray(Image.open(tree / "JPEGImages" / "im_00.jpg"))
    cut = torch.from_numpy(read_mask(place / "crf" / name))
    expected = vote_segments(cut, superpixels.slic(image, 9))
    assert read_mask(place / "crf_segments" / name).tolist() == expected.tolist()
    assert "+ CRF + segments" in (tmp_path / "out" / "report.html").read_text()


def test_segments_that_cannot_work_end_the_run_before_the_first_stage(tmp_path, tree, segments):
    def refused(message, *overrides, kind=DataError):
        with pytest.raises(kind, match=message):
            folder_run(tmp_path, tree, *RUN, *overrides)
        assert not list((tmp_path / "store").glob("classifier-*"))

    files = ("refine.segments.source=png", f"refine.segments.folder={segments}")
    refused(r"needs refine\.segments\.folder=PATH", files[0], kind=ConfigError)
    refused(r"segments\.source: expected slic", "refine.segments.source=sam", kind=ConfigError)
    refused("(?s)images without any: 10.*json for every", "refine.segments.source=coco", files[1])
    refused(
        "no files in|cannot list",
        files[0],
        f"refine.segments.folder={tmp_path / 'nowhere'}",
        kind=RibsegError,
    )
    shutil.move(segments / "im_03.png", segments / "im_33.png")
    refused(r"(?s)images without any: 1\s+im_03\s+files of no image: 1\s+im_33", *files)
    Image.new("L", (5, 4)).save(segments / "im_03.png")
    refused(r"(?s)files: 1\s+.*im_03\.png holds segments of 4 x 5", *files)


def test_the_folder_counts_by_its_files_and_only_where_segments_are_used(tmp_path, tree, segments):
    def digest(*overrides):
        cfg = settings("rib_folder", tmp_path, f"data.root={tree}", "refine.maps=cam", *overrides)
        stages = {stage.name: stage for stage in begun(cfg, tmp_path / "out").run.stages}
        return {name: stages[name].settings() for name in ("pseudo_masks", "affinity_labels", "random_walk")}

    files = ("refine.segments.source=png", f"refine.segments.folder={segments}")
    used = "refine.variants=[segments]"
    first = digest(used, *files)
    moved = shutil.copytree(segments, tmp_path / "moved")
    assert digest(used, files[0], f"refine.segments.folder={moved}") == first
    (moved / "im_00.png").write_bytes(b"other")
    other = digest(used, files[0], f"refine.segments.folder={moved}")
    assert other["pseudo_masks"] != first["pseudo_masks"]
    assert other["affinity_labels"] == first["affinity_labels"]
    assert other["random_walk"] == first["random_walk"]
    assert digest("refine.variants=[none]", *files) == digest("refine.variants=[none]")


def test_an_image_without_a_label_needs_no_segments(tmp_path, tree, segments):
    """Imported maps may have classes there all the same."""
    labels = tree / "image_labels.csv"
    labels.write_text(labels.read_text().replace("im_09,b", "im_09,"))
    (segments / "im_09.png").unlink()
    run = ("run=[imported,pseudo_masks]", "refine.maps=imported", "imported.layout=masks")
    source = (f"imported.folder={tree / 'SegmentationClass'}", "refine.maps_threshold=0.5")
    files = ("refine.segments.source=png", f"refine.segments.folder={segments}")
    results = folder_run(tmp_path, tree, *run, *source, *files, "refine.variants=[none,segments]")
    place = Path(results["store"]["pseudo_masks"])
    cut, voted = (read_mask(place / variant / "im_09.png") for variant in ("none", "segments"))
    assert cut.max() == 2
    assert (cut == voted).all()
    assert (read_mask(place / "none" / "im_08.png") != read_mask(place / "segments" / "im_08.png")).any()
