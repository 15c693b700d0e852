"""The commands in the README and on the site: Hydra takes their settings, `ribseg` their arguments."""

import configparser
import re
import shlex
from pathlib import Path

import pytest
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf
from quick_run import begun, chosen, composed

from ribseg.cli import parser

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), ROOT / "benchmarks/README.md", *sorted((ROOT / "docs").rglob("*.md"))]
MIGRATION = ROOT / "docs" / "migration.md"
TRAIN = ("python train.py ", "ribseg train ")
OTHERS = {
    f"{start} {name} ": name for start in ("ribseg", "python -m ribseg") for name in ("predict", "convert")
}
OTHERS |= {
    "ribseg check ": "check",
    "ribseg report ": "report",
    "ribseg export ": "export",
    "python -m ribseg.predict ": "predict",
    "python -m ribseg.interop ": "convert",
}
# Files and folders that a reader has to have; docs/index.md says so of these names.
PLACEHOLDER = re.compile(
    r"\b(PATH|FILE|FOLDER|DATA|my_data|MSRC)\b|^data\.root=/data/|\.(pth|npy|safetensors|jpg)\b|=/abs/"
)
WITHOUT_DATA = ("experiment=demo", "experiment=toy_bottleneck")
PLUGINS = re.compile(r"^sweep=optuna$|^hydra/(launcher|sweeper)=|^engine=ray$")  # installed apart
USER = re.compile(r"_target_|^data=own$")  # of what a reader brings


def commands_of(page):
    """The commands in indented blocks, and those in backticks that are whole."""
    text = page.read_text().replace("\\\n", " ")
    blocks = re.findall(r"^ {4}(?:[A-Z]+=\S+ )?((?:python|ribseg) .*)$", text, re.MULTILINE)
    inline = re.findall(r"`((?:python|ribseg) [^`\n]+)`", text)
    commands = [command for command in (*blocks, *inline) if command.startswith((*TRAIN, *OTHERS))]
    return [command for command in commands if "..." not in command and "--help" not in command]


def first_job(words):
    """The words of a command of `train.py`; of a sweep, those of its first job."""
    if "-m" not in words:
        return words
    return [word.split(",")[0] if "[" not in word else word for word in words if word != "-m"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_compose_and_name_stages_that_there_are(page, tmp_path):
    for command in commands_of(page):
        words = shlex.split(command, comments=True)
        if any(PLUGINS.search(word) for word in words):
            continue
        if command.startswith(TRAIN):
            cfg = composed(first_job(words[2:]))
            if not any(USER.search(word) for word in words):
                begun(cfg, tmp_path)  # checks the settings and the names
        else:
            start, name = next((start, name) for start, name in OTHERS.items() if command.startswith(start))
            arguments = words[len(start.split()) :]
            settings = getattr(parser().parse_args([name, *arguments]), "settings", None)
            if settings is not None:
                composed(["experiment=rib_folder", *settings])


def test_every_training_command_names_the_data_that_it_needs():
    for page in PAGES:
        for command in commands_of(page):
            if command.startswith(TRAIN) and not any(name in command for name in WITHOUT_DATA):
                assert any(PLACEHOLDER.search(word) for word in shlex.split(command, comments=True)), (
                    f"{page.name}: {command}"
                )
    assert "`PATH`" in (ROOT / "docs" / "index.md").read_text()


def test_commands_are_found():
    found = [command for page in PAGES for command in commands_of(page)]
    assert len(found) > 70
    assert sum(command.startswith(TRAIN) for command in commands_of(MIGRATION)) >= 10
    assert sum(command.startswith("ribseg convert") for command in commands_of(MIGRATION)) == 6


def test_settings_and_stages_that_the_page_on_migration_names_exist(tmp_path):
    """Every right column of its tables of commands: `rib.steps`, stage `rib`, `pooling=gap`."""
    cfg, absent = composed(["experiment=rib_voc", "data.root=PATH"]), object()
    page = MIGRATION.read_text()
    names = set(re.findall(r"`([a-z]+\.[a-z_.]+)(?:=[^`]*)?`", page))
    roots = {name for name in names if name.split(".")[0] in cfg}
    assert len(roots) > 25
    for name in roots:
        assert OmegaConf.select(cfg, name, default=absent) is not absent, name
    for line in re.findall(r"stages? (`\w+`(?:, `\w+`)*)", page):
        assert chosen(cfg, tmp_path, re.findall(r"\w+", line))


def test_an_unknown_setting_is_found():
    with pytest.raises(ConfigCompositionException, match=r"Could not override 'rib\.stepps'"):
        composed(["experiment=rib_voc", "rib.stepps=3"])


def test_every_requirement_is_on_the_page_on_dependencies():
    listed, page = configparser.ConfigParser(), (ROOT / "docs" / "dependencies.md").read_text()
    listed.read(ROOT / "setup.cfg")
    required = re.findall(r"^([a-z][\w-]*)", listed["options"]["install_requires"], re.MULTILINE)
    assert len(required) > 10
    tables = [row.split("|")[1] for row in page.splitlines() if row.startswith("| ")]
    for name in required:
        assert sum(bool(re.search(rf"(^|[ ,]){name}($|[ ,])", cell)) for cell in tables) == 2, name
    assert all(f"| `{extra}` |" in page for extra in listed["options.extras_require"])
