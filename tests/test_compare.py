"""`ribseg report`: the comparison of runs, against results computed here."""

import csv
import json
import shutil

import numpy as np
import pytest
from quick_run import arguments, folder_run, make_learnable_tree, train

from ribseg.cli import main
from ribseg.data.io.masks import read_mask, write_mask
from ribseg.errors import ConfigError, DataError
from ribseg.metrics import bootstrap_miou, interval
from ribseg.pipeline.plan import reopened
from ribseg.pipeline.report.compare import Comparison, sentences
from ribseg.pipeline.report.compare_page import comparison_tables, map_tables, result_tables
from ribseg.pipeline.report.compare_sweep import sweep_section, swept_numbers, swept_scores
from ribseg.pipeline.report.finished import differing_settings, open_runs, run_names
from ribseg.pipeline.report.table import TableData
from ribseg.pipeline.report.table_files import latex, latex_cell

RUN = "run=[classifier,cam,rib,evaluate]"
SWEEP = ("rib.lr=0.01,0.001", "seed=0,1", "rib.steps=3", "-m")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """The folder of a finished sweep over learning rates and seeds."""
    folder = tmp_path_factory.mktemp("compared")
    make_learnable_tree(folder / "tree", 12)
    assert train(arguments(folder, folder / "tree", RUN, *SWEEP)) is None
    return folder / "sweep"


@pytest.fixture(scope="module")
def runs(sweep):
    return open_runs([sweep])


@pytest.fixture(scope="module")
def comparison(runs):
    return Comparison(runs, 200)


@pytest.fixture(scope="module")
def written(sweep, tmp_path_factory):
    """The folder of a comparison of two jobs."""
    folder = tmp_path_factory.mktemp("written") / "new" / "comparison"
    main(["report", str(sweep / "0"), str(sweep / "2"), "--out", str(folder), "--resamples", "100"])
    return folder


@pytest.fixture(scope="module")
def whole(sweep):
    """The folder of the sweep, with a comparison of all its jobs."""
    main(["report", str(sweep), "--resamples", "200"])
    return sweep


def test_runs_are_named_by_what_differs(sweep, runs):
    names = ["lr=0.01 seed=0", "lr=0.01 seed=1", "lr=0.001 seed=0", "lr=0.001 seed=1"]
    assert [one.name for one in runs] == names
    assert differing_settings(runs) == {
        "seed": ["0", "1", "0", "1"],
        "rib.lr": ["0.01", "0.01", "0.001", "0.001"],
    }
    assert [one.name for one in open_runs([sweep / "0", sweep / "2"])] == ["lr=0.01", "lr=0.001"]
    assert [one.name for one in open_runs([sweep / "0", sweep / "2"], ["a", "b"])] == ["a", "b"]


def test_names_are_paths_where_overrides_do_not_tell(tmp_path):
    assert run_names([tmp_path / "x" / "one", tmp_path / "x" / "two" / "0"]) == ["one", "two/0"]
    assert run_names([tmp_path / "one"]) == ["one"]


def test_scores_are_those_of_the_runs(runs, comparison):
    for split, rows in comparison.rows.items():
        for row in rows:
            for one in row.maps.runs:
                scores = one.results["localization"][row.maps.source]["split"][split]
                assert row.miou == pytest.approx(scores["miou_at_fixed"], abs=1e-12)
                assert row.threshold == scores["fixed_threshold"]


def test_published_numbers_stand_beside_those_of_a_sweep(runs, comparison, monkeypatch):
    assert len(map_tables(comparison)["differences_train"].columns) == 6
    for one in (runs[0], runs[2]):
        monkeypatch.setitem(one.results["localization"]["rib"]["split"]["train"], "published", 0.565)
    table = map_tables(comparison)["differences_train"]
    assert table.columns[-1] == "published best"
    published, maps = [row[-1] for row in table.rows], [row.maps for row in comparison.rows["train"]]
    named = [one.source == "rib" and one.runs[0] in (runs[0], runs[2]) for one in maps]
    assert published == ["56.5" if there else "-" for there in named]
    assert sum(named) == 2


def test_differences_are_paired_over_images(runs, comparison):
    rows = {row.maps.name: row for row in comparison.rows["train"]}
    first, other = rows["rib/lr=0.01 seed=0"], rows["rib/lr=0.001 seed=0"]
    assert first.difference is None
    draws = [
        bootstrap_miou(one.counts["train"].of("rib", comparison.images["train"]), 200)
        for one in (runs[0], runs[2])
    ]
    assert other.difference.to is first.maps
    assert other.difference.value == pytest.approx(other.miou - first.miou)
    assert other.difference.bounds == interval(draws[1] - draws[0])
    number = sum(row.difference is not None for row in rows.values())
    assert other.difference.joint_bounds == interval(draws[1] - draws[0], 1 - 0.05 / number)
    low, high = other.difference.joint_bounds
    assert low <= other.difference.bounds[0] <= other.difference.bounds[1] <= high


