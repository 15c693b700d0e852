"""What a run says about the disk: the room before the first stage, and what to do when it is full."""

import errno
import os
import shutil
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf
from quick_run import folder_run

from ribseg.launch import one_line_errors


def test_a_reference_to_no_setting_ends_with_a_message():
    cfg = OmegaConf.create({"rib": {"steps": "${nowhere}"}})
    with (
        pytest.raises(SystemExit, match=r"ribseg: rib\.steps cannot be resolved: .*nowhere"),
        one_line_errors(),
    ):
        cfg.rib.steps += 1


def test_free_space_is_said_once_before_the_first_stage(tmp_path, tree, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=41_340_000_000))
    folder_run(tmp_path, tree, "run=[classifier,cam]")
    out = capsys.readouterr().out
    assert out.count("41.3 GB free in ") == 1
    assert out.index("disk: 41.3 GB") < out.index("classifier: ")
    folder_run(tmp_path, tree, "run=[classifier,cam]")
    assert "disk" not in capsys.readouterr().out  # nothing is left to be written


def test_a_full_disk_ends_the_run_with_what_to_do():
    full = r"the disk is full \(.*No space left.*same command again"
    with pytest.raises(SystemExit, match=full), one_line_errors():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(OSError, match="Permission"), one_line_errors():
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))
