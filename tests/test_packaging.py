"""The wheel: every package and every configuration is in it, and the command works from anywhere."""

import configparser
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import ribseg
from ribseg.cli import main

ROOT = Path(__file__).parents[1]


def test_every_package_is_listed():
    listed = configparser.ConfigParser()
    listed.read(ROOT / "setup.cfg")
    there = {
        ".".join(path.parent.relative_to(ROOT / "src").parts) for path in ROOT.glob("src/**/__init__.py")
    }
    assert set(listed["options"]["packages"].split()) == there | {"ribseg.conf"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # a build leaves files where it runs
    for name in ("src", "conf"):
        ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / name, source / name, ignore=ignore)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    options = ["-q", "--no-deps", "--no-build-isolation", "-w", folder]
    command = [sys.executable, "-m", "pip", "wheel", *options, source]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if built.returncode and "setuptools" in built.stderr:
        pytest.skip("building a wheel here needs setuptools and wheel in this environment")
    assert built.returncode == 0, built.stderr
    return next(folder.glob("*.whl"))


def test_the_wheel_runs_alone(wheel, tmp_path):
    """Unpacked, in a folder of its own, without the checkout: the configurations come from inside it."""
    names = set(zipfile.ZipFile(wheel).namelist())
    yaml = {str(path.relative_to(ROOT)) for path in (ROOT / "conf").rglob("*.yaml")}
    assert {f"ribseg/{name}" for name in yaml} <= names
    assert "ribseg/pipeline/report/templates/report.html" in names
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    call = "import sys; sys.path.insert(0, sys.argv.pop(1)); from ribseg.cli import main; main()"
    command = [sys.executable, "-c", call, str(tmp_path / "installed"), "train", "--cfg", "job"]
    done = subprocess.run(
        [*command, "experiment=demo", "rib.steps=7"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "steps: 7" in done.stdout
    wrong = subprocess.run([*command[:-2]], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert wrong.returncode == 1
    assert "choose an experiment: ribseg train experiment=demo|" in wrong.stderr


def test_the_command_says_its_version_and_commands(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.strip() == f"ribseg {ribseg.__version__}"
    with pytest.raises(SystemExit):
        main(["--help"])
    said = capsys.readouterr().out
    assert all(command in said for command in ("train", "check", "predict", "convert"))
