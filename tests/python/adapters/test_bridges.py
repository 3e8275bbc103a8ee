"""NNX modules in Linen modules and Linen modules in NNX modules, compared with plain Flax."""

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from support import TARGETS, VECTORS, assert_close

from kerasflax import ConfigError, FlaxLayer, LazyModule, ModuleError, _rng

STATE = nn.DenyList(["params"])


class NnxNet(nnx.Module):
    """Its parts get the mode from their attributes."""

    def __init__(self, rngs):
        self.linear = nnx.Linear(3, 3, rngs=rngs)
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.dropout(self.norm(self.linear(x)))


class NnxNetWithMode(NnxNet):
    """Its method takes the mode."""

    def __call__(self, x, training=False):
        x = self.norm(self.linear(x), use_running_average=not training)
        return self.dropout(x, deterministic=not training)

    def double(self, x, *, training):
        return 2 * self(x, training)


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x, training=False):
        x = nn.BatchNorm(use_running_average=not training)(nn.Dense(3)(x))
        return nn.Dropout(0.5, deterministic=not training)(x)

    def double(self, x, *, training):
        return 2 * self(x, training)


class LinenOuter(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nnx.bridge.to_linen(NnxNet, name="inner")(nn.tanh(x))


class LinenOuterWithMode(nn.Module):
    @nn.compact
    def __call__(self, x, training):
        inner = nnx.bridge.to_linen(NnxNetWithMode, name="inner")
        return inner(x) + inner(x, training=training)


class NnxOuter(nnx.Module):
    def __init__(self, rngs):
        self.inner = nnx.bridge.ToNNX(LinenNet(), rngs=rngs).lazy_init(VECTORS)

    def __call__(self, x):
        return self.inner(nnx.tanh(x))


class NnxOuterWithMode(NnxOuter):
    """In plain Flax, a call must say which state a Linen module may write to."""

    def __call__(self, x, training, **by_hand):
        return self.inner(x, **by_hand) + self.inner(x, training, **by_hand)


def bridged(**keywords):
    return nnx.bridge.ToLinen(NnxNetWithMode, **keywords)


def to_nnx(module, *inputs, rngs=None, **keywords):
    bridge = nnx.bridge.ToNNX(module, rngs=rngs or nnx.Rngs(1, dropout=2))
    return nnx.bridge.lazy_init(bridge, *(inputs or (VECTORS,)), **keywords) and bridge


def assert_states_equal(layer, variables):
    got = layer.flax_variables
    for name in ("params", "batch_stats"):
        assert_close(jax.tree.leaves(got[name]), jax.tree.leaves(variables[name]))


@pytest.mark.parametrize(
    ("module", "by_hand", "method"),
    [
        (bridged, bridged, None),
        (bridged, bridged, "double"),
        (lambda: nnx.bridge.ToLinen(NnxNet), bridged, None),
        (lambda: nnx.bridge.to_linen(NnxNet), bridged, None),
        (lambda: nnx.bridge.ToLinen(lambda rngs: NnxNet(rngs)), bridged, None),
        (LinenOuterWithMode, LinenOuterWithMode, None),
    ],
    ids=["mode", "method", "attributes", "to_linen", "function", "part"],
)
def test_an_nnx_module_in_linen_gets_the_streams_and_the_mode(module, by_hand, method):
    module, plain = module(), by_hand()
    keywords = {"nnx_method": method} if method else {}
    rngs = dict.fromkeys(("params", "dropout"), jax.random.key(1))
    variables = plain.init(rngs, VECTORS, training=False, **keywords)
    layer = FlaxLayer(module, method, seed=1)
    assert_close(layer(VECTORS), plain.apply(variables, VECTORS, training=False, **keywords))
    assert_states_equal(layer, variables)
    for _ in range(2):
        streams = _rng.streams(layer.seed_generator.state.value, ["dropout"])
        expected, state = plain.apply(
            variables, VECTORS, training=True, rngs=streams, mutable=STATE, **keywords
        )
        variables = {"params": variables["params"], **state}
        assert_close(layer(VECTORS, training=True), expected)
        assert_states_equal(layer, variables)
    before = layer.flax_variables
    assert_close(layer(VECTORS), plain.apply(variables, VECTORS, training=False, **keywords))
    assert_close(layer.flax_variables, before)
    assert "RngCount" not in before


def test_a_linen_module_without_a_mode_gives_it_to_the_nnx_modules_in_it():
    layer, plain = FlaxLayer(LinenOuter(), seed=1), FlaxLayer(bridged(), seed=1)
    layer(VECTORS)
    plain(VECTORS)
    inner = jax.tree.map(lambda tree: tree, layer.flax_variables)
    plain.flax_variables = {name: tree["inner"] for name, tree in inner.items()}
    assert_close(layer(VECTORS), plain(np.tanh(VECTORS)))
    assert np.any(layer(VECTORS, training=True) != layer(VECTORS, training=True))
    assert np.any(layer.flax_variables["batch_stats"]["inner"]["norm"]["mean"])
    assert_close(layer(VECTORS), layer(VECTORS))


def test_an_nnx_module_in_linen_draws_from_a_stream_of_any_name_in_either_mode():
    class Noise(nnx.Module):
        def __init__(self, rngs):
            self.linear, self.rngs = nnx.Linear(3, 3, rngs=rngs), rngs

        def __call__(self, x):
            return self.linear(x) + jax.random.normal(self.rngs.noise(), (3,))

    module = nnx.bridge.ToLinen(Noise)
    layer = FlaxLayer(module, seed=1)
    layer(VECTORS)
    for training in (False, True):
        streams = _rng.streams(layer.seed_generator.state.value, ["noise"])
        expected = module.apply(layer.flax_variables, VECTORS, rngs=streams)
        assert_close(layer(VECTORS, training=training), expected)


def test_a_call_of_an_nnx_module_in_linen_without_randomness_does_not_advance_the_seed():
    layer = FlaxLayer(nnx.bridge.ToLinen(NnxNet), seed=1)
    layer(VECTORS)
    assert layer.seed_generator.state.value[1] == 0


@pytest.mark.parametrize(
    ("module", "by_hand", "method"),
    [
        (lambda: to_nnx(LinenNet()), {"mutable": STATE}, None),
        (lambda: to_nnx(LinenNet()), {"mutable": STATE}, "double"),
        (lambda: NnxOuterWithMode(nnx.Rngs(1, dropout=2)), {"mutable": STATE}, None),
    ],
    ids=["mode", "method", "part"],
)
def test_a_linen_module_in_nnx_gets_the_streams_and_the_mode_and_updates_its_state(
    module, by_hand, method
):
    layer, plain = FlaxLayer(module(), method), module()
    for training in (True, False, True):
        expected = getattr(plain, method or "__call__")(VECTORS, training=training, **by_hand)
        assert_close(layer(VECTORS, training=training), expected)
    got = jax.tree.leaves(layer.flax_variables["batch_stats"])
    assert_close(got, jax.tree.leaves(nnx.state(plain, nnx.BatchStat)))
    assert np.any(got[0])


@pytest.mark.parametrize("make", [lambda: NnxOuter(nnx.Rngs(1)), lambda: LazyModule(NnxOuter)])
def test_an_nnx_module_without_a_mode_gives_it_to_the_linen_modules_in_it(make):
    layer = FlaxLayer(make())
    first = layer(VECTORS)
    assert_close(layer(VECTORS), first)
    assert np.any(layer(VECTORS, training=True) != layer(VECTORS, training=True))
    assert np.any(layer.flax_variables["batch_stats"]["inner"]["BatchNorm_0"]["mean"])


def test_a_mode_field_of_a_linen_module_in_nnx_is_set_unless_the_call_passes_the_mode():
    class Norm(nnx.Module):
        def __init__(self, rngs):
            self.norm = to_nnx(nn.BatchNorm(), rngs=rngs, use_running_average=True)

        def __call__(self, x):
            return self.norm(x) + self.norm(x, use_running_average=True)

    layer = FlaxLayer(Norm(nnx.Rngs(1)))
    before = np.asarray(layer(VECTORS))
    layer(VECTORS, training=True)
    mean = layer.flax_variables["batch_stats"]["norm"]["mean"]
    assert_close(mean, 0.01 * VECTORS.mean(0))
    assert np.any(before != layer(VECTORS))


def test_a_linen_module_in_nnx_without_streams_draws_from_the_layers_seed():
    layer = FlaxLayer(nnx.bridge.ToNNX(nn.Dropout(0.5)), seed=1)
    np.testing.assert_array_equal(layer(VECTORS), VECTORS)
    assert layer.seed_generator.state.value[1] == 0
    assert np.any(layer(VECTORS, training=True) != layer(VECTORS, training=True))


def test_a_cache_of_a_linen_module_in_nnx_advances():
    x = np.ones((2, 8, 4), np.float32)
    attention = nn.MultiHeadDotProductAttention(num_heads=1, decode=True)
    layer = FlaxLayer(to_nnx(attention, x))
    layer(x[:, :1])
    layer(x[:, :1])
    assert layer.flax_variables["cache"]["cache_index"] == 2


def test_bridges_within_bridges_pass_on_the_mode():
    module = to_nnx(LinenOuter())
    layer = FlaxLayer(module)
    assert_close(layer(VECTORS), layer(VECTORS))
    assert np.any(layer(VECTORS, training=True) != layer(VECTORS, training=True))
    assert np.any(layer.flax_variables["batch_stats"]["inner"]["norm"]["mean"])


def test_a_linen_module_in_nnx_that_has_no_variables_is_an_error_that_says_how_to_create_them():
    module = nnx.bridge.ToNNX(nn.Dense(3), rngs=nnx.Rngs(0))
    with pytest.raises(ModuleError, match=r"no variables for its Dense(.|\n)*lazy_init"):
        FlaxLayer(module)(VECTORS)


@pytest.mark.parametrize(
    ("make", "objects"),
    [
        (lambda: nnx.bridge.ToLinen(NnxNet), [NnxNet]),
        (LinenOuter, [NnxNet, LinenOuter]),
        (lambda: NnxOuter(nnx.Rngs(1)), [NnxOuter, LinenNet]),
    ],
    ids=["ToLinen", "in linen", "in nnx"],
)
def test_a_trained_model_with_a_bridge_survives_saving_and_cloning(make, objects, tmp_path):
    model = keras.Sequential([FlaxLayer(make())])
    model.compile("sgd", "mse")
    model.fit(VECTORS, TARGETS, epochs=2, verbose=0)
    expected = model.predict(VECTORS, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(
        tmp_path / "model.keras", custom_objects={each.__name__: each for each in objects}
    )
    assert_close(loaded.predict(VECTORS, verbose=0), expected)
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    assert_close(clone.predict(VECTORS, verbose=0), expected)


def test_the_users_bridge_does_not_change():
    module = to_nnx(nn.BatchNorm(), use_running_average=True)
    before = jnp.array(module.mean[...])
    FlaxLayer(module)(VECTORS, training=True)
    assert module.to_nnx__module.use_running_average is None
    np.testing.assert_array_equal(module.mean[...], before)


class LinenSower(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(3)(x)
        self.sow("intermediates", "hidden", x)
        self.sow("losses", "squares", jnp.sum(x**2))
        return x


class NnxSower(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(3, 3, rngs=rngs)

    def __call__(self, x):
        x = self.linear(x)
        self.sow(nnx.Intermediate, "hidden", x)
        return x


@pytest.mark.parametrize(
    "make",
    [
        lambda: to_nnx(LinenSower()),
        lambda: LazyModule(lambda rngs: to_nnx(LinenSower(), rngs=rngs)),
        lambda: nnx.bridge.ToLinen(NnxSower),
    ],
    ids=["ToNNX", "lazy ToNNX", "ToLinen"],
)
def test_sown_values_pass_through_a_bridge_and_are_not_state(make):
    layer = FlaxLayer(make())
    for _ in range(2):
        outputs = layer(VECTORS)
    assert all(path.startswith(("params", "Rng")) for path in layer.variables_by_path)
    (hidden,) = jax.tree.leaves(layer.sown["intermediates"])
    assert_close(hidden, outputs)
    if "losses" in layer.sown:
        assert_close(layer.losses, [np.sum(np.square(outputs))])
    else:
        assert isinstance(layer.module, nn.Module)


class LinenPerturbed(nn.Module):
    @nn.compact
    def __call__(self, x):
        return self.perturb("hidden", nn.Dense(3)(x))


class NnxPerturbed(NnxSower):
    def __call__(self, x):
        return self.perturb("hidden", self.linear(x))


class LinenOfPerturbed(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nnx.bridge.to_linen(NnxPerturbed, name="inner")(x)


@pytest.mark.parametrize(
    "make",
    [
        lambda: to_nnx(LinenPerturbed()),
        lambda: LazyModule(lambda rngs: to_nnx(LinenPerturbed(), rngs=rngs)),
        lambda: nnx.bridge.ToLinen(NnxPerturbed),
        LinenOfPerturbed,
    ],
    ids=["ToNNX", "lazy ToNNX", "ToLinen", "part"],
)
def test_perturbations_pass_through_a_bridge_and_are_not_state(make):
    layer = FlaxLayer(make(), seed=1)
    model = keras.Sequential([keras.Input((3,)), layer])
    model.compile("sgd", "mse")
    model.fit(VECTORS, TARGETS, verbose=0)
    for size in (8, 2):
        outputs = layer(VECTORS[:size])
        (perturbed,) = jax.tree.leaves(layer.sown["perturbations"])
        assert perturbed.shape == outputs.shape
        kernel, bias = (
            next(value for path, value in layer.variables_by_path.items() if path.endswith(name))
            for name in ("kernel", "bias")
        )
        assert_close(outputs, VECTORS[:size] @ np.asarray(kernel) + np.asarray(bias))
    assert all(path.startswith(("params", "Rng")) for path in layer.variables_by_path)


def test_a_module_with_variables_only_inside_its_own_apply_is_an_error():
    class Compact(nnx.bridge.Module):
        @nnx.bridge.compact
        def __call__(self, x):
            return self.param("scale", nn.initializers.ones, (3,)) * x

    for module in (Compact(), LazyModule(Compact)):
        with pytest.raises(ModuleError, match="which has no variables outside"):
            FlaxLayer(module)


def test_a_class_that_flax_derives_from_an_nnx_class_is_a_bridge():
    class Net(nnx.bridge.wrappers.to_linen_class(NnxNet)):
        pass

    layer = FlaxLayer(Net(), seed=1)
    assert_close(layer(VECTORS), layer(VECTORS))
    assert np.any(layer(VECTORS, training=True) != layer(VECTORS))


def test_a_bridge_of_a_function_cannot_be_saved():
    layer = FlaxLayer(nnx.bridge.ToLinen(lambda rngs: NnxNet(rngs)))
    with pytest.raises(
        ConfigError, match=r"ToLinen\.nnx_class cannot be saved: it is not a module"
    ):
        layer.get_config()


def test_a_compiled_method_of_an_nnx_module_gives_the_mode_to_the_linen_modules_in_it():
    class Compiled(NnxOuter):
        @nnx.jit
        def __call__(self, x):
            return self.inner(nnx.tanh(x))

    layer, plain = FlaxLayer(Compiled(nnx.Rngs(1))), FlaxLayer(NnxOuter(nnx.Rngs(1)))
    for training in (False, True, False, True):
        assert_close(layer(VECTORS, training=training), plain(VECTORS, training=training))
    assert_close(layer.flax_variables["batch_stats"], plain.flax_variables["batch_stats"])
