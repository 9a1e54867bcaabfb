"""Parts of a benchmark that fail, hang or die: their rows are kept, and nothing goes on behind them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.jobs import NO_TIME, Job, run_part


def test_a_measurement_that_fails_or_has_no_time_leaves_a_note():
    rows = []
    job = Job(rows.append, 60.0)
    job.attempt({"name": "a"}, lambda: {"seconds": 1.0})
    job.attempt({"name": "b"}, lambda: {"seconds": 1 / 0})
    Job(rows.append, 0.0).attempt({"name": "c"}, lambda: {"seconds": 1.0})
    assert rows[0] == {"name": "a", "seconds": 1.0}
    assert rows[1]["note"] == "ZeroDivisionError: division by zero"
    assert "1 / 0" in rows[1]["traceback"]
    assert rows[2] == {"name": "c", "note": NO_TIME}


def misbehave(job: Job, how: str, file: str) -> None:
    """A part that records a row and then goes wrong."""
    job.record({"how": how})
    if how == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "fails":
        raise OSError("no such card")
    if how == "hangs":
        with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as other:
            Path(file).write_text(str(other.pid))
            time.sleep(600)


@pytest.mark.parametrize(
    ("how", "seconds", "problem"),
    [("ends", 60, ""), ("dies", 60, "status -9"), ("fails", 60, "OSError: no such card"), ("hangs", 3, "after 3 s")],
)
def test_a_part_that_goes_wrong_keeps_its_rows_and_ends_with_all_it_started(tmp_path, how, seconds, problem):
    rows, file = [], tmp_path / "pid"
    said = run_part(misbehave, seconds, rows.append, how, str(file))
    assert rows == [{"how": how}]
    assert problem in said
    assert bool(said) == bool(problem)
    if how == "hangs":
        process = Path("/proc", file.read_text(), "stat")
        # Gone, or a zombie that nobody has waited for; a killed process needs a moment for that.
        for _ in range(100):
            if not process.exists() or process.read_text().split()[2] == "Z":
                break
            time.sleep(0.1)
        else:
            pytest.fail("the other process is still running")
