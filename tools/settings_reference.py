"""The page of all settings, made of the comments in conf/: what `make docs` shows as "Configuration".

    python tools/settings_reference.py > settings.md

A comment stands behind a setting, or in the lines above it:

    threshold: 0.4 # meaning [unit or range | source]

The unit may be absent; the sources are those of `SOURCES`. A file that replaces a setting of another file
need not say its meaning again.
"""

import re
from pathlib import Path
from typing import NamedTuple

import yaml

CONF = Path(__file__).parents[1] / "conf"
SOURCES = {
    "published": "RIB's paper or released program, which agree; [Method](method.md) has the places where not",
    "released": "the program that RIB's authors published; the paper says nothing or something else",
    "IRN": "Ahn, Cho, Kwak, CVPR 2019, and its program, which RIB takes over",
    "PSA": "Ahn, Kwak, CVPR 2018",
    "CLIP-ES": "Lin et al., CVPR 2023, and its program",
    "LPCAM": "Chen, Sun, CVPR 2023, and its program",
    "ReCAM": "Chen, Wang, Wu, Hua, Zhang, Sun, CVPR 2022, and its program",
    "AdvCAM": "Lee, Kim, Yoon, CVPR 2021, and its program",
    "DeepLab": "Chen et al., TPAMI 2018 (DeepLab-v2), as programs of the field use it",
    "ImageNet": "the backbone's training on ImageNet",
    "VOC": "PASCAL VOC 2012's layout and server",
    "COCO": "COCO 2014's layout",
    "Ray": "a setting of Ray",
    "Lightning": "a setting of Lightning's Trainer or callback",
    "ours": "chosen here",
}
NOTE = re.compile(rf"\s*\[(?:([^|\[\]]+) \| )?({'|'.join(SOURCES)})\]$")
# What stands in many places and means the same everywhere.
ALWAYS = {
    "_target_": "class or function that takes the settings beside it",
    "_partial_": "true: called later, with what is not known before the run",
}
# Groups in the order in which a run needs them, with a headline.
GROUPS = {
    "experiment": "Experiments",
    "sweep": "Sweeps",
    "data": "Data",
    "classifier": "Classifier",
    "rib": "RIB",
    "pooling": "Pooling",
    "methods": "Methods",
    "refine": "Refinement",
    "affinity": "Affinity network",
    "segmenter": "Segmenter",
    "segmenter/network": "Segmenter's network",
    "bottleneck": "Toy experiment",
    "trainer": "Trainer",
    "engine": "Engines",
    "logger": "Loggers",
    "callbacks": "Callbacks",
}
REPLACING = ("experiment", "sweep")  # groups without settings of their own
PLACES = {"segmenter/network": "segmenter.model"}  # where a group's settings are, if not under its name
FIRST = (
    "config.yaml",
    "voc.yaml",
    "resnet50.yaml",
    "gndrp.yaml",
    "irn.yaml",
    "deeplabv2_voc.yaml",
    "default.yaml",
)


class Setting(NamedTuple):
    """A setting in a file; the texts are empty where the file has no comment for it."""

    path: str  # from the configuration's root: rib.steps
    value: str
    meaning: str
    unit: str
    source: str


class Choice(NamedTuple):
    """A file of a group."""

    group: str
    name: str
    about: str  # the comment at its top
    base: str  # the file of the group that it begins with, or empty
    settings: list[Setting]


def comment_of(lines: list[str], node: yaml.Node, value: yaml.Node) -> str:
    """What is said about a setting: behind it, else in the lines above it with the same indentation."""
    nested = isinstance(value, yaml.MappingNode) and not value.flow_style
    line = node.start_mark.line
    last = node if nested or value.end_mark.line != line else value
    rest = lines[line][last.end_mark.column :].lstrip(":' ")
    if rest.startswith("#"):
        return rest[1:].strip()
    above = []
    start = " " * node.start_mark.column + "# "
    while line > 0 and lines[line - 1].startswith(start):
        line -= 1
        above.insert(0, lines[line][len(start) :].strip())
    return "" if line == 0 else " ".join(above)  # the first lines of a file are about the file


def settings_of(text: str, place: str) -> list[Setting]:
    """The settings of a file, in its order; `place` is where they are in the configuration."""
    lines, found = text.splitlines(), []

    def walk(node: yaml.MappingNode, prefix: str) -> None:
        for key, value in node.value:
            if prefix == place and key.value == "hydra":
                swept = inside(value, "sweeper", "params")
                if swept is not None:
                    walk(swept, "")
            if prefix == place and key.value in ("defaults", "hydra"):
                continue
            path = f"{prefix}.{key.value}".lstrip(".")
            comment = comment_of(lines, key, value)
            note = NOTE.search(comment)
            meaning = comment[: note.start()] if note else comment
            unit, source = (note[1] or "", note[2]) if note else ("", "")
            nested = isinstance(value, yaml.MappingNode) and bool(value.value)
            shown = "" if nested else text[value.start_mark.index : value.end_mark.index].strip() or "null"
            if meaning or not nested:
                found.append(Setting(path, shown, meaning, unit, source))
            if nested:
                walk(value, path)

    root = yaml.compose(text)
    if root is not None:
        walk(root, place)
    return found


def inside(node: yaml.MappingNode, *names: str) -> yaml.MappingNode | None:
    """The mapping below a node that keys lead to; None if there is none."""
    for name in names:
        found = [value for key, value in node.value if key.value == name]
        if not found:
            return None
        node = found[0]
    return node