def test_maps_that_runs_share_are_listed_once(comparison):
    labels = [maps.label for maps in comparison.maps if maps.source == "cam"]
    # The seed trains another classifier, the rate of RIB does not.
    assert labels == ["CAM, lr=0.01 seed=0 = lr=0.001 seed=0", "CAM, lr=0.01 seed=1 = lr=0.001 seed=1"]
    assert sum(maps.source == "rib" for maps in comparison.maps) == 4
    two = Comparison([comparison.runs[0], comparison.runs[2]], 10)
    assert [maps.label for maps in two.maps if maps.source == "cam"] == ["CAM"]


def score_of(one):
    return one.results["localization"]["rib"]["split"]["val"]["miou_at_fixed"]


def test_mean_and_deviation_over_seeds(comparison):
    assert list(comparison.repetitions) == ["lr=0.01", "lr=0.001"]
    (table,) = (t for t in comparison_tables(comparison) if t.title == "Over seeds, val, percent")
    (row,) = (row for row in table.rows if row[:2] == ["lr=0.001", "RIB"])
    found = [100 * score_of(one) for one in comparison.runs[2:]]
    assert row[2:] == ["2", f"{np.mean(found):.1f}", f"{abs(found[0] - found[1]) / 2**0.5:.1f}"]


def test_the_answer_names_the_difference_and_its_interval(comparison):
    two = Comparison([comparison.runs[0], comparison.runs[2]], 50)
    (text,) = sentences(two)
    row = next(row for row in two.rows["val"] if row.difference and row.maps.source == "rib")
    low, high = row.difference.bounds
    assert text.startswith("RIB, lr=0.01 seed=0: ")
    assert f"{100 * row.difference.value:+.1f}, 95 % interval [{100 * low:+.1f}, {100 * high:+.1f}]" in text
    assert ("no difference is shown" in text) == (low <= 0 <= high)
    assert "the best of 3 others" in sentences(comparison)[1]
    same = Comparison(comparison.runs[:1] * 2, 10)
    assert sentences(same) == ["All runs have the same maps on val."]


def test_the_files_of_a_comparison(written, capsys):
    values = json.loads((written / "comparison.json").read_text())
    assert list(values["runs"]) == ["lr=0.01", "lr=0.001"]
    assert values["settings"] == {"rib.lr": {"lr=0.01": "0.01", "lr=0.001": "0.001"}}
    rows = values["split"]["val"]["maps"]
    assert [row["runs"] for row in rows if row["source"] == "rib"] == [["lr=0.01"], ["lr=0.001"]]
    found = [row["difference"] for row in rows if row["source"] == "rib"]
    assert found[0] is None
    assert found[1]["to"] == "lr=0.01"
    page = (written / "comparison.html").read_text()
    assert "Settings that differ" in page
    assert page.count('id="picture-') == 12
    assert (written / "curves.png").is_file()


def test_tables_are_files_for_spreadsheets_and_for_latex(whole, comparison):
    files = {path.name for path in (whole / "tables").iterdir()}
    splits = ("train", "val")
    names = [f"{kind}_{split}" for kind in ("differences", "seeds") for split in splits]
    names += [f"results_localization_maps_on_{split}_miou_in_percent" for split in splits]
    assert files == {f"{name}.{ending}" for name in names for ending in ("csv", "tex")}
    expected = [*comparison_tables(comparison), *result_tables(comparison)]
    for name, table in zip(names, expected, strict=True):
        columns, *rows = csv.reader((whole / "tables" / f"{name}.csv").open())
        assert columns == [column.replace("\n", " ") for column in table.columns]
        assert rows == [list(row) for row in table.rows]
        lines = (whole / "tables" / f"{name}.tex").read_text().splitlines()
        assert sum(line.endswith(r" \\") for line in lines) == 1 + len(rows)
        assert lines[0] == f"% {table.title}"
        assert lines[-1] == r"\end{tabular}"


def test_latex_is_escaped():
    assert latex_cell("rib_lr & 10 % #1 {a} ~ ^ \\ <b>") == (
        r"rib\_lr \& 10 \% \#1 \{a\} \textasciitilde{} \textasciicircum{} \textbackslash{} "
        r"\textless{}b\textgreater{}"
    )
    assert latex_cell("[-1.5, +0.2]") == "{}[$-$1.5, +0.2]"  # no argument of the line break above
    assert latex_cell("lr=1e-05 2020-01 -") == "lr=1e-05 2020-01 -"
    assert latex_cell("RIB\nbest") == "RIB best"
    table = TableData("T", ["maps", "source", "mIoU"], [["a", "b", "1"]], "one\ntwo", text=["source"])
    assert latex(table).splitlines() == [
        "% T", "% one", "% two", r"% \usepackage{booktabs}", r"\begin{tabular}{llr}", r"\toprule",
        r"maps & source & mIoU \\", r"\midrule", r"a & b & 1 \\", r"\bottomrule", r"\end{tabular}",
    ]  # fmt: skip


