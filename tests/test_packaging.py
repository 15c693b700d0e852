"""The wheel: every package and every configuration is in it, and the command works from anywhere.

What is marked `package` is part of `make test-package`.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from PIL import Image

import ribseg
from ribseg.cli import main

ROOT = Path(__file__).parents[1]


SOURCES = ("src", "conf", "docs", "examples", "tests", "tools")
FILES = ("setup.cfg", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "train.py")
BUILD = """
import sys
sys.path.insert(0, "tools")
import build_package
build_package.build_sdist(sys.argv[1])
"""
# The public contract, as far as it needs no data.
CALLS = """
import numpy, torch, ribseg
classifier = ribseg.Classifier("resnet10t", num_classes=2, classes=["cat", "dog"])
classifier.save("classifier.safetensors")
image = numpy.zeros((40, 56, 3), numpy.uint8)
rib = ribseg.RIB(ribseg.load("classifier.safetensors"), pooling=ribseg.GNDRP(0.4), steps=2)
maps = ribseg.localize(image, labels=["dog"], method=rib)
maps = ribseg.localize(image, [0], "classifier.safetensors", "cam", overrides=["data.scales=[1]"])
assert maps.mask(0.4).shape == (40, 56)
maps.plot(image)
maps.save("maps.npz")
logits = ribseg.functional.gndrp(torch.rand(1, 2, 4, 4), torch.ones(1, 2))
assert logits.shape == ribseg.GAP()(torch.rand(1, 2, 4, 4), torch.ones(1, 2)).shape
sweep = ribseg.ThresholdSweep(num_classes=2, thresholds=torch.linspace(0, 1, 11))
sweep.update(maps.full, maps.classes, torch.ones(40, 56, dtype=torch.long))
assert 0 <= sweep.compute()["best_miou"] <= 1
walked = ribseg.functional.random_walk(maps.strided, torch.zeros(10, 14), radius=2, steps=4)
assert walked.shape == maps.strided.shape
print(ribseg.__file__)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from the sdist, so that this is complete, too."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # a build leaves files where it runs
    for name in SOURCES:
        ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / name, source / name, ignore=ignore)
    for name in FILES:
        shutil.copy(ROOT / name, source)
    called([sys.executable, "-c", BUILD, folder], source)
    options = ["-q", "--no-deps", "--no-build-isolation", "-w", folder]
    called([sys.executable, "-m", "pip", "wheel", *options, next(folder.glob("*.tar.gz"))], folder)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The folder of commands of a fresh environment with the wheel; what it needs comes from this one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    packages = next(folder.glob("lib/python*/site-packages"))
    # Packages of a folder on the path; the files in it that would put a checkout on the path are not read.
    (packages / "needed.pth").write_text(sysconfig.get_path("purelib"))
    python = folder / "bin" / "python"
    called([sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", wheel], folder)
    return folder / "bin"


def called(command, folder):
    """What a command prints; a failure is one of the test, with what the command says."""
    words = list(map(str, command))
    outside = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(words, cwd=folder, env=outside, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


@pytest.mark.package
def test_all_files_are_in_the_wheel(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    yaml = {str(path.relative_to(ROOT)) for path in (ROOT / "conf").rglob("*.yaml")}
    modules = {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src").rglob("*.py")}
    assert {*(f"ribseg/{name}" for name in yaml), *modules} <= names
    assert {"ribseg/pipeline/report/templates/report.html", "ribseg/py.typed"} <= names


@pytest.mark.package
def test_the_installed_command_runs_anywhere(installed, tmp_path):
    command = installed / "ribseg"
    assert called([command, "--version"], tmp_path).strip() == f"ribseg {ribseg.__version__}"
    job = called([command, "train", "--cfg", "job", "experiment=demo", "rib.steps=7"], tmp_path)
    assert "steps: 7" in job
    place = called([installed / "python", "-c", CALLS], tmp_path).splitlines()[-1]
    assert Path(place).is_relative_to(installed.parent)


@pytest.mark.package
@pytest.mark.nightly
def test_the_installed_demo(installed, tmp_path):
    """The main job, from the wheel alone; then one image by the classifier that it has trained."""
    called([installed / "ribseg", "train", "experiment=demo"], tmp_path)
    (results,) = tmp_path.glob("outputs/runs/demo/*/results.json")
    found = json.loads(results.read_text())
    assert found["localization"]["rib"]["best_miou"] > 0.4
    Image.new("RGB", (56, 40)).save(tmp_path / "a.png")
    words = ["localize", "a.png", "--classifier", f"{found['store']['classifier']}/classifier.safetensors"]
    words += ["--steps", "--top", "1", "--set", "rib.steps=2"]
    assert "1 images localized" in called([installed / "ribseg", *words], tmp_path)


def test_training_without_an_experiment_lists_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["train"])
    assert "choose an experiment: ribseg train experiment=demo|" in stop.value.code


def test_the_command_says_its_version_and_commands(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.strip() == f"ribseg {ribseg.__version__}"
    with pytest.raises(SystemExit):
        main(["--help"])
    said = capsys.readouterr().out
    assert all(command in said for command in ("train", "check", "predict", "convert"))
