import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from checkpoints import assert_same
from flax import linen as nn

from kerasflax import ArgumentError, VariablesError, read_variables, write_variables

OIHW = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)
TORCH = {"conv.weight": OIHW, "fc.weight": OIHW[0, 1], "fc.bias": OIHW[0, 0, 0]}
RENAME = {r"(\w+)\.weight": r"params/\1/kernel", r"(\w+)\.bias": r"params/\1/bias"}
TRANSPOSE = {"**/conv/kernel": (2, 3, 1, 0), "**/fc/kernel": [1, 0]}
FLAX = {
    "params": {
        "conv": {"kernel": np.einsum("oihw->hwio", OIHW)},
        "fc": {"kernel": TORCH["fc.weight"].T, "bias": TORCH["fc.bias"]},
    }
}


@pytest.fixture
def torch_file(tmp_path):
    safetensors.numpy.save_file(TORCH, tmp_path / "torch.safetensors")
    return tmp_path / "torch.safetensors"


@pytest.mark.parametrize("like", [None, FLAX], ids=["alone", "like"])
def test_axes_are_moved_by_pattern_of_the_new_path(torch_file, like):
    read = read_variables(torch_file, like=like, rename=RENAME, transpose=TRANSPOSE)
    assert_same(FLAX, read)


@pytest.mark.parametrize("suffix", [".msgpack", ".safetensors", ".orbax"])
def test_every_format_is_transposed_and_written_again(suffix, torch_file, tmp_path):
    write_variables({"w": OIHW.astype(ml_dtypes.bfloat16)}, tmp_path / f"w{suffix}")
    read = read_variables(tmp_path / f"w{suffix}", transpose={"w": (3, 0, 2, 1)})
    write_variables(read, tmp_path / f"new{suffix}")
    again = read_variables(tmp_path / f"new{suffix}")
    assert_same({"w": np.einsum("abcd->dacb", OIHW).astype(ml_dtypes.bfloat16)}, again)


def test_the_first_pattern_that_matches_is_used(torch_file):
    transpose = {"fc.weight": (0, 1), "*.weight": (2, 3, 1, 0)}
    expected = TORCH | {"conv.weight": FLAX["params"]["conv"]["kernel"]}
    assert_same(expected, read_variables(torch_file, transpose=transpose))


def test_weights_that_are_left_over_or_skipped_stay_as_they_are(torch_file):
    like = {"params": {"fc": FLAX["params"]["fc"]}}
    options = {"like": like, "rename": RENAME, "transpose": {"**/kernel": (1, 0)}}
    assert_same(like, read_variables(torch_file, skip="**/conv/**", **options))
    with pytest.raises(VariablesError, match="params/conv/kernel: not in the module"):
        read_variables(torch_file, **options)


@pytest.mark.parametrize(
    ("transpose", "message"),
    [
        ((1, 0), "`transpose` must be a dict from patterns of paths to the order of the axes"),
        ({}, "`transpose` must be a dict from patterns"),
        ({3: (1, 0)}, "`transpose` must be a dict from patterns"),
        ({"*": 1}, "The axes of '*' in `transpose` must be a permutation of 0, 1, ..., got int 1"),
        ({"*": (1, 2)}, "must be a permutation of 0, 1, ..., got tuple (1, 2)"),
        ({"*": (0.0, 1.0)}, "must be a permutation"),
        ({"*": (True, False)}, "must be a permutation"),
        ({"*": "10"}, "must be a permutation"),
        ({"conv.kernel": (1, 0)}, "No weight has a path that matches 'conv.kernel'"),
    ],
)
def test_an_invalid_transpose_is_an_error(transpose, message, torch_file):
    with pytest.raises(ArgumentError, match=re.escape(message)):
        read_variables(torch_file, transpose=transpose)


def test_axes_that_do_not_fit_are_listed_with_their_shapes(torch_file):
    with pytest.raises(ArgumentError) as error:
        read_variables(torch_file, transpose={"**": (1, 0)})
    assert "conv.weight: has the shape (2, 3, 4, 5), but 2 axes are given" in str(error.value)
    assert "fc.bias: has the shape (5,), but 2 axes are given" in str(error.value)
    assert "fc.weight" not in str(error.value)


def test_a_shape_whose_axes_are_in_another_order_is_an_error_that_names_transpose(torch_file):
    advice = re.escape('`transpose={"**/kernel": (2, 3, 1, 0)}`')
    with pytest.raises(VariablesError, match=advice):
        read_variables(torch_file, like=FLAX, rename=RENAME)
    wrong = {"params": {**FLAX["params"], "fc": {"kernel": OIHW[0, 0, :3], "bias": OIHW[0, 0, 0]}}}
    with pytest.raises(VariablesError) as error:
        read_variables(torch_file, like=wrong, rename=RENAME, transpose={"**/conv/*": (2, 3, 1, 0)})
    assert "transpose" not in str(error.value)


@pytest.mark.parametrize("suffix", [".msgpack", ".safetensors", ".orbax"])
def test_each_of_several_processes_reads_a_transposed_weight_as_a_whole(
    suffix, torch_file, tmp_path, monkeypatch
):
    write_variables(read_variables(torch_file, rename=RENAME), tmp_path / f"w{suffix}")
    monkeypatch.setattr("kerasflax._processes.are_several", lambda: True)
    monkeypatch.setattr("kerasflax._processes.is_local", lambda _: False)
    like = jax.tree.map(jnp.asarray, FLAX)
    read = read_variables(tmp_path / f"w{suffix}", like=like, path="**/kernel", transpose=TRANSPOSE)
    kernels = {name: {"kernel": layer["kernel"]} for name, layer in FLAX["params"].items()}
    assert_same({"params": kernels}, read)


def test_a_pattern_matches_the_path_of_a_boxed_weight(tmp_path):
    file = tmp_path / "w.msgpack"
    write_variables({"params": {"kernel": nn.Partitioned(OIHW[0, 0], (None, None))}}, file)
    like = {"params": {"kernel": OIHW[0, 0].T}}
    assert_same(like, read_variables(file, like=like, transpose={"**/kernel": (1, 0)}))
