"""The commit that files record is that of the checkout that the package is part of."""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def commit_of(folder: Path) -> str:
    code = "from snn.runtime.provenance import git_commit; print(git_commit())"
    command = [sys.executable, "-c", code]
    result = subprocess.run(
        command, cwd=folder, env={"PYTHONPATH": str(folder)}, capture_output=True, text=True, check=True
    )
    return result.stdout.strip()


def test_a_package_inside_another_project_records_no_commit_of_that_project(tmp_path):
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.org"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    packages = tmp_path / ".venv"
    shutil.copytree(ROOT / "snn", packages / "snn", ignore=shutil.ignore_patterns("__pycache__", "*.h5"))
    assert commit_of(packages) == "unknown"
    git("init", "--quiet")
    (tmp_path / "README").write_text("another project")
    git("add", "README")
    git("commit", "--quiet", "--message", "first")
    assert commit_of(packages) == "unknown"
    (tmp_path / ".gitignore").write_text(".venv\n")
    assert commit_of(packages) == "unknown"
    git("add", "--force", ".venv")
    git("commit", "--quiet", "--message", "a checkout of the package")
    assert commit_of(packages) == git("rev-parse", "HEAD")
    with open(packages / "snn" / "learn.py", "a") as file:
        file.write("# changed\n")
    assert commit_of(packages) == git("rev-parse", "HEAD") + "-dirty"
