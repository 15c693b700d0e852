"""What is said about the project in more than one file agrees: versions, commands, bounds."""

import configparser
import re
import runpy
from pathlib import Path

import pytest
import yaml

import ribseg

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = [path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.stem != "config"]
TOOL = runpy.run_path(str(ROOT / "tools" / "lowest.py"))


@pytest.fixture(scope="module")
def setup():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


@pytest.fixture(scope="module")
def bounds():
    return TOOL["lowest"](TOOL["requirements"]())


def load(path):
    return yaml.safe_load((ROOT / path).read_text())


def test_one_version(setup):
    assert setup["metadata"]["version"] == "attr: ribseg.__version__"
    assert str(load("CITATION.cff")["version"]) == ribseg.__version__
    heading = r"^## (\S+) \((unreleased|\d{4}-\d\d-\d\d)\)$"
    newest = re.search(heading, (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert newest[1] == ribseg.__version__


def test_the_hook_runs_the_linter_of_make_lint(bounds):
    revisions = {Path(repo["repo"]).name: repo["rev"] for repo in load(".pre-commit-config.yaml")["repos"]}
    assert revisions["ruff-pre-commit"] == f"v{bounds['ruff']}"


def test_the_wheel_is_tested_with_what_it_is_built_with(bounds):
    assert f'requires = ["setuptools>={bounds["setuptools"]}"]' in (ROOT / "pyproject.toml").read_text()


def commands(job):
    """What a job runs, for each row of its matrix."""
    for row in job.get("strategy", {}).get("matrix", {}).get("include", [{}]):
        for step in job["steps"]:
            if "run" in step:
                yield re.sub(r"\$\{\{ matrix\.(\w+) }}", lambda name, row=row: row[name[1]], step["run"])


def test_workflows_call_targets_of_the_makefile():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    called = set()
    for workflow in map(load, WORKFLOWS):
        assert workflow["permissions"] == {"contents": "read"}
        called |= {command for job in workflow["jobs"].values() for command in commands(job)}
    assert called <= {f"make {target}" for target in targets}, "what CI runs belongs into the Makefile"
    jobs = {"make lint", "make test-lowest", "make coverage", "make test-package", "make docs"}
    assert jobs <= called


def test_both_ends_of_the_supported_pythons_are_tested(setup):
    said = re.findall(r"Python :: (3\.\d+)$", setup["metadata"]["classifiers"], re.M)
    first, last = (int(name.split(".")[1]) for name in (said[0], said[-1]))
    assert said == [f"3.{minor}" for minor in range(first, last + 1)]
    assert setup["options"]["python_requires"] == f">=3.{first},<3.{last + 1}"
    matrix = load(".github/workflows/ci.yml")["jobs"]["tests"]["strategy"]["matrix"]["include"]
    assert {row["versions"]: row["python"] for row in matrix} == {"lowest": said[0], "newest": said[-1]}


def test_issue_forms_are_forms():
    assert {path.stem for path in FORMS} == {"bug", "question", "feature"}
    for form in map(load, FORMS):
        assert {"name", "description", "body"} <= set(form)
        assert all("label" in part["attributes"] for part in form["body"] if part["type"] != "markdown")


def test_every_requirement_has_a_lower_bound(bounds):
    assert bounds["torch"] == "2.6"
    assert all(re.fullmatch(r"\d+(\.\d+)*", version) for version in bounds.values())


def test_the_lowest_of_a_list():
    lowest = TOOL["lowest"]
    assert lowest(["A.b>=1.2,<2", "c==3", "a.b>=1.2"]) == {"a.b": "1.2", "c": "3"}
    with pytest.raises(ValueError, match="'torch<3' has no lower bound"):
        lowest(["torch<3"])
    with pytest.raises(ValueError, match=r"c has the lower bounds 3 and 3\.1"):
        lowest(["c==3", "c>=3.1"])
