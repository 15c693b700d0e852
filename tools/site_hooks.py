"""What mkdocs does for the documentation's site (mkdocs.yml) beyond rendering docs/.

- Pages that are made of other files, so that they cannot go stale: every setting (settings_reference.py),
  every public name (read from the `__all__` lists), the examples, the notebooks, the changelog and the other
  pages of the top folder.
- Links from docs/ to such files, which lead to the file in the repository, lead to the page on the site.
- `<!-- file: PATH -->` is replaced by the file, `<!-- help: COMMAND -->` by what `ribseg COMMAND --help`
  prints. Where the Markdown is read in the repository the comments are invisible, and the link beside serves.
- Equations, `$...$`, become MathML, which browsers draw without a script.
"""

import ast
import base64
import html
import json
import logging
import os
import posixpath
import re
import sys
from pathlib import Path
from typing import Any

import settings_reference
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"
EXECUTED = ROOT / "outputs/notebooks"
LOG = logging.getLogger("mkdocs.hooks.ribseg")

# Pages of the site that are files outside docs/.
COPIED = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "benchmarks/README.md": "benchmarks.md",
}
ELSEWHERE = {**COPIED, "README.md": "index.md", "CITATION.cff": "citing.md"}
# Packages with a page, in the order of the navigation; beyond their `__all__`, public names and modules.
PACKAGES = {
    "ribseg": ["ribseg.types"],
    "functional": [],
    "models": [],
    "data": [],
    "modules": [],
    "methods": [
        "ribseg.methods.base.Method",
        "ribseg.methods.pooling.GlobalMax",
        "ribseg.methods.pooling.LogSumExp",
        "ribseg.methods.pooling.TopK",
        "ribseg.methods.pooling.GeneralizedMean",
        "ribseg.methods.advcam.AdvCAM",
        "ribseg.methods.clip_es.ClipES",
        "ribseg.methods.lpcam.LPCAM",
        "ribseg.methods.recam.ReCAM",
        "ribseg.methods.controls",
        "ribseg.metrics.evaluation",
        "ribseg.methods.refine",
        "ribseg.methods.segments",
    ],
    "metrics": [],
    "analysis": [],
    "plot": [],
    "interop": [],
    "pipeline": ["ribseg.pipeline.localize.Localizer"],
}


def public_names(package: str) -> dict[str, str]:
    """Public name -> the module that defines it, of a package, read from its `__init__.py`."""
    path = SOURCE / "ribseg" / ("" if package == "ribseg" else package) / "__init__.py"
    tree = ast.parse(path.read_text())
    homes = {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("ribseg")
        for alias in node.names
    }
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return {name: homes[name] for name in ast.literal_eval(node.value)}
        if isinstance(node, ast.If):  # `if TYPE_CHECKING`: names that are imported on first use
            return dict(sorted((name, home) for name, home in homes.items() if name != "lazy_names"))
    return {}


def source_of(module: str) -> Path:
    """The file of a module or a package by its dotted name; need not exist."""
    path = SOURCE / module.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def is_module(name: str) -> bool:
    """Whether a dotted name is a module or a package."""
    return source_of(name).is_file()


def first_line(home: str) -> str:
    """The first line of a docstring, of a class, a function or a module; empty for a constant."""
    if is_module(home):
        return first_sentence(source_of(home))
    module, _, name = home.rpartition(".")
    for node in ast.parse(source_of(module).read_text()).body:
        if getattr(node, "name", "") == name:
            return (ast.get_docstring(node) or "").split("\n")[0]
    return ""


def api_pages() -> dict[str, str]:
    """Path -> Markdown of the pages of the API: one for each package, and an index of all names."""
    pages, seen, index = {}, {}, []
    for package, more in PACKAGES.items():
        title = "ribseg" if package == "ribseg" else f"ribseg.{package}"
        lines, rows = [f"# {title}", "", first_line(title), ""], []
        names = {f"{title}.{name}": home for name, home in public_names(package).items()}
        own_page = {f"ribseg.{name}" for name in PACKAGES}
        for public, home in {**names, **{name: name for name in more}}.items():
            if home in own_page:
                rows.append(f"| [`{public}`]({home.rpartition('.')[2]}.md) | {first_line(home)} |")
                continue
            if is_module(home) and home.startswith("ribseg.methods.") and package == "ribseg":
                rows.append(f"| [`{public}`](methods.md#{home}) | {first_line(home)} |")
                continue
            if home in seen:
                rows.append(f"| [`{public}`]({seen[home]}.md#{home}) | {first_line(home)} |")
                continue
            seen[home] = package
            rows.append(f"| [`{public}`](#{home}) | {first_line(home)} |")
            lines += [
                f"::: {home}",
                "    options:",
                f"      heading: {public}",
                f"      toc_label: {public.rpartition('.')[2]}",
                "",
            ]
            if is_module(home):
                lines[-1:] = ["      show_root_toc_entry: true", "      heading_level: 2", ""]
        table = ["| name | what it is |", "|---|---|", *rows, ""]
        pages[f"api/{package}.md"] = "\n".join([*lines[:4], *table, *lines[4:]])
        index += [row.replace("](#", f"]({package}.md#") for row in rows]
    about = (
        "All public names, with the first line of what is said about them. What is not here may change "
        "without notice ([Versions](../releasing.md)). `import ribseg` loads neither Lightning nor Hydra: "
        "names are looked up on first use."
    )
    pages["api/index.md"] = "\n".join(
        ["# API", "", about, "", "| name | what it is |", "|---|---|", *index, ""]
    )
    return pages


