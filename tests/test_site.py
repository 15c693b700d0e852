"""The documentation's site: built with warnings as errors, complete, and readable without a network.

`make docs` tests the site that it has built; what is marked `site` is no part of `make test`.
"""

import ast
import html
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NEEDED = ("mkdocs", "material", "mkdocstrings_handlers.python", "latex2mathml")
TOOL = runpy.run_path(str(ROOT / "tools" / "settings_reference.py"))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the site: that of RIBSEG_SITE, or built as `make docs` builds it."""
    if "RIBSEG_SITE" in os.environ:
        return ROOT / os.environ["RIBSEG_SITE"]
    for name in NEEDED:
        pytest.importorskip(
            name, reason=f"the site is built by pip install 'ribseg[docs]'; {name} is missing"
        )
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def read(site, page):
    return (site / page).read_text()


@pytest.mark.site
def test_every_page_of_docs_is_on_the_site(site):
    missing = [
        path.name for path in (ROOT / "docs").glob("*.md") if not (site / f"{path.stem}.html").is_file()
    ]
    assert not missing


@pytest.mark.site
def test_nothing_is_fetched_from_a_network(site):
    """Links that a reader follows may lead there; scripts, styles, fonts and pictures may not."""
    for path in site.rglob("*.html"):
        page = path.read_text()
        assert not re.findall(r'<(?:script|img|iframe|source)[^>]* src="(?:https?:)?//[^"]*"', page), path
        assert not re.findall(
            r'<link[^>]*rel="(?:stylesheet|preconnect)"[^>]*href="(?:https?:)?//[^"]*"', page
        ), path
    for path in site.rglob("*.css"):
        assert "url(http" not in path.read_text(), path


@pytest.mark.site
def test_equations_are_mathml(site):
    page = read(site, "method.html")
    assert page.count("<math") >= 10
    for path in site.glob("*.html"):
        assert 'class="arithmatex"' not in path.read_text(), path


@pytest.mark.site
def test_every_public_name_is_documented(site):
    import ribseg

    reference = "".join(path.read_text() for path in sorted((site / "api").glob("*.html")))
    names = [f"ribseg.{name}" for name in ribseg.__all__]
    names += [f"ribseg.data.{name}" for name in ribseg.data.__all__]
    for path in (ROOT / "src" / "ribseg").glob("*/__init__.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
                names += [f"ribseg.{path.parent.name}.{name}" for name in ast.literal_eval(node.value)]
    assert len(names) > 100
    assert [name for name in names if f"<code>{name}</code>" not in reference] == []


def test_every_setting_has_a_meaning_and_a_source():
    """A comment in conf/, `# meaning [unit or range | source]`; see tools/settings_reference.py."""
    assert TOOL["without_meaning"]() == []


def test_every_setting_is_in_the_reference():
    page = TOOL["page"]()
    paths = {setting.path for choice in TOOL["choices"]() for setting in choice.settings}
    assert len(paths) > 200
    assert [path for path in paths if f"`{path}`" not in page] == []
    assert "| `rib.steps` | `10` | K; 0 and 1 give the maps of CAM, 1 not with preset=paper | >= 0 |" in page


def test_comments_are_read():
    text = "\n# over two\n# lines [pixels | ours]\na: 1\nb: # of both\n  c: [1, 2] # no note\n"
    text += "  d: 'x # y' # z [VOC]\n"
    found = {setting.path: setting for setting in TOOL["settings_of"](text, "g")}
    assert found["g.a"][1:] == ("1", "over two lines", "pixels", "ours")
    assert found["g.b"].meaning == "of both"
    assert found["g.b.c"][1:] == ("[1, 2]", "no note", "", "")
    assert found["g.b.d"][1:] == ("'x # y'", "z", "", "VOC")


@pytest.mark.site
def test_examples_are_shown_as_they_are(site):
    page = html.unescape(re.sub(r"<[^>]+>", "", read(site, "examples.html")))
    for path in (ROOT / "examples").glob("*.py"):
        last = path.read_text().rstrip().splitlines()[-1]
        assert last in page, path
