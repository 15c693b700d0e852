"""A stage whose output changes for equal settings has another version, so that nothing stale is taken."""

import json
import subprocess
import sys

import pytest
import record_stages
from record_stages import RECORD, kinds

AGAIN = "then record the outputs: python tests/data/record_stages.py"
# Maps and weights of such small networks agree to this between processors; masks to a few pixels.
CLOSE, PIXELS = 2e-3, 12
# They need a file of another program; their ends are in tests/test_interop.py and tests/test_saliency.py.
NEEDS_MORE = {"imported", "saliency"}


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    target = tmp_path_factory.mktemp("stages") / "outputs.json"
    subprocess.run([sys.executable, record_stages.__file__, target], check=True)
    return json.loads(target.read_text())


def differs(one, other):
    """Names of files that are not alike."""
    names = set(one) ^ set(other)
    for name in set(one) & set(other):
        tolerance = {"abs": PIXELS} if name.endswith(".png") else {"rel": CLOSE, "abs": CLOSE}
        if one[name] != pytest.approx(other[name], **tolerance):
            names.add(name)
    return sorted(names)


def test_outputs_change_only_with_the_version_of_their_stage(computed):
    recorded = json.loads(RECORD.read_text())
    changed = {
        name: differs(now["values"], recorded.get(name, {"values": {}})["values"])
        for name, now in computed.items()
    }
    complaints = []
    for name, now in computed.items():
        if name not in recorded or recorded[name]["version"] != now["version"]:
            complaints.append(f"{name} is new or has another version; {AGAIN}")
        elif changed[name] and not any(changed.get(source) for source in now["inputs"]):
            complaints.append(f"raise the version of stage {name}: {changed[name][:3]} changed; {AGAIN}")
    assert not complaints, "\n".join(complaints)


def test_every_stage_is_looked_at(computed):
    absent = kinds() - {now["kind"] for now in computed.values()} - NEEDS_MORE
    assert not absent
    assert all(values["values"] for values in computed.values())


def test_a_change_is_noticed():
    assert differs({"a.json": [0.5]}, {"a.json": [0.51]}) == ["a.json"]
    assert differs({"a.json": [0.5]}, {"a.json": [0.5001]}) == []
    assert differs({"a.json": [0.5]}, {}) == ["a.json"]
    assert differs({"a.png": [100, 20]}, {"a.png": [60, 60]}) == ["a.png"]