def examples_page() -> str:
    """The programs of examples/, each with what its first lines say."""
    lines = [
        "# Examples",
        "",
        "Programs of the folder `examples/`. Each is run by a test, from outside the package.",
        "",
    ]
    for path in sorted((ROOT / "examples").glob("*.py")):
        lines += [
            f"## {path.name} {{#{path.stem}}}",
            "",
            first_sentence(path),
            "",
            code(path.read_text(), "python"),
            "",
        ]
    return "\n".join(lines)


def first_sentence(path: Path) -> str:
    """The first line of a file's docstring."""
    return (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n")[0]


def notebook_page(path: Path) -> tuple[str, dict[str, bytes]]:
    """The Markdown of a notebook, and its pictures by file name.

    Results are those of `make notebooks`, as the repository keeps none; without them there is the code alone.
    """
    made, parts, pictures = EXECUTED / path.name, [], dict[str, bytes]()
    for cell in json.loads((made if made.is_file() else path).read_text())["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else code(source, "python"))
        for output in cell.get("outputs", []):
            data = output.get("data", {"text/plain": output.get("text", "")})
            if "image/png" in data:
                name = f"{path.stem}_{len(pictures)}.png"
                pictures[name] = base64.b64decode(data["image/png"])
                parts.append(f"![What this cell shows]({name})")
            elif output.get("name") != "stderr":  # of Lightning: progress and advice
                parts.append(code("".join(data["text/plain"]), "text"))
    parts.insert(1, f"This page is the notebook `notebooks/{path.name}`, run from top to bottom.")
    return "\n\n".join(parts) + "\n", pictures


def code(text: str, language: str) -> str:
    """A fenced block; the fence is longer than any in the text."""
    return f"`````{language}\n{text.rstrip()}\n`````"


def relinked(markdown: str, folder: str, page_folder: str = "") -> str:
    """Markdown of a file in `folder` of the repository, with links to files that are pages of the site.

    A link to a file that has no page is left as it is, and mkdocs warns of it. `page_folder` is the folder of
    the page that links.
    """

    def page(match: re.Match[str]) -> str:
        link, _, anchor = match[1].partition("#")
        if "://" in link or not link or link.startswith("mailto:"):
            return match[0]
        path = posixpath.normpath(posixpath.join(folder, link))
        if path in ELSEWHERE:
            found = ELSEWHERE[path]
        elif re.fullmatch(r"examples/\w+\.py", path):
            found, anchor = "examples.md", Path(path).stem
        elif re.fullmatch(r"notebooks/\w+\.ipynb", path):
            found = str(Path(path).with_suffix(".md"))
        elif path.startswith("docs/"):
            found = path.removeprefix("docs/")
        elif path.startswith("conf"):
            found = "configuration.md"
        else:
            return match[0]
        found = posixpath.relpath(found, page_folder or ".")
        return f"]({found}{'#' if anchor else ''}{anchor})"

    def titled(match: re.Match[str]) -> str:
        path = ROOT / "docs" / match[1]
        return f"[{title(path)}](" if path.is_file() else match[0]

    # A file's name as the text of a link says something in the repository, but not on the site.
    markdown = re.sub(r"\[(?:docs/)?(\w+\.md)\]\(", titled, markdown)
    return re.sub(r"\]\(([^)\s]+)\)", page, markdown)


def title(path: Path) -> str:
    """The heading of a page."""
    return path.read_text().split("\n", 1)[0].removeprefix("# ")


def help_of(command: str) -> str:
    """What `ribseg COMMAND --help` prints."""
    sys.path.insert(0, str(SOURCE))
    try:
        from ribseg.cli import parser
    finally:
        sys.path.remove(str(SOURCE))
    os.environ["COLUMNS"] = "100"
    choices = next(action.choices for action in parser()._actions if action.choices)
    return choices[command].format_help()


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The files of docs/, and the pages that are made."""
    made: dict[str, str | bytes] = {
        target: relinked((ROOT / path).read_text(), posixpath.dirname(path))
        for path, target in COPIED.items()
    }
    made |= api_pages()
    made["configuration.md"] = settings_reference.page()
    made["examples.md"] = examples_page()
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        page, pictures = notebook_page(path)
        made[f"notebooks/{path.stem}.md"] = relinked(page, "notebooks", "notebooks")
        made |= {f"notebooks/{name}": content for name, content in pictures.items()}
    for path, content in made.items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Markdown of a page of docs/ with links, files and help texts of the site."""
    if page.file.generated_by:
        return markdown
    markdown = relinked(markdown, "docs")
    languages = {".py": "python", ".yaml": "yaml", ".cff": "yaml"}
    markdown = re.sub(
        r"<!-- file: (\S+) -->",
        lambda found: code((ROOT / found[1]).read_text(), languages.get(Path(found[1]).suffix, "text")),
        markdown,
    )
    return re.sub(r"<!-- help: (\w+) -->", lambda found: code(help_of(found[1]), "text"), markdown)


def on_page_content(html_text: str, page: Page, **_: Any) -> str:
    """HTML with equations as MathML; arithmatex leaves them in a span or a div of its class."""

    def mathml(found: re.Match[str]) -> str:
        tex = html.unescape(found[2]).strip()
        try:
            return convert(tex, display="block" if found[1] == "div" else "inline")
        except Exception as error:  # noqa: BLE001 - whatever it is, the build must say where
            LOG.warning("%s: the equation %s cannot be drawn: %s", page.file.src_path, tex, error)
            return html.escape(tex)

    pattern = r'<(span|div) class="arithmatex">\\[\(\[](.*?)\\[\)\]]</\1>'
    return re.sub(pattern, mathml, html_text, flags=re.DOTALL)
