import itertools

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from checkpoints import SUFFIXES, TREE, assert_same

from kerasflax import read_variables, write_variables

LARGE = {"a": np.arange(5_000_000.0), "b": {"c": np.ones((5_000, 1_000)).T, "d": np.ones(3)}}


def reports(path, tree=LARGE):
    calls = []
    write_variables(tree, path, progress=lambda *done: calls.append(done))
    return calls


@pytest.mark.parametrize("suffix", SUFFIXES[:2])
def test_progress_of_writing_rises_to_the_total_in_pieces(suffix, tmp_path):
    path = tmp_path / f"w{suffix}"
    calls = reports(path)
    assert len(calls) >= 4
    [total] = {total for _, total in calls}
    assert total == pytest.approx(path.stat().st_size, rel=1e-4)
    done = [0, *(done for done, _ in calls)]
    assert all(0 < after - before <= 2**25 for before, after in itertools.pairwise(done))
    assert done[-1] == total
    assert_same(LARGE, read_variables(path))


@pytest.mark.parametrize("suffix", SUFFIXES[:2])
def test_a_small_file_is_reported_once(suffix, tmp_path):
    [(done, total)] = reports(tmp_path / f"w{suffix}", TREE)
    assert done == total


def test_an_orbax_checkpoint_is_written_without_reports(tmp_path):
    assert reports(tmp_path / "w", TREE) == []


@pytest.mark.parametrize("suffix", SUFFIXES[:2])
def test_a_write_can_be_interrupted_between_pieces_and_leaves_the_old_file(suffix, tmp_path):
    def interrupt(*done):
        raise KeyboardInterrupt

    path = tmp_path / f"w{suffix}"
    write_variables(TREE, path)
    with pytest.raises(KeyboardInterrupt):
        write_variables(LARGE, path, progress=interrupt)
    assert list(tmp_path.iterdir()) == [path]
    assert_same(TREE, read_variables(path))


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((0, 3), np.float32),
        np.asarray(2.5),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(10, dtype=np.int16)[::3],
        np.arange(4, dtype=ml_dtypes.bfloat16),
        np.arange(4, dtype=ml_dtypes.float8_e4m3fn).reshape(2, 2).T,
    ],
    ids=["empty", "scalar", "Fortran", "strided", "bfloat16", "float8"],
)
@pytest.mark.parametrize("suffix", SUFFIXES[:2])
def test_arrays_are_written_in_c_order_with_any_dtype(suffix, array, tmp_path):
    write_variables({"a": array, "b": array}, tmp_path / f"w{suffix}")
    read = read_variables(tmp_path / f"w{suffix}")
    for found in (read["a"], read["b"]):
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array)
        assert found.shape == array.shape


def test_a_safetensors_file_has_the_bytes_of_the_package(tmp_path):
    names = ["z", "é", 'a "quoted" \\ name', "\x01"]
    arrays = {name: np.arange(i + 1, dtype=np.float32) for i, name in enumerate(names)}
    arrays["half"] = np.arange(3, dtype=np.float16)
    arrays["wide"] = np.arange(3, dtype=np.int64)
    path = tmp_path / "w.safetensors"
    write_variables(arrays, path)
    assert path.read_bytes() == safetensors.numpy.save(arrays, {"format": "flax"})
