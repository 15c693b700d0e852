"""`python train.py experiment=...` composes a configuration and runs its stages.

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


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Ends the program with one message, not a traceback, for what a user can repair, and after Ctrl-C."""
    from ribseg.errors import RibsegError

    go_on = "give the same command again: it goes on from what is there"
    try:
        yield
    except RibsegError as error:
        sys.exit(f"\nribseg: {error}")
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        sys.exit(f"\nribseg: the disk is full ({error}). Make room and {go_on}.")
    except (KeyboardInterrupt, SystemExit) as error:
        # Lightning turns Ctrl-C during a training into an exit.
        if isinstance(error, SystemExit) and not isinstance(error.__context__, KeyboardInterrupt):
            raise
        sys.exit(f"\nribseg: interrupted. Nothing that was finished is lost; {go_on}.")


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> float | None:
    """Runs the stages; returns the objective of `objective=...`, for Hydra's sweepers."""
    from ribseg.errors import ConfigError
    from ribseg.pipeline.engine.runner import objective, run
    from ribseg.pipeline.engine.sweep import recorded_failure

    with one_line_errors(), recorded_failure():
        if cfg.name is None:
            known = sorted(path.stem for path in (Path(__file__).parent / "conf/experiment").glob("*.yaml"))
            raise ConfigError(f"choose an experiment: python train.py experiment={'|'.join(known)}")
        with one_job():
            return objective(run(cfg, HydraConfig.get().runtime.output_dir), cfg.objective)
    return None  # a job of a sweep that has failed; the others go on


if __name__ == "__main__":
    main()
