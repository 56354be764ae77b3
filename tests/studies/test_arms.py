"""The pool of a study's jobs."""

import os

import pytest
from arms import side_by_side


def test_a_job_that_fails_is_named_and_stops_no_other(tmp_path, capsys):
    jobs = [(str(tmp_path / "missing" / "folder"),), (str(tmp_path / "made"),)]
    with pytest.raises(RuntimeError, match=r"these jobs failed:\n.*missing/folder.*FileNotFoundError"):
        side_by_side(os.mkdir, jobs, 1)
    assert (tmp_path / "made").is_dir()
    assert "FileNotFoundError" in capsys.readouterr().err


def test_a_process_that_is_killed_ends_the_study_and_hangs_nothing():
    with pytest.raises(RuntimeError, match="BrokenProcessPool"):
        side_by_side(os._exit, [(9,)], 1)
