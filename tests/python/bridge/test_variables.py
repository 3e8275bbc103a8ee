import collections

import flax.core
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from flax import linen as nn
from flax import struct
from hypothesis import given
from hypothesis import strategies as st

from kerasflax import StateError, VariablesError
from kerasflax.bridge import _variables
from kerasflax.bridge._variables import fitted, named_leaves, split

ARRAY = np.ones(2, np.float32)
Pair = collections.namedtuple("Pair", "a b")


@struct.dataclass
class Moments:
    mean: jax.Array
    var: jax.Array


@pytest.mark.parametrize(
    ("tree", "paths"),
    [
        (
            {"params": {"Dense_0": {"kernel": 1, "bias": 2}}},
            ["params/Dense_0/bias", "params/Dense_0/kernel"],
        ),
        (flax.core.freeze({"params": {"a": 1}}), ["params/a"]),
        ({"params": {"w": nn.Partitioned(ARRAY, names=("x",))}}, ["params/w"]),
        (
            {"params": {"w": nn.Partitioned(nn.Partitioned(ARRAY, names=("x",)), names=("y",))}},
            ["params/w"],
        ),
        ({"state": {"m": Moments(ARRAY, ARRAY)}}, ["state/m/mean", "state/m/var"]),
        ({"state": {"m": [Moments(ARRAY, None), ARRAY]}}, ["state/m/0", "state/m/1"]),
        ({"state": (1, [2, None])}, ["state/0", "state/1/0"]),
        ({"state": Pair(1, 2)}, ["state/a", "state/b"]),
        ({"params": {"a.b": {0: 1, 1: 2}}}, ["params/a.b/0", "params/a.b/1"]),
        ({}, []),
    ],
)
def test_each_leaf_is_named_by_its_path(tree, paths):
    assert list(named_leaves(tree)) == paths


names = st.text("abc_.0", min_size=1, max_size=3)
trees = st.recursive(
    st.integers() | st.none() | st.just("static"),
    lambda inner: (
        st.dictionaries(names, inner, max_size=3) | st.lists(inner, max_size=3) | st.tuples(inner)
    ),
    max_leaves=12,
)


@given(st.dictionaries(names, trees, max_size=3))
def test_merging_a_split_tree_gives_the_tree_back(tree):
    template, arrays = split(tree)
    assert template.merge(arrays) == tree
    assert list(arrays) == [path for path, leaf in named_leaves(tree).items() if leaf != "static"]


def test_a_typed_key_is_split_into_its_data_and_merged_into_a_typed_key():
    key = jax.random.key(3, impl="rbg")
    template, arrays = split({"state": {"key": key}})
    assert arrays["state/key"].dtype == jnp.uint32
    assert template.merge(arrays)["state"]["key"] == key


EXPECTED = {"params/w": ARRAY, "params/b": np.float32(0), "stats/n": np.zeros(3, np.float32)}


def anywhere(path, shape):
    return None


def fit(given, **kwargs):
    return fitted(
        EXPECTED,
        given,
        fixed_shape=lambda path: path.startswith("params"),
        place=anywhere,
        **kwargs,
    )


def test_every_mismatch_is_listed_by_path_with_both_sides():
    with pytest.raises(VariablesError) as error:
        fit(
            {
                "params": {"w": np.ones((2, 1)), "extra": ARRAY},
                "stats": {"n": "text", "m": ARRAY},
                "kernel": ARRAY,
            }
        )
    assert str(error.value) == (
        "`variables` does not fit the module in 6 places:\n"
        "  stats/n: str 'text' is not an array of numbers\n"
        "  params/b: missing, expected a float32 scalar\n"
        "  kernel: not in the module, got float32(2)\n"
        "  params/extra: not in the module, got float32(2)\n"
        "  params/w: expected float32(2), got shape (2, 1)\n"
        "  stats/m: not in the module, got float32(2)\n"
        "The module's collections: params, stats. Compare the variables with "
        "`layer.flax_variables` of a layer without `variables`."
    )


