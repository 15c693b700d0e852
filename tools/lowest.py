"""Prints, as pip's constraints, the oldest version of each direct dependency that setup.cfg allows.

    python tools/lowest.py > lowest.txt && pip install -e ".[dev]" -c lowest.txt

The bounds in setup.cfg are the only list: `>=1.2` and `==1.2` both give `==1.2`. A requirement without a
lower bound promises nothing that can be tested, nor does one with two different ones: both are errors.
"""

import configparser
import re
import sys
from collections.abc import Iterable
from pathlib import Path

SETUP = Path(__file__).parents[1] / "setup.cfg"
REQUIREMENT = re.compile(r"([\w.-]+)\s*(.*)")
LOWER = re.compile(r"(?:>=|==)\s*([\w.]+)")


def requirements(setup: Path = SETUP) -> list[str]:
    """Every requirement of the package and of its extras, as it stands in setup.cfg."""
    parser = configparser.ConfigParser()
    parser.read_string(setup.read_text())
    lists = [parser["options"]["install_requires"], *parser["options.extras_require"].values()]
    return [line for text in lists for line in text.splitlines() if line]


def lowest(given: Iterable[str]) -> dict[str, str]:
    """From the name of each package to the oldest version that the requirements allow.

    Raises:
        ValueError: for a requirement without a lower bound, or with two that differ.
    """
    versions: dict[str, str] = {}
    for requirement in given:
        name, bounds = REQUIREMENT.fullmatch(requirement).groups()
        found = LOWER.search(bounds)
        if found is None:
            raise ValueError(f"{requirement!r} has no lower bound; expected NAME>=VERSION or NAME==VERSION")
        if versions.setdefault(name.lower(), found[1]) != found[1]:
            raise ValueError(f"{name} has the lower bounds {versions[name.lower()]} and {found[1]}; give one")
    return versions


if __name__ == "__main__":
    try:
        print(*(f"{name}=={version}" for name, version in lowest(requirements()).items()), sep="\n")
    except ValueError as error:
        sys.exit(f"setup.cfg: {error}")
