"""What the requirements of ribseg bring, as installed in this environment, and how long imports take.

python tools/dependency_sizes.py          numbers and sizes of distributions
python tools/dependency_sizes.py --time   seconds of imports in fresh processes, medians
"""

import argparse
import configparser
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

SETUP = Path(__file__).parents[1] / "setup.cfg"
IMPORTS = (
    "pass",
    "import torch",
    "import torchvision",
    "import ribseg",
    "from ribseg import RIB",
    "from ribseg import RIB, Classifier",
)


def main() -> None:
    """Prints one of the two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--time", action="store_true")
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    if options.time:
        print_times(options.repeats)
    else:
        print_sizes()


def print_times(repeats: int) -> None:
    """Seconds of fresh processes, taken in turns, so that a busy machine is as busy for all of them."""
    seconds: dict[str, list[float]] = {code: [] for code in IMPORTS}
    for repeat in range(repeats + 1):
        for code, found in seconds.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True)
            if repeat:  # the first time reads from the disk
                found.append(time.perf_counter() - start)
    for code, found in seconds.items():
        print(f"{statistics.median(found):6.2f} s  ({min(found):.2f} to {max(found):.2f})  {code}")


def print_sizes() -> None:
    """For each requirement: what it brings, and what only it brings."""
    listed = configparser.ConfigParser()
    listed.read(SETUP)
    required = requirements(listed["options"]["install_requires"])
    closures = {name: closure([name]) for name in required}
    everything = set().union(*closures.values())
    row = "{:28}{:>9}{:>7}{:>12}{:>7}"
    print(row.format("required", "brings", "MB", "only it", "MB"))
    for name in sorted(
        required, key=lambda name: -size(everything - closure(r for r in required if r != name))
    ):
        alone = everything - closure(other for other in required if other != name)
        numbers = (len(closures[name]), megabytes(closures[name]), len(alone), megabytes(alone))
        print(row.format(name, *numbers))
    print(row.format("together", len(everything), megabytes(everything), "", ""))
    for extra, text in listed["options.extras_require"].items():
        more = closure(requirements(text)) - everything
        absent = [name for name in requirements(text) if find(name) is None]
        note = f"  not installed here: {', '.join(absent)}" if absent else ""
        print(row.format(f"[{extra}]", f"+{len(more)}", megabytes(more), "", "") + note)


def requirements(text: str) -> list[str]:
    """Names of the requirements in a list of setup.cfg."""
    lines = [line.strip() for line in text.splitlines()]
    return [canonicalize_name(Requirement(line).name) for line in lines if line and not line.startswith("#")]


def closure(names: Iterable[str]) -> set[str]:
    """Installed distributions that these need, with themselves."""
    found: set[str] = set()
    left = [(name, frozenset[str]()) for name in names]
    seen = set()
    while left:
        name, extras = left.pop()
        package = find(name)
        if package is None or (name, extras) in seen:
            continue
        seen.add((name, extras))
        found.add(name)
        for line in package.requires or ():
            needed = Requirement(line)
            marker = needed.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
                left.append((canonicalize_name(needed.name), frozenset(needed.extras)))
    return found


def find(name: str) -> Distribution | None:
    """An installed distribution; None where there is none."""
    try:
        return distribution(name)
    except PackageNotFoundError:
        return None


def size(names: Iterable[str]) -> int:
    """Bytes of the files of distributions."""
    files = [file.locate() for name in names for file in distribution(name).files or ()]
    return sum(Path(file).stat().st_size for file in files if Path(file).is_file())


def megabytes(names: Iterable[str]) -> str:
    """The same, for the table."""
    return f"{size(names) / 1e6:.0f}"


if __name__ == "__main__":
    main()
