"""The programs in benchmarks/ that are to run at the first try, on a machine that is lent for minutes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.nightly
def test_the_program_that_measures_a_gpu_runs_on_a_cpu(tmp_path):
    found = tmp_path / "gpu.json"
    command = [
        sys.executable,
        "gpu.py",
        "--small",
        "--device",
        "cpu",
        "--minutes",
        "30",
        "--json",
        str(found),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=BENCHMARKS, env=environment, check=True, stdout=subprocess.DEVNULL)
    said = json.loads(found.read_text())
    assert {"equality", "methods", "dense CRF", "RIB, single precision", "RIB, bfloat16"} <= set(said)
    assert not [row for row in said["rows"] if row["result"] in ("failed", "left out")]
    assert said["equality"]["single"] == 0
    assert said["circumstances"]["commit"]
