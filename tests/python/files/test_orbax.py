import contextlib
import json
import os
import pickle
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint
import pytest
from checkpoints import ARRAY, MOST, NAMES, TREE, Runs, arrays, assert_same, in_plain_files, trees
from flax import linen as nn
from hypothesis import given, settings

from kerasflax import FileError, VariablesError, read_variables, write_variables


@pytest.mark.parametrize("name", ["", "/", "//"])
def test_an_orbax_checkpoint_cannot_hold_a_weight_without_a_name(name, tmp_path):
    with pytest.raises(VariablesError, match="no name for Orbax"):
        write_variables({name: np.ones(2), "a": {name: np.ones(2)}}, tmp_path / "new")
    assert os.listdir(tmp_path) == []
    write_variables({"a": {name: np.ones(2)}}, tmp_path / "new")
    np.testing.assert_array_equal(read_variables(tmp_path / "new")["a"][name], np.ones(2))


@settings(deadline=None, max_examples=15)
@given(trees(arrays(MOST, min_side=1), NAMES))
def test_orbax_returns_any_tree_bit_for_bit(tree):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "w")
        write_variables(tree, path)
        assert_same(tree, read_variables(path))


@pytest.mark.parametrize("checkpointer", ["StandardCheckpointer", "PyTreeCheckpointer"])
def test_a_checkpoint_that_a_flax_program_wrote_is_read(checkpointer, tmp_path):
    tree = {
        "params": {"w": nn.Partitioned(jnp.ones(2), ("x",)), "l": [jnp.zeros(2)]},
        "step": 3,
        "none": None,
    }
    with getattr(orbax.checkpoint, checkpointer)() as writer:
        writer.save(tmp_path / "c", tree)
    like = {"params": {"w": jnp.ones(2), "l": [jnp.zeros(2)]}, "step": 3, "none": None}
    jax.tree.map(np.testing.assert_array_equal, read_variables(tmp_path / "c", like=like), like)


def test_a_flax_program_reads_our_checkpoint(tmp_path):
    write_variables(TREE, tmp_path / "c")
    with orbax.checkpoint.StandardCheckpointer() as reader:
        restored = reader.restore(tmp_path / "c", jax.tree.map(jnp.zeros_like, TREE))
    jax.tree.map(np.testing.assert_array_equal, restored, TREE)


def test_the_error_for_a_directory_of_checkpoints_lists_them(tmp_path):
    with orbax.checkpoint.CheckpointManager(tmp_path / "run") as manager:
        manager.save(5, args=orbax.checkpoint.args.StandardSave(TREE))
    with pytest.raises(
        FileError,
        match=r"without an Orbax checkpoint.*\nGive one of the checkpoints in it: .*/run/5/default",
    ):
        read_variables(tmp_path / "run")
    assert_same(TREE, read_variables(tmp_path / "run/5/default"))


@pytest.mark.filterwarnings("ignore")
def test_a_truncated_checkpoint_is_an_error_or_reads_correctly(tmp_path):
    write_variables(TREE, tmp_path / "w")
    for file in [each for each in (tmp_path / "w").rglob("*") if each.is_file()]:
        original = file.read_bytes()
        failed = 0
        for i in range(0, 20, 5):
            file.write_bytes(original[: len(original) * i // 20])
            try:
                assert_same(TREE, read_variables(tmp_path / "w"))
            except FileError:
                failed += 1
        file.write_bytes(original)
        if file.name in ("_METADATA", "manifest.ocdbt") and file.parent == tmp_path / "w":
            assert failed


def test_a_checkpoint_with_chunks_larger_than_its_arrays_is_refused_before_allocation(tmp_path):
    in_plain_files(tmp_path / "c")
    assert_same(TREE, read_variables(tmp_path / "c"))
    description = tmp_path / "c/params.Dense_0.kernel/.zarray"
    description.write_text(
        json.dumps(json.loads(description.read_text()) | {"chunks": [2**40, 2**20]})
    )
    with pytest.raises(FileError, match="a chunk of an array is larger than the array itself"):
        read_variables(tmp_path / "c")


def test_a_checkpoint_with_pipes_or_devices_is_refused(tmp_path):
    in_plain_files(tmp_path / "c")
    data = tmp_path / "c/params.Dense_0.kernel/0.0"
    data.unlink()
    for make in (os.mkfifo, lambda path: path.symlink_to("/dev/zero")):
        make(data)
        with pytest.raises(FileError, match=r"'params.Dense_0.kernel/0.0' in it is not a file"):
            read_variables(tmp_path / "c")
        data.unlink()


@pytest.mark.parametrize(
    "name",
    ["_CHECKPOINT_METADATA", "_METADATA", "aggregate", "checkpoint", "array_metadatas/process_0"],
)
def test_a_pickle_in_a_checkpoint_is_not_loaded(name, tmp_path):
    write_variables(TREE, tmp_path / "c")
    (tmp_path / "c" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "c" / name).write_bytes(pickle.dumps(Runs()))
    with contextlib.suppress(FileError):
        assert_same(TREE, read_variables(tmp_path / "c"))


def test_a_large_array_is_written_to_a_checkpoint_in_chunks(tmp_path):
    write_variables({"a": np.zeros((2**24, 3), np.float32)}, tmp_path / "c")
    with orbax.checkpoint.PyTreeCheckpointer() as reader:
        entry = reader.metadata(tmp_path / "c").item_metadata.tree["a"]
    assert 4 * np.prod(entry.storage.chunk_shape) <= 2**25


def test_a_checkpoint_with_one_array_for_two_weights_is_refused(tmp_path):
    with orbax.checkpoint.PyTreeCheckpointer() as writer:
        writer.save(tmp_path / "c", {"a.b": np.ones(2), "a": {"b": np.zeros(2)}})
    with pytest.raises(
        FileError,
        match=r"one array for two weights\.\n  'a[./]b': has the same name in Orbax as 'a[./]b'",
    ):
        read_variables(tmp_path / "c")


def test_a_checkpoint_that_is_replaced_while_it_is_read_is_read_again(tmp_path, monkeypatch):
    path = tmp_path / "c"
    write_variables({"a": ARRAY, "b": ARRAY}, path)
    metadata = orbax.checkpoint.PyTreeCheckpointer.metadata
    replaced = []

    def once(*arguments):
        result = metadata(*arguments)
        if not replaced:
            replaced.append(True)
            write_variables({"a": ARRAY + 1, "b": ARRAY + 1}, path)
        return result

    monkeypatch.setattr(orbax.checkpoint.PyTreeCheckpointer, "metadata", once)
    assert_same({"a": ARRAY + 1, "b": ARRAY + 1}, read_variables(path))


def test_a_checkpoint_of_links_to_files_is_read(tmp_path):
    write_variables(TREE, tmp_path / "c")
    for i, file in enumerate(
        each for each in sorted((tmp_path / "c").rglob("*")) if each.is_file()
    ):
        file.rename(tmp_path / f"blob{i}")
        file.symlink_to(tmp_path / f"blob{i}")
    assert_same(TREE, read_variables(tmp_path / "c"))
