"""The door: `python train.py experiment=...` composes a configuration and runs its stages.

`python train.py --help` shows the settings.
"""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

# albumentations asks its server for a newer release on import; before anything imports it.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, read_write


@contextmanager
def one_job() -> Iterator[None]:
    """Makes a job of a sweep look like a run of its own.

    Lightning starts the other processes of a distributed run with this process's arguments; in a sweep they
    would each start the whole sweep.
    """
    job = cast(DictConfig, HydraConfig.get())
    if job.mode != RunMode.MULTIRUN:
        yield
        return
    arguments, sys.argv = sys.argv, [sys.argv[0], *job.overrides.task]
    with read_write(job):
        job.run.dir = job.runtime.output_dir
    try:
        yield
    finally:
        sys.argv = arguments


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> None:
    """Runs the stages; an error that a user can mend is one message, not a traceback."""
    from ribseg.errors import ConfigError, RibsegError
    from ribseg.pipeline.runner import run

    try:
        if cfg.name is None:
            known = sorted(path.stem for path in (Path(__file__).parent / "conf/experiment").glob("*.yaml"))
            raise ConfigError(f"choose an experiment: python train.py experiment={'|'.join(known)}")
        with one_job():
            run(cfg, HydraConfig.get().runtime.output_dir)
    except RibsegError as error:
        sys.exit(f"\nribseg: {error}")
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        sys.exit(f"\nribseg: the disk is full ({error}). Make room and give the same command: it goes on.")


if __name__ == "__main__":
    main()
