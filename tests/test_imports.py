"""Imports follow the data: hybrid -> bridge -> snn, validation -> {snn, bridge}; nothing imports validation."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALLOWED = {
    "snn": {"snn"},
    "bridge": {"snn", "bridge"},
    "hybrid": {"snn", "bridge", "hybrid"},
    "validation": {"snn", "bridge", "validation"},
}


def imported_packages(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names.add(node.module)
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("package", ALLOWED)
def test_import_direction(package):
    files = list((ROOT / package).rglob("*.py"))
    assert files
    for file in files:
        stray = imported_packages(file) & set(ALLOWED) - ALLOWED[package]
        assert not stray, f"{file} imports {stray}"
        assert package == "validation" or "brian2" not in imported_packages(file)


def test_training_and_evaluation_need_neither_norse_nor_brian2():
    code = "import sys, hybrid.train, hybrid.evaluate; print([m for m in ('norse', 'brian2') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_the_interface_of_hybrid_is_loaded_when_it_is_used():
    heavy = ("torch", "norse", "brian2", "sklearn", "matplotlib", "lightning")
    code = (
        f"import sys, hybrid; print([m for m in {heavy} if m in sys.modules], sorted(hybrid.__all__) == hybrid.__all__)"
    )
    code += "; [getattr(hybrid, name).__doc__ or print(name) for name in hybrid.__all__]"
    # Lightning loads matplotlib itself.
    code += "; print([m for m in ('norse', 'brian2', 'sklearn') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == ["[] True", "[]"]
