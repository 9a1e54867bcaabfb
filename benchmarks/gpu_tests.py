"""Part ``tests`` of ``python -m benchmarks.gpu``: the tests marked ``gpu``."""

import contextlib
import io
import os
from pathlib import Path

import pytest

from benchmarks.jobs import Job, Row

ROOT = Path(__file__).resolve().parents[1]
SHOWN = 4000
"""Characters, from the end, of a failure that are recorded."""


class Recorder:
    """A plugin of pytest that records each test as it ends."""

    def __init__(self, job: Job) -> None:
        self.job = job

    @pytest.hookimpl
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        # A test that is set up and fails there, or is skipped, is never called.
        if report.when == "call" or report.outcome != "passed":
            row: Row = {"test": report.nodeid, "outcome": report.outcome, "seconds": report.duration}
            if report.failed:
                row |= {"note": report.longreprtext.strip().splitlines()[-1], "traceback": report.longreprtext[-SHOWN:]}
            self.job.record(row)

    @pytest.hookimpl
    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.job.record({"test": report.nodeid, "outcome": "failed", "traceback": report.longreprtext[-SHOWN:]})


def measure_tests(job: Job, tests: tuple[str, ...]) -> None:
    """Run the tests marked ``gpu`` in these files and folders, in this process, and record each."""
    os.chdir(ROOT)
    options = ["-m", "gpu", "-p", "no:cacheprovider", "--override-ini", "addopts=", "-q"]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        status = pytest.main([*options, *tests], plugins=[Recorder(job)])
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        lines = printed.getvalue().strip().splitlines() or ["no message"]
        job.record({"test": " ".join(tests), "outcome": "failed", "note": f"pytest, status {int(status)}: {lines[-1]}"})
