import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from conformance import LINEN
from conformance_nnx import NNX

from kerasflax import FlaxLayer
from kerasflax.bridge._forms import split
from kerasflax.bridge._variables import named_leaves

CASES = {
    f"{kind}: {name}": case
    for kind, table in {"linen": LINEN, "nnx": NNX}.items()
    for name, case in table.items()
}
cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
SEED = 3


def keras_inputs(case):
    def tensor(path, x):
        shape = {
            "none": x.shape,
            "batch": (None, *x.shape[1:]),
            "all": (None,) * (x.ndim - 1) + x.shape[-1:]
            if np.issubdtype(x.dtype, np.floating)
            else (None,) * x.ndim,
        }[case.unknown]
        name = getattr(path[-1], "key", None) if len(path) == 1 else None
        return keras.Input(batch_shape=shape, dtype=str(x.dtype), name=name)

    return jax.tree_util.tree_map_with_path(tensor, case.first)


def layer_of(case):
    return FlaxLayer(case.module, method=case.method, seed=SEED)


def leaves_by_order(tree):
    return [leaf for leaf in jax.tree.leaves(tree) if hasattr(leaf, "shape")]


def raw(leaf):
    if isinstance(leaf, int):
        return leaf
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


def assert_same(got, expected, **tolerance):
    got, expected = named_leaves(got), named_leaves(expected)
    assert got.keys() == expected.keys()
    for path in expected:
        np.testing.assert_allclose(
            raw(got[path]),
            raw(expected[path]),
            err_msg=path,
            **({"rtol": 1e-5, "atol": 1e-6} | tolerance),
        )


def without(names, tree):
    return {name: value for name, value in tree.items() if name not in names}


def state(calls=0):
    return jnp.array([SEED, calls], jnp.uint32)


@cases
def test_the_output_spec_has_the_shapes_and_dtypes_of_the_outputs(case):
    layer = layer_of(case)
    layer(keras_inputs(case))
    symbolic = layer(
        jax.tree.map(lambda x: keras.Input(batch_shape=x.shape, dtype=str(x.dtype)), case.inputs)
    )
    if case.built_on is None:
        symbolic = layer(keras_inputs(case))
    _, outputs = split(layer(case.inputs))
    assert jax.tree.structure(symbolic) == jax.tree.structure(outputs)
    for spec, output in zip(leaves_by_order(symbolic), leaves_by_order(outputs), strict=True):
        assert keras.backend.standardize_dtype(spec.dtype) == keras.backend.standardize_dtype(
            output.dtype
        )
        assert len(spec.shape) == output.ndim
        for axis, (size, actual) in enumerate(zip(spec.shape, output.shape, strict=True)):
            assert size == actual or (
                size is None and case.unknown != "none" and (axis == 0 or case.unknown == "all")
            )


@cases
def test_the_initial_variables_equal_those_of_plain_init(case):
    layer = layer_of(case)
    layer(keras_inputs(case))
    expected = case.init(jax.random.key(SEED))
    assert_same(layer.flax_variables, without(case.sown, expected), rtol=1e-6)


@cases
@pytest.mark.parametrize("training", [False, True])
def test_outputs_state_and_sown_values_equal_those_of_plain_apply(case, training):
    layer = layer_of(case)
    layer(keras_inputs(case))
    before = layer.flax_variables
    outputs = layer(case.inputs, training=training)
    expected, written = case.apply(before, case.inputs, training, state())
    assert_same({"out": outputs}, {"out": expected})
    assert_same(layer.flax_variables, before | without(case.sown, written))
    sown = {name: tree for name, tree in written.items() if name in case.sown}
    # Perturbations are zeros, which exist only to take gradients with respect to them.
    assert_same(without(["perturbations"], layer.sown), without(["perturbations"], sown))
    assert layer.seed_generator.state.value.tolist() == [SEED, int(bool(case.streams[training]))]


@cases
def test_gradients_and_state_in_a_compiled_step_equal_those_of_plain_flax(case):
    if not case.differentiable:
        pytest.skip("JAX cannot differentiate this module")
    layer = layer_of(case)
    layer(keras_inputs(case))
    variables = layer.flax_variables

    def total(outputs):
        return sum(jnp.sum(leaf.astype(jnp.float32) ** 2) for leaf in leaves_by_order(outputs))

    @jax.jit
    def step(trainable, non_trainable):
        def loss(trainable):
            outputs, updates = layer.stateless_call(
                trainable, non_trainable, case.inputs, training=True
            )
            return total(outputs), updates

        return jax.value_and_grad(loss, has_aux=True)(trainable)

    def plain(trained):
        outputs, written = case.apply(variables | trained, case.inputs, True, state())
        return total(outputs), without(case.sown, written)

    (value, updates), gradients = step(
        [v.value for v in layer.trainable_variables],
        [v.value for v in layer.non_trainable_variables],
    )
    trained = {name: variables.get(name, {}) for name in case.trainable}
    (expected_value, written), expected = jax.value_and_grad(plain, has_aux=True)(trained)
    np.testing.assert_allclose(value, expected_value, rtol=1e-4)
    paths = [v.path.partition("/")[2] for v in layer.trainable_variables]
    assert_same(
        dict(zip(paths, gradients, strict=True)), named_leaves(expected), rtol=1e-3, atol=1e-3
    )
    paths = [
        v.path.partition("/")[2].removeprefix("seed_generator/")
        for v in layer.non_trainable_variables
    ]
    next_seed_state = {"seed_generator_state": state(int(bool(case.streams[True])))}
    expected = named_leaves(without(case.trainable, variables | written)) | next_seed_state
    assert_same(dict(zip(paths, updates, strict=True)), expected, rtol=1e-4, atol=1e-4)


@cases
def test_predict_accepts_other_batch_sizes(case):
    if case.unknown == "none":
        pytest.skip("this case has fixed sizes")
    layer = layer_of(case)
    inputs = keras_inputs(case)
    model = keras.Model(inputs, layer(inputs))
    variables = layer.flax_variables
    twice = jax.tree.map(lambda x: np.concatenate([x, x, x[:1]]), case.inputs)
    expected, _ = case.apply(variables, twice, False, state())
    outputs = model.predict_on_batch(twice)
    assert_same({"out": outputs}, {"out": split(expected)[1]})
