"""Imports follow the data: hybrid -> bridge -> snn, validation -> {snn, bridge}; nothing imports validation.

Inside a package they form no circle, no module takes another's private names, and help needs no heavy library.
"""

import ast
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALLOWED = {
    "snn": {"snn"},
    "bridge": {"snn", "bridge"},
    "hybrid": {"snn", "bridge", "hybrid"},
    "validation": {"snn", "bridge", "validation"},
}
HEAVY = {"torch", "norse", "h5py", "sklearn", "matplotlib"}


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


class Modules:
    """The modules of some packages under ``root``, by dotted name, and what each imports of them."""

    def __init__(self, root: Path, packages: list[str]) -> None:
        files = [file for package in packages for file in sorted((root / package).rglob("*.py"))]
        names = [".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__") for file in files]
        self.trees = {name: ast.parse(file.read_text()) for name, file in zip(names, files, strict=True)}

    def bindings(self, node: ast.AST) -> Iterator[tuple[str, str, str | None]]:
        """Of an import statement: name that it binds, module that it imports, name that it takes from there."""
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name in self.trees:
                    yield alias.asname or alias.name, alias.name, None
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                if inner in self.trees:
                    yield alias.asname or alias.name, inner, None
                elif node.module in self.trees:
                    yield alias.asname or alias.name, node.module, alias.name

    def at_import(self, name: str) -> set[str]:
        """Modules that ``name`` imports outside functions, those for type checkers alone included."""
        imports, nodes = set(), [self.trees[name]]
        while nodes:
            node = nodes.pop()
            imports |= {module for _, module, _ in self.bindings(node)}
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                nodes += ast.iter_child_nodes(node)
        return imports - {name}

    def circle(self) -> list[str]:
        """Modules of a circle of imports, the first again at the end; empty if there is none."""
        try:
            TopologicalSorter({name: self.at_import(name) for name in self.trees}).prepare()
        except CycleError as error:
            return error.args[1]
        return []

    def private_uses(self, tree: ast.Module, own: str) -> list[str]:
        """Private names of other modules that ``tree``, the module ``own``, imports or reads as attributes."""
        uses, bound = [], set()
        for node in ast.walk(tree):
            for local, module, name in self.bindings(node):
                if module != own:
                    # Of modules and classes; an object may have private attributes of a library's class.
                    bound |= {local} if name is None or name[0].isupper() else set()
                    if is_private(name or module.rpartition(".")[2]):
                        uses.append(f"{own}: {module}" + (f".{name}" if name else ""))
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and is_private(node.attr):
                owner = ast.unparse(node.value)
                if any(owner == local or owner.startswith(f"{local}.") for local in bound):
                    uses.append(f"{own}: {owner}.{node.attr}")
        return uses


def is_private(name: str) -> bool:
    # Named tuples have public methods with an underscore, so that these cannot be fields.
    public = {"_asdict", "_fields", "_make", "_replace"}
    return name.startswith("_") and not name.endswith("__") and name not in public


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_inside_a_package_form_no_circle(package):
    assert Modules(ROOT, [package]).circle() == []


@pytest.mark.parametrize("package", ALLOWED)
def test_no_module_uses_private_names_of_another(package):
    modules = Modules(ROOT, list(ALLOWED))
    names = [name for name in modules.trees if name.split(".")[0] == package]
    assert [use for name in names for use in modules.private_uses(modules.trees[name], name)] == []


@pytest.mark.parametrize("folder", ["tests", "benchmarks", "docs"])
def test_tests_and_scripts_use_no_private_names(folder):
    modules = Modules(ROOT, list(ALLOWED))
    files = list((ROOT / folder).rglob("*.py"))
    assert files
    assert [use for file in files for use in modules.private_uses(ast.parse(file.read_text()), file.name)] == []


def test_circles_and_private_names_are_recognised(tmp_path):
    sources = {
        "__init__": "",
        "a": "import p.inner.c\ndef later():\n    from p import b",
        "b": "from p import a\nfrom p.a import Rows, __doc__ as text\ntext._strip(), Rows._first, a.rows",
        "inner/__init__": "from p.inner.c import _hidden as shown",
        "inner/c": "from typing import TYPE_CHECKING\nimport p.b as other\n_hidden = other.Table._rows, other.rows",
    }
    for name, source in sources.items():
        file = tmp_path / "p" / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source)
    modules = Modules(tmp_path, ["p"])
    assert set(modules.circle()) == {"p.a", "p.b", "p.inner.c"}
    uses = [use for name, tree in modules.trees.items() for use in modules.private_uses(tree, name)]
    assert sorted(uses) == ["p.b: Rows._first", "p.inner.c: other.Table._rows", "p.inner: p.inner.c._hidden"]
    (tmp_path / "p/inner/c.py").write_text("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import p.b")
    assert set(Modules(tmp_path, ["p"]).circle()) == {"p.a", "p.b", "p.inner.c"}
    (tmp_path / "p/inner/c.py").write_text("def later():\n    import p.b\nclass Later:\n    import p.inner")
    assert set(Modules(tmp_path, ["p"]).circle()) == {"p.inner", "p.inner.c"}
    (tmp_path / "p/inner/c.py").write_text("def later():\n    import p.b")
    assert Modules(tmp_path, ["p"]).circle() == []


def modules_after(code: str, names: set[str]) -> set[str]:
    """Which of ``names`` are loaded once ``code`` has run in a new process."""
    code = f"import sys; {code}; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return names & set(result.stdout.split())


def test_training_and_evaluation_need_neither_norse_nor_brian2():
    assert modules_after("import hybrid.train, hybrid.evaluate", {"hybrid.evaluate", "norse", "brian2"}) == {
        "hybrid.evaluate"
    }


def test_packages_load_nothing_heavy_before_it_is_needed():
    assert modules_after("import snn, bridge, hybrid, validation", HEAVY | {"hybrid", "brian2"}) == {"hybrid"}


def test_help_takes_little_time_and_no_heavy_library():
    command = [sys.executable, "-X", "importtime", "-m", "snn.learn", "--help"]
    seconds = []
    # The least of three: a process that shares its core with another takes longer.
    while len(seconds) < 3 and min(seconds, default=2) >= 1.5:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert "--preset" in result.stdout
    modules = {name.split(".")[0] for name in re.findall(r"\| +([\w.]+)$", result.stderr, re.MULTILINE)}
    assert {"tyro", "snn"} <= modules
    assert modules & HEAVY == set()
    assert min(seconds) < 1.5


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


def test_modules_that_not_every_system_has_are_not_needed(tmp_path):
    code = f"""
import os, pkgutil, sys
import h5py, lightning, norse, numba, tensorboard, torch, tyro
from torch.utils.tensorboard import SummaryWriter
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None
for name in ("fork", "register_at_fork", "sched_getaffinity", "getppid", "killpg", "getpgrp"):
    delattr(os, name)
import bridge, hybrid, snn
for package in (snn, bridge, hybrid):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.endswith("__main__") and not module.name.startswith("bridge.export"):
            __import__(module.name)
from snn.learn import main
flags = ["--data", "digits", "--limit-train", "40", "--maps", "4", "--min-updates", "3", "--no-figures"]
sys.exit(main([*flags, "--out", {str(tmp_path / "snn.h5")!r}]))
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"snn.h5", "snn_learning"}