def test_a_swept_number_has_a_figure(whole, runs, comparison):
    assert swept_numbers(comparison) == {"rib.lr": [0.01, 0.01, 0.001, 0.001]}
    scores = swept_scores(comparison, "val", swept_numbers(comparison))
    assert list(scores) == ["CAM", "RIB"]  # no controls
    found = list(map(score_of, runs))
    assert scores["RIB"] == {(0.01,): pytest.approx(found[:2]), (0.001,): pytest.approx(found[2:])}
    assert scores["CAM"][(0.01,)] == scores["CAM"][(0.001,)]  # from the same classifiers
    assert (whole / "sweep.png").is_file()
    assert "mIoU on val over rib.lr; means and standard" in (whole / "comparison.html").read_text()


@pytest.mark.parametrize(
    ("settings", "title"),
    [
        ({"rib.lr": [1, 1, 2, 2], "rib.steps": [1, 2, 1, 2]}, "mIoU on val over rib.lr and rib.steps"),
        ({"seed": [0, 1, 2, 3], "rib.steps": [1, 2, 3, 4]}, "mIoU on val over rib.steps"),
        ({"seed": [0, 1, 2, 3]}, None),
        ({"rib.lr": [1, 1, 2, "auto"]}, None),
        ({"rib.lr": [1, 2, 3, 4], "pooling._target_": "abcd"}, None),
        ({"a": [1, 2, 3, 4], "b": [1, 2, 3, 4], "c": [1, 2, 3, 4]}, None),
    ],
)
def test_which_settings_have_a_figure(tmp_path, runs, settings, title):
    some = Comparison(runs, 10)
    vars(some)["settings"] = {name: list(map(str, values)) for name, values in settings.items()}
    sections = list(sweep_section(reopened(runs[0], tmp_path), some))
    assert [section.figures[0].title.partition(";")[0] for section in sections] == ([title] if title else [])
    assert (tmp_path / "sweep.png").is_file() == bool(title)


def test_runs_on_different_images_are_compared_on_the_common_ones(tmp_path, sweep, runs):
    tree = tmp_path / "tree"
    shutil.copytree(sweep.parent / "tree", tree)
    lists = tree / "ImageSets" / "Segmentation" / "val.txt"
    kept = lists.read_text().split()[1:]
    lists.write_text("\n".join(kept))
    folder_run(tmp_path, tree, RUN, "rib.lr=0.01")
    found = Comparison([runs[0], *open_runs([tmp_path / "out"])], 10)
    assert found.images["val"] == tuple(kept)
    assert found.images["train"] == runs[0].counts["train"].ids


def test_runs_on_other_data_are_refused(tmp_path, runs):
    tree = make_learnable_tree(tmp_path / "tree", 12)
    path = sorted((tree / "SegmentationClass").iterdir())[1]
    mask = read_mask(path)
    mask[:9] = 1
    write_mask(path, mask)
    folder_run(tmp_path, tree, "run=[classifier,cam,evaluate]")
    other = open_runs([tmp_path / "out"])
    with pytest.raises(DataError, match=f"different masks of images(.|\n)*train: 1\n *{path.stem}"):
        Comparison([runs[0], *other], 10)


def test_what_cannot_be_compared_is_said(tmp_path, sweep, runs):
    with pytest.raises(DataError, match="holds no finished run"):
        open_runs([tmp_path])
    with pytest.raises(ConfigError, match="expected 4 names, one for each run"):
        open_runs([sweep], ["a", "b"])
    with pytest.raises(ConfigError, match="expected different names"):
        open_runs([sweep / "0", sweep / "1"], ["a", "a"])
    with pytest.raises(SystemExit, match="--out and --names are for several runs"):
        main(["report", str(sweep / "0"), "--out", str(tmp_path)])
    copy = tmp_path / "copy"
    shutil.copytree(sweep / "0", copy)
    results = json.loads((copy / "results.json").read_text())
    results["store"]["rib"] = str(tmp_path / "rib-gone")
    (copy / "results.json").write_text(json.dumps(results))
    with pytest.raises(SystemExit, match=r"the store no longer holds .*rib-gone"):
        main(["report", str(copy)])
    (copy / "results.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        open_runs([copy])


def test_a_comparison_without_localization_maps(tmp_path, sweep, capsys):
    for job in "02":
        shutil.copytree(sweep / job, tmp_path / job)
        path = tmp_path / job / "results.json"
        results = json.loads(path.read_text())
        del results["localization"], results["store"]["evaluate"]
        results["segmenter"] = {"rib": {"split": {"val": {"miou": 0.5 + int(job) / 10}}}}
        path.write_text(json.dumps(results))
    comparison = Comparison(open_runs([tmp_path / "0", tmp_path / "2"]), 10)
    assert (comparison.rows, sentences(comparison)) == ({}, [])
    (table,) = comparison_tables(comparison)
    assert table.title == "Segmenters, mIoU in percent"
    assert [list(row) for row in table.rows] == [["lr=0.01", "50.0"], ["lr=0.001", "70.0"]]
    assert list(comparison.settings) == ["rib.lr"]
