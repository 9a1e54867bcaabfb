import h5py
import numpy as np
import pytest

from snn.runtime.errors import UserError, check
from snn.runtime.h5 import PARENT, Schema, content_digest, read_file, write_file
from snn.runtime.tree import Stored

SCHEMA = Schema("test/1", "the remedy")
TREE = {
    "layers": {"conv1": {"weight": np.arange(6, dtype=np.float32).reshape(2, 3), "scalar": np.array(3), "unit": "mV"}},
    "classes": ["a", "b"],
    "empty": [],
    "steps": (1, 2),
    "rate": 0.1,
    "count": 7,
    "flag": True,
    "absent": None,
}


def write(path, tree=TREE):
    return write_file(path, SCHEMA, tree, seed=3, command="a command", parent_digest="abc")


def test_what_is_written_is_read_back(tmp_path):
    path = tmp_path / "file.h5"
    digest = write(path)
    tree = read_file(path, SCHEMA, Stored.loaded)
    assert tree["digest"] == digest
    assert tree[PARENT] == "abc"
    assert (tree["seed"], tree["command"], tree["schema"]) == (3, "a command", "test/1")
    assert tree["layers"]["conv1"]["unit"] == "mV"
    weight = tree["layers"]["conv1"]["weight"]
    assert weight.dtype == np.float32
    assert np.array_equal(weight, TREE["layers"]["conv1"]["weight"])
    assert tree["layers"]["conv1"]["scalar"].shape == ()
    assert (tree["classes"], tree["empty"], tree["steps"]) == (["a", "b"], [], [1, 2])
    assert (tree["rate"], tree["count"], tree["flag"]) == (0.1, 7, True)
    assert "absent" not in tree
    assert {"git_commit", "versions", "created"} <= set(tree)


def test_digest_covers_values_names_and_types_but_not_provenance():
    base = content_digest(TREE)
    assert content_digest(TREE | {"created": "now", "command": "x", "git_commit": "y"}) == base
    assert content_digest(dict(reversed(TREE.items()))) == base
    changed = {"weight": np.arange(6, dtype=np.float64).reshape(2, 3)}
    for other in (TREE | {"rate": 0.2}, TREE | {"seed": 1}, TREE | {"layers": {"conv1": changed}}):
        assert content_digest(other) != base


def test_altered_truncated_foreign_and_missing_files_are_refused(tmp_path):
    path = tmp_path / "file.h5"

    def refused(word, schema=SCHEMA):
        with pytest.raises(UserError, match=word) as caught:
            read_file(path, schema, Stored.loaded)
        assert "file.h5" in str(caught.value)
        assert "the remedy" in str(caught.value)

    refused("does not exist")
    write(path)
    refused("schema 'test/1', expected 'test/2'", schema=Schema("test/2", "the remedy"))
    with h5py.File(path, "r+") as file:
        file["layers/conv1/weight"][0, 0] = 5
    refused("digest")
    write(path)
    whole = path.read_bytes()
    for size in (0, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        refused("truncated|not an HDF5|digest")
    path.write_text("plain text")
    refused("not an HDF5")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file.h5"
    write(path)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write(path, TREE | {"bad": object()})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_missing_parts_are_the_files_fault_and_errors_of_the_reader_are_not(tmp_path):
    path = tmp_path / "file.h5"
    write(path)
    with pytest.raises(
        UserError, match=r"file.h5 is not of schema 'test/1': there is no 'layers/conv1/kernel'; .*the remedy"
    ):
        read_file(path, SCHEMA, lambda tree: tree["layers"]["conv1"]["kernel"])
    with pytest.raises(UserError, match="not of schema 'test/1': too fast"):
        read_file(path, SCHEMA, lambda tree: check(tree["rate"] > 1, "too fast"))
    for wrong in (lambda tree: tree["count"].shape, lambda tree: {}["a"], lambda tree: tree["steps"] + 1):
        with pytest.raises((AttributeError, KeyError, TypeError)):
            read_file(path, SCHEMA, wrong)
