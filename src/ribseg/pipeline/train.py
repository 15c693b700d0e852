"""`ribseg.train`: the command `train.py` as a function."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import open_dict

from ribseg.pipeline.recipe.configuration import composed
from ribseg.pipeline.run import run
from ribseg.pipeline.sweep import check_swept


def train(experiment: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Runs the stages of an experiment and returns the content of `results.json`.

    Same as `ribseg train experiment=...`: stages whose results are in the store are not computed again.
    A program calls it under `if __name__ == "__main__":`, since processes that it starts may import it.

    Args:
        experiment: name of a file in `conf/experiment`, as "rib_voc".
        overrides: in Hydra's syntax, e.g. ["data.root=PATH", "rib.steps=5"]; no sweeps. `results.json` and
            the report are written to `hydra.run.dir`, e.g. "hydra.run.dir=outputs/mine".

    Raises:
        RibsegError: settings or data cannot work; raised before the first stage, if it can be known.
    """
    cfg = composed("config", [f"experiment={experiment}", *overrides])
    check_swept(cfg.hydra.sweeper.params, overrides)
    output = Path(cfg.hydra.run.dir)
    with open_dict(cfg):
        del cfg["hydra"]
    return run(cfg, output)
