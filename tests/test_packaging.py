"""An installed copy has every file of the packages that a checkout has; the extra ``dev`` has what the tests need."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = ("snn", "bridge", "hybrid", "validation")


def package_files() -> list[Path]:
    files = [file for package in PACKAGES for file in (ROOT / package).rglob("*") if file.is_file()]
    return [file.relative_to(ROOT) for file in files if "__pycache__" not in file.parts]


def test_every_module_lies_in_a_package_that_is_installed():
    assert PROJECT["tool"]["setuptools"]["packages"]["find"]["include"] == [f"{package}*" for package in PACKAGES]
    folders = {file.parent for file in package_files() if file.suffix == ".py"}
    assert len(folders) > len(PACKAGES)
    for folder in folders:
        for package in (folder, *folder.parents[:-1]):
            assert (ROOT / package / "__init__.py").is_file(), f"{folder} is not installed: no {package}/__init__.py"


def test_every_data_file_is_package_data():
    declared = {
        file.relative_to(ROOT)
        for package, patterns in PROJECT["tool"]["setuptools"]["package-data"].items()
        for pattern in patterns
        for file in (ROOT / package.replace(".", "/")).glob(pattern)
    }
    # Setuptools takes stubs by itself.
    present = {file for file in package_files() if file.suffix not in (".py", ".pyi")}
    assert {file.suffix for file in present} >= {".h5", ".csv"}
    assert declared == present


def test_the_extra_dev_has_what_the_tests_import():
    extras = PROJECT["project"]["optional-dependencies"]
    names = {re.match(r"[\w-]+", requirement)[0] for requirement in extras["dev"]}
    assert names >= {"pytest", "pytest-xdist", "hypothesis", "scipy", "ruff", "mypy"}
