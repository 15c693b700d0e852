"""docs/method.md: its settings and values are those of conf/, and what cites it finds the section."""

import ast
import inspect
import re
import textwrap
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from quick_run import CONF

from ribseg import functional

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "method.md").read_text()
PROGRAMS = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
PAGE = re.sub(r"^```python\n.*?^```$", "", TEXT, flags=re.MULTILINE | re.DOTALL)
SECTIONS = set(re.findall(r"^##+ (\d(?:\.\d)?)\.? ", PAGE, re.MULTILINE))
FOLDERS = ("src", "conf", "tests", "docs", "notebooks", "tools", "benchmarks")
FILES = [
    path
    for path in [*ROOT.glob("*.md"), ROOT / "train.py", *(p for f in FOLDERS for p in (ROOT / f).rglob("*"))]
    if path.suffix in (".py", ".yaml", ".md", ".ipynb") and path != Path(__file__)
]


@pytest.fixture(scope="module")
def recipes():
    """The composed settings of the two published recipes, by the heading of their column."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return {
            column: compose("config", [f"experiment={experiment}", "data.root=PATH"])
            for column, experiment in (("VOC 2012", "rib_voc"), ("COCO 2014", "rib_coco"))
        }


def test_the_algorithm_is_quoted_from_its_source():
    source = inspect.getsource(functional.rib)
    (function,) = ast.parse(source).body
    body = source.splitlines(keepends=True)[function.body[0].end_lineno :]  # without the docstring
    assert [textwrap.dedent("".join(body))] == PROGRAMS


def rows_of(page):
    """Setting, VOC's value and COCO's value of every row of the recipe tables."""
    rows = re.findall(r"^\| `([\w.]+)` \| ([^|]+) \| ([^|]+) \|$", page, re.MULTILINE)
    return [
        (name, {"VOC 2012": yaml.safe_load(voc), "COCO 2014": yaml.safe_load(coco)})
        for name, voc, coco in rows
    ]


@pytest.mark.parametrize(
    ("setting", "values"), rows_of(PAGE), ids=lambda value: value if isinstance(value, str) else ""
)
def test_published_values_are_those_of_the_recipes(recipes, setting, values):
    for column, value in values.items():
        found = OmegaConf.select(recipes[column], setting, throw_on_missing=True)
        assert (OmegaConf.to_container(found) if OmegaConf.is_config(found) else found) == value


def test_every_recipe_table_is_read():
    assert len(rows_of(PAGE)) > 50
    assert PAGE.count("| setting | VOC 2012 | COCO 2014 |") == 6
    assert not re.findall(r"^\| `\w+\.[\w.]+` \|(?!([^|]+)\|([^|]+)\|$).*", PAGE, re.MULTILINE)


def test_every_named_setting_exists(recipes):
    """Anything in backticks that begins like a setting: `rib.margin`, `affinity=psa`, `maps.full=false`."""
    cfg = recipes["VOC 2012"]
    absent = object()
    for name in re.findall(r"`([a-z_]+(?:\.[a-z_]+)+)[=`]", PAGE):
        if name.split(".")[0] not in ("ribseg", "optimizer"):
            assert OmegaConf.select(cfg, name, default=absent) is not absent, name
    for group, option in re.findall(r"\b([a-z]+)=([a-z_]+)\b", PAGE):
        assert (CONF / group / f"{option}.yaml").is_file() or (group, option) == ("full", "false")


def test_no_file_cites_what_readers_do_not_have():
    citing = [str(path) for path in FILES if re.search(r"\bMETHOD(\.md)?\b", path.read_text())]
    assert not citing


def test_every_cited_section_exists():
    cited = [
        (path, section)
        for path in FILES
        for numbers in re.findall(
            r"docs/method\.md,\s+sections? ((?:\d(?:\.\d)?(?: and )?)+)", path.read_text()
        )
        for section in numbers.split(" and ")
    ]
    assert len(cited) >= 22
    assert {section for _, section in cited} <= SECTIONS, [c for c in cited if c[1] not in SECTIONS]
    inside = set(re.findall(r"sections? (\d(?:\.\d)?)", PAGE))
    assert inside <= SECTIONS


def test_links_of_the_page_lead_somewhere():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", PAGE) if "://" not in link]
    assert links
    assert all((ROOT / "docs" / link).is_file() for link in links)
    assert "(docs/method.md)" in (ROOT / "README.md").read_text()