def test_variables_that_are_not_a_mapping_are_an_error():
    with pytest.raises(VariablesError, match=r"must be a dict of collections, got list \[1\]"):
        fit([1])


def test_state_takes_the_given_shape_but_params_do_not():
    arrays = fit({"params": {"w": ARRAY, "b": 1.5}, "stats": {"n": np.zeros((7, 2))}})
    assert arrays["stats/n"].shape == (7, 2)
    assert arrays["params/b"].dtype == jnp.float32


def test_a_collection_that_the_module_does_not_create_is_kept_as_given():
    arrays = fit(
        {"params": {"w": ARRAY, "b": 0.0}, "stats": {"n": ARRAY}, "constants": {"c": jnp.arange(2)}}
    )
    assert arrays["constants/c"].dtype == jnp.int32


def test_integers_are_cast_to_floats_and_floats_to_integers_if_no_value_is_lost():
    given = {"params": {"w": np.array([1, 2]), "b": True}, "stats": {"n": ARRAY}}
    assert {array.dtype.name for array in fit(given).values()} == {"float32"}
    expected = {"s/n": np.zeros(2, np.uint32)}
    from_floats = fitted(
        expected,
        {"s": {"n": np.array([3.0, 2.0**32 - 1])}},
        fixed_shape=lambda path: True,
        place=anywhere,
    )
    assert from_floats["s/n"].tolist() == [3, 2**32 - 1]
    assert from_floats["s/n"].dtype == jnp.uint32
    for lost in ([1.5, 0.0], [-1.0, 0.0], [np.nan, 0.0], [2.0**32, 0.0]):
        with pytest.raises(
            VariablesError,
            match=r"n: expected uint32\(2\), got values of float64 that this dtype cannot hold",
        ):
            fitted(
                expected,
                {"s": {"n": np.array(lost)}},
                fixed_shape=lambda path: True,
                place=anywhere,
            )


def test_complex_numbers_are_cast_to_real_numbers_if_they_are_real(recwarn):
    for values, are_real in ([1 + 0j, 2], True), ([1j, 2], False):
        given = {"params": {"w": np.array(values), "b": 0.0}, "stats": {"n": ARRAY}}
        if are_real:
            assert fit(given)["params/w"].tolist() == [1, 2]
        else:
            with pytest.raises(
                VariablesError,
                match=r"w: expected .*, got values of complex128 that this dtype cannot hold",
            ):
                fit(given)
    assert not recwarn.list


def test_given_half_precision_stays_half_precision():
    given = {"params": {"w": jnp.ones(2, jnp.bfloat16), "b": 0.0}, "stats": {"n": ARRAY}}
    assert fit(given)["params/w"].dtype == jnp.bfloat16


def test_variables_get_their_names_from_scopes_and_their_dtypes_from_the_arrays():
    arrays = {"params/Dense_0/kernel": jnp.ones((2, 3)), "stats/key": jnp.zeros(2, jnp.uint32)}
    with keras.name_scope("layer"):
        variables = _variables.create(
            arrays,
            dict.fromkeys(arrays),
            trainable=lambda path: path.startswith("params"),
            parameter_dtype="bfloat16",
        )
    kernel, key = variables.values()
    assert (kernel.path, kernel.trainable, kernel.dtype) == (
        "layer/params/Dense_0/kernel",
        True,
        "bfloat16",
    )
    assert (key.path, key.trainable, key.dtype) == ("layer/stats/key", False, "uint32")


def test_an_update_that_changes_the_structure_names_the_path():
    variables = _variables.create(
        {"cache/k": jnp.ones(2)},
        {"cache/k": None},
        trainable=lambda path: False,
        parameter_dtype=None,
    )
    with pytest.raises(StateError, match="Net created the variable cache/new"):
        _variables.checked_update(variables, {"cache/new": ARRAY}, "Net")
    with pytest.raises(
        StateError, match=r"Net changed the shape of cache/k in a call from \(2\) to \(3, 1\)"
    ):
        _variables.checked_update(variables, {"cache/k": np.ones((3, 1))}, "Net")