def read(path: Path) -> Choice:
    """One file of conf/."""
    text = path.read_text()
    group = "" if path.parent == CONF else path.parent.relative_to(CONF).as_posix()
    place = "" if text.startswith("# @package _global_") else PLACES.get(group, group)
    top = re.match(r"(?:#.*\n)*", text)[0].splitlines()
    said = [
        line[1:].strip()
        for line in top
        if not re.match(r"# (@package|python train.py|ribseg localize)", line)
    ]
    about = re.sub(r":$", ".", " ".join(said))
    defaults = (yaml.safe_load(text) or {}).get("defaults", []) if path.name != "config.yaml" else []
    bases = [
        re.sub(r"^/\w+/|@.*", "", base) for base in defaults if isinstance(base, str) and base != "_self_"
    ]
    # The lines of the head are kept as empty ones: a comment there is of the file and not of a setting.
    body = "\n" * len(top) + text[sum(len(line) + 1 for line in top) :]
    return Choice(group, path.stem, about, next(iter(bases), "") if group else "", settings_of(body, place))


def choices() -> list[Choice]:
    """All files of conf/, those that others replace settings of first."""
    order = {name: n for n, name in enumerate(FIRST)}
    paths = sorted(CONF.rglob("*.yaml"), key=lambda path: (order.get(path.name, len(order)), path.as_posix()))
    return [read(path) for path in paths]


def meanings(read_choices: list[Choice]) -> dict[str, Setting]:
    """Path of a setting -> its first mention with a meaning."""
    found: dict[str, Setting] = {}
    for choice in read_choices:
        for setting in choice.settings:
            if setting.meaning:
                found.setdefault(setting.path, setting)
    return found


def without_meaning() -> list[str]:
    """Settings, with their file, that nothing is said about, or not whose choice the value is."""
    read_choices = choices()
    said = meanings(read_choices)
    missing = []
    for choice in read_choices:
        for setting in choice.settings:
            name = setting.path.split(".")[-1]
            if name in ALWAYS or setting.value == "" or choice.group == "logger":
                continue
            about = said.get(setting.path)
            if about is None or not about.source:
                missing.append(f"{choice.group}/{choice.name}.yaml: {setting.path}")
    return missing


def cell(text: str) -> str:
    """Text for a table's cell."""
    return text.replace("|", "\\|").replace("<", "&lt;")


def row(setting: Setting, said: dict[str, Setting]) -> str:
    """A row of a table: setting, default, meaning, unit or range, source."""
    name = setting.path.split(".")[-1]
    about = said.get(setting.path, setting)
    meaning = about.meaning or ALWAYS.get(name, "")
    value = f"`{setting.value}`" if setting.value else ""
    return f"| `{setting.path}` | {cell(value)} | {cell(meaning)} | {cell(about.unit)} | {about.source} |"


HEAD = "| setting | default | meaning | unit, range | source |\n|---|---|---|---|---|"


def section(group: str, files: list[Choice], said: dict[str, Setting]) -> list[str]:
    """The part of the page about one group: its choices, every setting, and what each choice replaces."""
    title, option = GROUPS[group], f"{group}@{PLACES[group]}" if group in PLACES else group
    lines = [f"## {title}", "", f"Choose with `{option}=NAME`:", "", "| name | what it is |", "|---|---|"]
    lines += [f"| `{file.name}` | {cell(file.about)} |" for file in files]
    shown: set[str] = set()
    for file in files:
        new = [s for s in file.settings if group not in REPLACING and s.path not in shown]
        changed = [s for s in file.settings if s not in new and s.value]
        if new:
            lines += ["", f"### {option}={file.name}", "", HEAD, *(row(s, said) for s in new)]
            shown |= {s.path for s in new}
        if changed:
            what = f"is `{option}={file.base}` with" if file.base else "sets"
            lines += ["", f"`{option}={file.name}` {what}:", ""]
            lines += [f"- `{s.path}`: `{s.value}`{own(s)}" for s in changed]
    return lines


def own(setting: Setting) -> str:
    """What the file itself says about a setting, if anything."""
    parts = [part for part in (setting.meaning, setting.source and f"source: {setting.source}") if part]
    return f" ({cell('; '.join(parts))})" if parts else ""


def page() -> str:
    """The whole page, in Markdown."""
    files = choices()
    said = meanings(files)
    root = next(f for f in files if not f.group and f.name == "config")
    localize = next(f for f in files if not f.group and f.name == "localize")
    lines = [
        "# Configuration",
        "",
        "Every setting, read from the files in `conf/`, of which this page is made. A setting is changed on "
        "the command line, `rib.steps=5`; an experiment replaces defaults, and the command line comes last. "
        "All values of a command, after that: "
        "`python train.py experiment=rib_voc data.root=PATH --cfg job`.",
        "",
        "`${name}` stands for the value of another setting, `???` has to be given, `null` is none.",
        "",
        "| source | whose choice a value is |",
        "|---|---|",
        *(f"| {name} | {text} |" for name, text in SOURCES.items()),
        "",
        "## Top level",
        "",
        "`conf/config.yaml`, for all experiments:",
        "",
        HEAD,
        *(row(setting, said) for setting in root.settings),
    ]
    for group in GROUPS:
        lines += ["", *section(group, [file for file in files if file.group == group], said)]
    lines += [
        "",
        "## One image",
        "",
        f"`conf/localize.yaml`. {cell(localize.about)}",
        "",
        HEAD,
        *(row(s, {**said, **{own.path: own for own in localize.settings}}) for s in localize.settings),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(page(), end="")
