"""Commands in processes that start at once: forks of one that has imported everything and done nothing else.

An interpreter of its own takes seconds to import torch, Lightning and torchmetrics; that is for tests of it.
"""

import multiprocessing
import os
import runpy
import socket
import sys

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["ribseg.launch", "ribseg.pipeline.run", "ribseg.modules", "timm"])


def start_command(line, folder, output, **environment):
    """Starts a program, as `python LINE` in a folder would; its output goes to a file.

    Args:
        line: path of the program and its arguments.
        folder: where it runs.
        output: file of what it prints.
        environment: variables that are added.

    Returns:
        The process, with `pid`, `join` and `exitcode`.
    """
    process = SERVER.Process(target=_run, args=(list(map(str, line)), str(folder), str(output), environment))
    process.start()
    return process


def start_ranks(number, line, folder):
    """Starts a command as `torchrun --nproc-per-node=NUMBER` does; process N prints into `rank-N.txt`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GROUP_RANK": "0"}
    sizes = dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(number))
    elastic = {"TORCHELASTIC_RUN_ID": "test", "TORCHELASTIC_USE_AGENT_STORE": "False"}
    return [
        start_command(
            line,
            folder,
            folder / f"rank-{rank}.txt",
            **group,
            **sizes,
            **elastic,
            RANK=str(rank),
            LOCAL_RANK=str(rank),
        )
        for rank in range(number)
    ]


def wait_for(processes, seconds=240):
    """Waits until all have ended; returns their exit codes. Kills those that have not."""
    for process in processes:
        process.join(seconds)
    late = [process for process in processes if process.is_alive()]
    for process in late:
        process.kill()
        process.join()
    assert not late, "processes did not end"
    return [process.exitcode for process in processes]


def _run(line, folder, output, environment):
    os.chdir(folder)
    os.environ.update(environment)
    with open(output, "w") as file:  # noqa: PTH123
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    import torch
    from pytorch_lightning.utilities import rank_zero_only

    rank_zero_only.rank = int(environment.get("RANK", 0))  # otherwise read when Lightning is imported
    torch.set_num_threads(1)
    sys.argv = line
    sys.path.insert(0, os.path.dirname(line[0]))  # noqa: PTH120
    try:
        runpy.run_path(line[0], run_name="__main__")
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
