"""The training command: composes a configuration with Hydra and runs its stages.

It is `python train.py ...` in a checkout, and `ribseg train ...` after an installation.
"""

import errno
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, read_write
from omegaconf.errors import InterpolationResolutionError

from ribseg.errors import ConfigError, RibsegError, reason
from ribseg.pipeline.recipe.configuration import CONF
from ribseg.workers import share_cores, use_own_start_method

MULTIRUN = ("-m", "--multirun")
_command: list[str] = []  # words before Hydra's arguments: none for `python train.py`


def train(arguments: Sequence[str], command: Sequence[str] = ()) -> None:
    """Runs an experiment.

    Args:
        arguments: in Hydra's syntax, as "experiment=demo".
        command: the words before them on the command line, needed to start the other processes of a
            distributed run.
    """
    _command[:] = command
    # Hydra's parser takes no flag between two overrides.
    several = [word for word in arguments if word in MULTIRUN]
    sys.argv = [sys.argv[0], *several, *(word for word in arguments if word not in MULTIRUN)]
    main()


@contextmanager
def one_job() -> Iterator[None]:
    """Sets sys.argv to the arguments of this job alone.

    Lightning starts the other processes of a distributed run with sys.argv; in a sweep each of them would
    otherwise start the whole sweep.
    """
    job = cast(DictConfig, HydraConfig.get())
    given = sys.argv
    words = given[1:]
    if job.mode == RunMode.MULTIRUN:
        words = list(job.overrides.task)
        with read_write(job):
            job.run.dir = job.runtime.output_dir
    sys.argv = [given[0], *_command, *words]
    try:
        yield
    finally:
        sys.argv = given


def concurrent_jobs(job: DictConfig) -> int:
    """The number of jobs of a sweep that run at the same time on this machine, as joblib counts."""
    launcher = job.launcher if job.mode == RunMode.MULTIRUN else {}
    return int(launcher.get("n_jobs") or 1)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Ends the program with a message, not a traceback, for errors of the user, a full disk, and Ctrl-C."""
    resume = "give the same command again to resume"
    try:
        yield
    except RibsegError as error:
        sys.exit(f"\nribseg: {error}")
    except InterpolationResolutionError as error:  # of the configuration: ${...}
        sys.exit(f"\nribseg: {error.full_key or 'a setting'} cannot be resolved: {reason(error)}")
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        sys.exit(f"\nribseg: the disk is full ({error}). Free some space, then {resume}.")
    except (KeyboardInterrupt, SystemExit) as error:
        # Lightning turns Ctrl-C during a training into an exit.
        if isinstance(error, SystemExit) and not isinstance(error.__context__, KeyboardInterrupt):
            raise
        sys.exit(f"\nribseg: interrupted. Nothing that was finished is lost; {resume}.")


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def main(cfg: DictConfig) -> float | None:
    """Runs the stages; returns the number of `objective=...`, for Hydra's sweepers."""
    job = HydraConfig.get()
    use_own_start_method()
    share_cores(concurrent_jobs(cast(DictConfig, job)))
    from ribseg.pipeline.run import objective, run  # imports torch
    from ribseg.pipeline.sweep import check_swept, recorded_failure

    with one_line_errors(), recorded_failure():
        if cfg.name is None:
            known = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
            program = f"ribseg {' '.join(_command)}" if _command else "python train.py"
            raise ConfigError(f"choose an experiment: {program} experiment={'|'.join(known)}")
        if job.mode == RunMode.RUN:
            check_swept(job.sweeper.params, job.overrides.task)
        with one_job():
            return objective(run(cfg, job.runtime.output_dir), cfg.objective)
    return None  # a failed job of a sweep; the others continue
