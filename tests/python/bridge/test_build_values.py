"""The values with which a layer begins, if the user gives some of them."""

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from support import assert_close

from kerasflax import FlaxLayer, LazyModule, VariablesError

WHOLE = np.linspace(-1, 1, 2 * 8 * 4, dtype=np.float32).reshape(2, 8, 4)
STEP = WHOLE[:, :1]
X = WHOLE[0]


class Strict(nn.Module):
    """A decoder that can be initialized for a whole sequence only."""

    @nn.compact
    def __call__(self, x):
        if self.is_initializing() and x.shape[1] != 8:
            raise ValueError("The cache must be made for 8 steps.")
        cache = self.variable("cache", "x", jnp.zeros, x.shape)
        index = self.variable("cache", "index", lambda: jnp.zeros((), jnp.int32))
        x = nn.Dense(4)(x)
        if not self.is_initializing():
            cache.value = jax.lax.dynamic_update_slice(cache.value, x, (0, index.value, 0))
            index.value += x.shape[1]
        return cache.value


class StrictNnx(nnx.Module):
    """A decoder whose cache must be replaced by a longer one before it is called."""

    def __init__(self, rngs):
        self.dense = nnx.Linear(4, 4, rngs=rngs)
        self.cache = nnx.Cache(jnp.zeros((2, 0, 4)))
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        if self.cache.shape[1] < x.shape[1]:
            raise ValueError("The cache is too short.")
        cache = jnp.roll(self.cache.get_value(), -1, axis=1).at[:, -1:].set(self.dense(x))
        self.cache.set_value(cache)
        return cache


def strict_variables():
    return Strict().init(jax.random.key(1), WHOLE)


@pytest.mark.parametrize("kind", ["linen", "nnx", "lazy"])
def test_given_variables_build_a_module_that_cannot_be_initialized_for_the_input(kind, tmp_path):
    if kind == "linen":
        module, variables = Strict(), strict_variables()
        objects = {"Strict": Strict}
    else:
        module = LazyModule(StrictNnx) if kind == "lazy" else StrictNnx(nnx.Rngs(1))
        dense = nnx.Linear(4, 4, rngs=nnx.Rngs(1))
        variables = {
            "params": {"dense": {"kernel": dense.kernel[...], "bias": dense.bias[...]}},
            "cache": {"cache": jnp.zeros((2, 8, 4))},
        }
        objects = {"StrictNnx": StrictNnx}
    layer = FlaxLayer(module, variables=variables)
    model = keras.Sequential([keras.Input(batch_shape=(2, 1, 4)), layer])
    assert model.output_shape == (2, 8, 4)
    steps = [np.asarray(layer(WHOLE[:, i : i + 1])) for i in range(8)]
    bias, kernel = jax.tree.leaves(layer.flax_variables["params"])
    assert_close(steps[-1], WHOLE @ kernel + bias, rtol=1e-4)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", custom_objects=objects)
    assert_close(loaded.layers[0](STEP), layer(STEP))


def test_a_module_may_read_a_collection_that_only_the_user_provides():
    class Scaled(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3)(x) * self.get_variable("given", "scale")

    params = {"Dense_0": nn.Dense(3).init(jax.random.key(0), X)["params"]}
    variables = {"params": params, "given": {"scale": jnp.float32(2)}}
    layer = FlaxLayer(Scaled(), variables=variables)
    assert_close(layer(X), Scaled().apply(variables, X))


def test_missing_variables_of_a_module_that_cannot_be_initialized_are_listed():
    variables = strict_variables()
    variables = {**variables, "params": {"Dense_0": {}}}
    with pytest.raises(VariablesError) as caught:
        FlaxLayer(Strict(), variables=variables)(STEP)
    assert caught.value.problems == {
        "params/Dense_0/bias": "missing, expected float32(4)",
        "params/Dense_0/kernel": "missing, expected float32(4, 4)",
    }


def test_without_given_variables_the_error_of_the_module_is_raised():
    with pytest.raises(ValueError, match="must be made for 8 steps"):
        FlaxLayer(Strict())(STEP)


def test_an_error_that_given_variables_do_not_change_is_raised_once():
    class Failing(nn.Module):
        @nn.compact
        def __call__(self, x):
            nn.Dense(3)(x)
            raise ValueError("always")

    params = {"Dense_0": nn.Dense(3).init(jax.random.key(0), X)["params"]}
    with pytest.raises(ValueError, match="always") as caught:
        FlaxLayer(Failing(), variables={"params": params})(X)
    assert caught.value.__cause__ is None


class Net(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(4, 3, rngs=rngs)
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.dropout(self.norm(self.linear(x)))


def abstract():
    return nnx.eval_shape(lambda: Net(rngs=nnx.Rngs(0)))


def trained():
    layer = FlaxLayer(Net(nnx.Rngs(5)))
    layer(X)
    return layer


@pytest.mark.parametrize("module", [abstract, lambda: LazyModule(Net)], ids=["abstract", "lazy"])
def test_an_abstract_module_takes_given_values_and_makes_its_random_streams_from_the_seed(module):
    expected = trained()
    variables = {name: expected.flax_variables[name] for name in ("params", "batch_stats")}
    first, again, other = (FlaxLayer(module(), variables=variables, seed=i) for i in (3, 3, 4))
    assert_close(first(X), expected(X))
    np.testing.assert_array_equal(first(X, training=True), again(X, training=True))
    assert np.any(first(X, training=True) != other(X, training=True))
    plain = first.to_flax()
    plain.eval()
    assert_close(plain(X), first(X))


def test_an_abstract_module_without_values_is_an_error_that_lists_what_is_missing():
    with pytest.raises(VariablesError, match="Net is abstract") as caught:
        FlaxLayer(abstract(), variables={"params": trained().flax_variables["params"]})(X)
    assert sorted(caught.value.problems) == ["batch_stats/norm/mean", "batch_stats/norm/var"]
    assert "LazyModule" in caught.value.advice
    with pytest.raises(VariablesError, match="Net is abstract") as caught:
        FlaxLayer(abstract())(X)
    assert len(caught.value.problems) == 6
    with pytest.raises(VariablesError, match="lacks one level"):
        FlaxLayer(abstract(), variables=trained().flax_variables["params"])(X)


@pytest.mark.parametrize("module", [abstract, lambda: nn.Dense(3)], ids=["nnx", "linen"])
def test_given_variables_without_values_are_an_error_that_lists_them(module):
    module = module()
    concrete = nn.Dense(3).init(jax.random.key(0), X)
    if not isinstance(module, nn.Module):
        concrete = {name: trained().flax_variables[name] for name in ("params", "batch_stats")}
    variables = jax.eval_shape(lambda: concrete)
    with pytest.raises(VariablesError, match="has a shape and dtype, but no value"):
        FlaxLayer(module, variables=variables)(X)


@pytest.mark.parametrize("api", ["linen", "nnx"])
def test_given_variables_may_be_named_by_their_whole_paths(api):
    module = nn.Dense(3) if api == "linen" else nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    flat = {"params/kernel": np.full((4, 3), 2.0), "params/bias": np.ones(3)}
    output = FlaxLayer(module, variables=flat)(np.ones((2, 4), np.float32))
    np.testing.assert_allclose(output, np.full((2, 3), 9.0))
