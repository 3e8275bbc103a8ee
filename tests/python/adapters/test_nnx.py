import gc
import weakref

import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest
from conformance import floats, integers
from conformance_nnx import MLP, Adapted, Sharded, Tied, rngs, variables_of
from flax import linen as nn
from flax import nnx
from modules_nnx import ConvNet, Decoder, ViT
from support import run_code

import kerasflax
from kerasflax import (
    FieldError,
    FlaxLayer,
    LazyModule,
    MethodError,
    ModuleError,
    StateError,
    VariablesError,
)
from kerasflax.adapters._nnx import NnxAdapter
from kerasflax.bridge._variables import named_leaves


def numbers(tree):
    """The values by path. Random keys are replaced by their data."""
    return {
        path: np.asarray(
            jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
        )
        for path, x in named_leaves(tree).items()
    }


def assert_equal(got, expected):
    got, expected = numbers(got), numbers(expected)
    assert got.keys() == expected.keys()
    for path in expected:
        np.testing.assert_array_equal(got[path], expected[path], err_msg=path)


def model_of(layer, shape, dtype="float32"):
    inputs = keras.Input(shape, dtype=dtype)
    return keras.Model(inputs, layer(inputs))


IMAGES = floats(8, 6, 6, 1)
LABELS = floats(8, 3)


def test_the_layer_copies_the_modules_arrays_and_does_not_change_the_module():
    module = ConvNet(4, rngs=rngs())
    before = numbers(variables_of(module))
    modes = module.dropout.deterministic, module.norm.use_running_average
    layer = FlaxLayer(module)
    model = model_of(layer, (6, 6, 1))
    kernel = module.conv.kernel.get_value()
    np.testing.assert_array_equal(layer.flax_variables["params"]["conv"]["kernel"], kernel)
    model.compile("sgd", "mse")
    model.fit(IMAGES, LABELS, batch_size=4, epochs=2, verbose=0)
    after = numbers(variables_of(module))
    for path in before:
        np.testing.assert_array_equal(after[path], before[path], err_msg=path)
    assert (module.dropout.deterministic, module.norm.use_running_average) == modes
    assert not np.array_equal(layer.flax_variables["params"]["conv"]["kernel"], kernel)
    # The module can still be called.
    assert module(IMAGES).shape == (8, 3)


def test_the_layer_keeps_no_second_copy_of_the_modules_arrays():
    # No other test uses this shape.
    module = nnx.Linear(31, 47, rngs=rngs())
    array = weakref.ref(module.kernel.get_value())
    layer = FlaxLayer(module)
    model = model_of(layer, (31,))
    model.compile("sgd", "mse")
    model.fit(floats(4, 31), floats(4, 47), verbose=0)
    del module
    gc.collect()
    assert array() is None
    live = sum(x.nbytes for x in jax.live_arrays() if x.shape == (31, 47))
    assert live == 31 * 47 * 4


def test_five_training_steps_equal_those_of_nnx_and_optax():
    model = model_of(FlaxLayer(ConvNet(4, rngs=nnx.Rngs(1))), (6, 6, 1))
    model.compile(keras.optimizers.SGD(0.1), "mse")
    history = []
    for _ in range(5):
        # Some versions of Keras return the mean over all steps so far.
        model.reset_metrics()
        history.append(model.train_on_batch(IMAGES, LABELS))

    plain = ConvNet(4, rngs=nnx.Rngs(1))
    plain.train()
    optimizer = nnx.Optimizer(plain, optax.sgd(0.1), wrt=nnx.Param)

    @nnx.jit
    def step(module, optimizer):
        loss, gradients = nnx.value_and_grad(
            lambda module: jnp.mean((module(IMAGES) - LABELS) ** 2)
        )(module)
        optimizer.update(module, gradients)
        return loss

    np.testing.assert_allclose(
        history, [float(step(plain, optimizer)) for _ in range(5)], rtol=1e-4
    )
    got, expected = numbers(model.layers[-1].flax_variables), numbers(variables_of(plain))
    assert got.keys() == expected.keys()
    for path in expected:
        np.testing.assert_allclose(got[path], expected[path], rtol=1e-4, atol=1e-5, err_msg=path)


def test_to_flax_returns_a_module_with_the_values_of_the_layer():
    layer = FlaxLayer(ConvNet(4, rngs=rngs()))
    model = model_of(layer, (6, 6, 1))
    model.compile("sgd", "mse")
    model.fit(IMAGES, LABELS, verbose=0)
    module = layer.to_flax()
    assert isinstance(module, ConvNet)
    assert_equal(variables_of(module), layer.flax_variables)
    expected = model.predict(IMAGES, verbose=0)
    module.eval()
    np.testing.assert_allclose(module(IMAGES), expected, rtol=1e-5, atol=1e-6)
    model.fit(IMAGES, LABELS, verbose=0)
    np.testing.assert_allclose(module(IMAGES), expected, rtol=1e-5, atol=1e-6)


def test_to_flax_of_a_linen_layer_returns_the_module_and_its_variables():
    layer = FlaxLayer(nn.Dense(2))
    expected = layer(floats(4, 3))
    module, variables = layer.to_flax()
    np.testing.assert_allclose(module.apply(variables, floats(4, 3)), expected, rtol=1e-6)


def test_given_variables_replace_those_of_the_module():
    kernel = jnp.ones((2, 4))
    layer = FlaxLayer(MLP(rngs=rngs()), variables={"params": {"first": {"kernel": kernel}}})
    layer(floats(4, 2))
    np.testing.assert_array_equal(layer.flax_variables["params"]["first"]["kernel"], kernel)
    assert layer.flax_variables["batch_stats"]["norm"]["var"].tolist() == [1.0] * 4
    for variables, message in (
        (
            {"params": {"first": {"kernel": jnp.ones((2, 5))}}},
            r"params/first/kernel: expected float32\(2, 4\)",
        ),
        ({"params": {"second": jnp.ones(3)}}, "params/second: not in the module"),
        ({"other": {"x": jnp.ones(3)}}, "other/x: not in the module"),
    ):
        with pytest.raises(VariablesError, match=message):
            FlaxLayer(MLP(rngs=rngs()), variables=variables)(floats(4, 2))


@pytest.mark.parametrize("form", ["plain", "given"])
def test_a_lazy_module_has_the_values_that_plain_flax_draws_from_the_seed(form):
    layer = FlaxLayer(LazyModule(ConvNet, 4.0, activation=nnx.gelu), seed=5)
    inputs = IMAGES if form == "plain" else keras.Input((6, 6, 1))
    layer(inputs)
    expected = numbers(variables_of(ConvNet(4, activation=nnx.gelu, rngs=nnx.Rngs(5))))
    got = numbers(layer.flax_variables)
    assert got.keys() == expected.keys()
    for path in expected:
        np.testing.assert_allclose(got[path], expected[path], rtol=1e-6, atol=1e-7, err_msg=path)


def test_a_lazy_module_allocates_nothing_before_it_is_built():
    # Hold the arrays: the id of a deleted array may be reused.
    old = jax.live_arrays()
    before = {id(x) for x in old}
    layer = FlaxLayer(LazyModule(nnx.Linear, 300, 400), seed=5)
    assert sum(x.nbytes for x in jax.live_arrays() if id(x) not in before) < 1000
    layer(keras.Input((300,)))
    made = [x for x in jax.live_arrays() if id(x) not in before and x.size >= 400]
    assert sorted(x.shape for x in made) == [(300, 400), (400,)]


def test_runs_with_a_seed_repeat_and_the_state_of_random_streams_is_kept():
    def losses(seed):
        model = model_of(FlaxLayer(LazyModule(ConvNet, 4), seed=seed), (6, 6, 1))
        model.compile("sgd", "mse")
        return [model.train_on_batch(IMAGES, LABELS) for _ in range(3)], model.layers[-1]

    first, layer = losses(1)
    again, _ = losses(1)
    other, _ = losses(2)
    assert first == again
    assert first != other
    assert layer.flax_variables["RngCount"]["dropout"]["rngs"]["count"] == 3


def test_shared_weights_are_one_variable_and_train_as_one():
    layer = FlaxLayer(Tied(rngs()))
    tokens = integers(4, 6)
    model = model_of(layer, (6,), "int32")
    assert sorted(layer.variables_by_path) == [
        "params/again/bias",
        "params/again/kernel",
        "params/embed/embedding",
        "params/head/kernel",
        "params/same",
    ]
    model.compile("sgd", "mse")
    model.fit(tokens, np.ones((4, 6, 5)), verbose=0)
    module = layer.to_flax()
    assert module.part is module.again
    assert module.scale is module.same


def test_metadata_of_variables_is_kept():
    layer = FlaxLayer(Sharded(rngs()))
    layer(floats(4, 2))
    module = layer.to_flax()
    assert module.scale.mine == "kept"
    assert module.linear.kernel.out_sharding == (None, "model")


def test_adapters_of_low_rank_are_trained_alone_when_params_are_frozen():
    layer = FlaxLayer(Adapted(rngs()))
    model = model_of(layer, (2,))
    kerasflax.freeze(layer, "params/**")
    model.compile(keras.optimizers.Adam(), "mse")
    before = numbers(layer.flax_variables)
    model.fit(floats(4, 2), floats(4, 3), verbose=0)
    after = numbers(layer.flax_variables)
    changed = [path for path in before if not np.array_equal(before[path], after[path])]
    # The second factor starts as zeros, so that the first has no gradient in the first step.
    assert changed == ["LoRAParam/linear/lora/lora_b"]
    assert sorted(v.path.partition("/")[2] for v in layer.trainable_variables) == [
        "LoRAParam/linear/lora/lora_a",
        "LoRAParam/linear/lora/lora_b",
    ]
    assert kerasflax.parameters(model)["collection"] == [
        "LoRAParam",
        "LoRAParam",
        "params",
        "params",
    ]


class Grows(nnx.Module):
    def __init__(self, kind):
        self.kind = kind
        self.count = nnx.Variable(jnp.zeros(2))

    def __call__(self, x):
        if self.kind == "made":
            self.part = nnx.Dict({"new": nnx.Param(jnp.ones(3))})
        elif self.kind == "removed":
            del self.count
        else:
            self.count.set_value(jnp.zeros(3))
        return x


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("made", "A call of Grows created or .*\n  params/part/new: created in the call\nCreate"),
        ("removed", "A call of Grows .* removed .*\n  Variable/count: removed in the call\nCreate"),
        ("reshaped", r"changed the shape of Variable/count in a call from \(2\) to \(3\)"),
    ],
)
def test_a_call_that_changes_the_structure_is_an_error_that_names_the_path(kind, message):
    with pytest.raises(StateError, match=message):
        FlaxLayer(Grows(kind))(floats(4, 3))


def test_two_types_of_variables_with_the_same_name_are_an_error():
    types = [type("Same", (nnx.Variable,), {}) for _ in range(2)]

    class Two(nnx.Module):
        def __init__(self):
            self.a, self.b = (kind(jnp.zeros(1)) for kind in types)

    with pytest.raises(ModuleError, match="two types named 'Same'"):
        FlaxLayer(Two())


def test_errors_name_the_path_of_the_part_that_raised():
    class Fails(nnx.Module):
        def __call__(self, x):
            raise ValueError("no")

    module = nnx.Sequential(nnx.Linear(3, 3, rngs=rngs()), nnx.Dict({"part": Fails()})["part"])
    with pytest.raises(ValueError, match="raised in Sequential/layers/1, of class Fails"):
        FlaxLayer(module)(floats(4, 3))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FlaxLayer(nnx.Linear), "got the class Linear, not an instance"),
        (
            lambda: FlaxLayer(LazyModule(lambda rngs: 3)),
            "must return an instance of `flax.nnx.Module`, got int 3",
        ),
        (
            lambda: FlaxLayer(LazyModule(nn.Dense, 3)),
            "must return an instance of `flax.nnx.Module`, got Dense",
        ),
        (lambda: LazyModule(3), "got int"),
        (lambda: LazyModule(nnx.Linear(1, 1, rngs=rngs())), "got Linear"),
        (
            lambda: LazyModule(nnx.Linear, 1, 1, rngs=rngs()),
            "the layer creates it from its seed.\nGive the layer a `seed`",
        ),
        (
            lambda: FlaxLayer(LazyModule(nnx.Linear, 3.5, 4)),
            "`in_features` must be a whole number, got 3.5",
        ),
        (lambda: FlaxLayer(MLP(rngs=rngs()), method="other"), "MLP has no method `other`"),
        (lambda: FlaxLayer(keras.layers.Dense(3)), "Keras layer"),
    ],
)
def test_misuse_is_an_error_that_says_what_it_got(make, message):
    with pytest.raises((kerasflax.KerasFlaxError,), match=message):
        make()


def test_a_method_can_be_given_by_name_bound_or_as_a_function():
    module = MLP(rngs=rngs())

    class Sub(MLP):
        def first_only(self, x):
            return self.first(x)

    sub = Sub(rngs=rngs())
    expected = sub.first_only(floats(4, 2))
    for method in ("first_only", sub.first_only, Sub.first_only, lambda module, x: module.first(x)):
        np.testing.assert_allclose(FlaxLayer(sub, method=method)(floats(4, 2)), expected, rtol=1e-6)
    with pytest.raises(kerasflax.MethodError, match="bound to another module"):
        FlaxLayer(module, method=sub.first_only)


IMAGE, SEQUENCE, ROW = floats(2, 4, 4, 4), floats(2, 6, 4), floats(2, 4)
OWN = {
    "BatchNorm": (nnx.BatchNorm, (4,), {}, ROW),
    "Bidirectional": (
        lambda rngs: nnx.Bidirectional(
            nnx.RNN(nnx.GRUCell(4, 3, rngs=rngs)), nnx.RNN(nnx.GRUCell(4, 3, rngs=rngs)), rngs=rngs
        ),
        (),
        {},
        SEQUENCE,
    ),
    "Conv": (nnx.Conv, (4, 3, (3, 3)), {}, IMAGE),
    "ConvTranspose": (nnx.ConvTranspose, (4, 3, (3, 3)), {}, IMAGE),
    "Dropout": (nnx.Dropout, (0.5,), {}, ROW),
    "Einsum": (nnx.Einsum, ("ab,bc->ac", (4, 3)), {"bias_shape": (3,)}, ROW),
    "Embed": (nnx.Embed, (5, 3), {}, integers(2, 6)),
    "GroupNorm": (nnx.GroupNorm, (4,), {"num_groups": 2}, ROW),
    "InstanceNorm": (nnx.InstanceNorm, (4,), {}, IMAGE),
    "LayerNorm": (nnx.LayerNorm, (4,), {}, ROW),
    "Linear": (nnx.Linear, (4, 3), {}, ROW),
    "LinearGeneral": (nnx.LinearGeneral, (4, (2, 3)), {}, ROW),
    "LoRA": (nnx.LoRA, (4, 2, 3), {}, ROW),
    "LoRALinear": (nnx.LoRALinear, (4, 3), {"lora_rank": 2}, ROW),
    "MultiHeadAttention": (
        nnx.MultiHeadAttention,
        (2, 4, 4),
        {"decode": False, "dropout_rate": 0.5},
        SEQUENCE,
    ),
    "PReLU": (nnx.PReLU, (), {}, ROW),
    "RMSNorm": (nnx.RMSNorm, (4,), {}, ROW),
    **{
        f"RNN of {cell.__name__}": (
            lambda rngs, cell=cell: nnx.RNN(cell(4, 3, rngs=rngs), rngs=rngs),
            (),
            {},
            SEQUENCE,
        )
        for cell in (nnx.GRUCell, nnx.LSTMCell, nnx.OptimizedLSTMCell, nnx.SimpleCell)
    },
    "Sequential": (lambda rngs: nnx.Sequential(nnx.Linear(4, 3, rngs=rngs), nnx.relu), (), {}, ROW),
    "SpectralNorm": (
        lambda rngs: nnx.SpectralNorm(nnx.Linear(4, 3, rngs=rngs), rngs=rngs),
        (),
        {},
        ROW,
    ),
    "WeightNorm": (
        lambda rngs: nnx.WeightNorm(nnx.Linear(4, 3, rngs=rngs), rngs=rngs),
        (),
        {},
        ROW,
    ),
    "a small ViT": (ViT, (), {}, floats(2, 8, 8, 3)),
    "a decoder": (Decoder, (), {}, integers(2, 6)),
}


@pytest.mark.parametrize("name", OWN)
def test_flaxs_own_layers_and_larger_modules_give_the_outputs_of_plain_flax(name):
    factory, arguments, keywords, inputs = OWN[name]

    def takes(argument):
        return (
            argument
            in getattr(
                type(plain).__call__, "__wrapped__", type(plain).__call__
            ).__code__.co_varnames
        )

    plain = LazyModule(factory, *arguments, **keywords).make(nnx.Rngs(3))
    layer = FlaxLayer(LazyModule(factory, *arguments, **keywords), seed=3)
    model = model_of(layer, inputs.shape[1:], str(inputs.dtype))
    plain.eval()
    extra = {"update_stats": False} if takes("update_stats") else {}
    expected = plain(inputs, **extra)
    np.testing.assert_allclose(model.predict(inputs, verbose=0), expected, rtol=1e-4, atol=1e-5)
    if layer.trainable_variables:
        model.compile("sgd", "mse")
        model.fit(inputs, np.zeros(expected.shape, np.float32), verbose=0)
        assert all(np.isfinite(variable).all() for variable in layer.trainable_variables)


def test_a_decoder_with_a_cache_gives_the_outputs_for_the_whole_sequence():
    tokens = integers(2, 6, below=11)
    whole = FlaxLayer(Decoder(rngs=nnx.Rngs(3)))
    expected = whole(tokens)
    cached = FlaxLayer(
        Decoder(cache=(2, 6), rngs=nnx.Rngs(3)),
        variables={"params": whole.flax_variables["params"]},
    )
    model = keras.Sequential([keras.Input(batch_shape=(2, 1), dtype="int32"), cached])
    steps = [cached(tokens[:, i : i + 1]) for i in range(6)]
    np.testing.assert_allclose(np.concatenate(steps, axis=1), expected, rtol=1e-4, atol=1e-5)
    assert model.layers[0].flax_variables["cache"]["blocks"][0]["attention"]["cache_index"] == 6


def test_bridged_modules_can_be_wrapped_in_both_directions():
    linen = FlaxLayer(nnx.bridge.to_linen(nnx.Linear, 3, 4), seed=1)
    assert linen(floats(2, 3)).shape == (2, 4)
    assert sorted(path for path in linen.variables_by_path if path.startswith("params")) == [
        "params/bias",
        "params/kernel",
    ]
    module = nnx.bridge.ToNNX(nn.Dense(4), rngs=rngs()).lazy_init(floats(2, 3))
    np.testing.assert_allclose(FlaxLayer(module)(floats(2, 3)), module(floats(2, 3)), rtol=1e-6)


def test_a_method_bound_to_another_module_of_the_same_class_is_an_error():
    module, other = (nnx.Linear(3, 2, rngs=rngs()) for _ in range(2))
    assert FlaxLayer(module, method=module.__call__)(floats(2, 3)).shape == (2, 2)
    with pytest.raises(MethodError, match=r"another Linear than `module`(.|\n)*the method's name"):
        FlaxLayer(module, method=other.__call__)


def test_a_constructor_with_rngs_gives_the_values_that_the_layer_would_have():
    def dense(self, rngs):
        self.linear = nnx.Linear(3.0, self.units, rngs=rngs)

    def outer(self, rngs):
        self.last = LazyModule(Dense, units=2)

    def call(self, inputs):
        return self.linear(inputs)

    place = "<elsewhere>"
    Dense = NnxAdapter.module_class(
        "Dense", place, {"units": int}, {}, {"setup": dense, "__call__": call}
    )
    methods = {"setup": outer, "__call__": lambda self, inputs: self.last(self.first(inputs))}
    Outer = NnxAdapter.module_class("Outer", place, {"first": object}, {}, methods)
    first = LazyModule(Dense, units=3)
    module = Outer(first=first, rngs=nnx.Rngs(1))
    assert_equal(
        variables_of(module), variables_of(LazyModule(Outer, first=first).make(nnx.Rngs(1)))
    )
    assert FlaxLayer(module)(floats(2, 3)).shape == (2, 2)
    with pytest.raises(FieldError, match=r"`rngs` must be an `nnx.Rngs`, got int 0"):
        Dense(units=2, rngs=0)


@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_the_layer_trains_and_saves_in_keras_nnx_mode(kind, tmp_path):
    code = """
        import keras, numpy as np, jax, jax.numpy as jnp
        from flax import linen as nn, nnx
        from kerasflax import FlaxLayer, ModuleError
        assert keras.config.is_nnx_enabled()
        module = {"linen": nn.Dense(2), "nnx": nnx.Linear(3, 2, rngs=nnx.Rngs(1))}[KIND]
        inputs = keras.Input((3,))
        layer = FlaxLayer(module, seed=1)
        model = keras.Model(inputs, layer(inputs))
        model.compile("sgd", "mse")
        x, y = np.ones((4, 3), np.float32), np.zeros((4, 2), np.float32)
        before = layer.flax_variables["params"]["kernel"]
        model.fit(x, y, verbose=0)
        assert not np.array_equal(before, layer.flax_variables["params"]["kernel"])
        expected = model.predict(x, verbose=0)
        np.testing.assert_allclose(layer(x), expected, rtol=1e-6)
        # NNX's transformations split the layer from its weights, and merge it with others.
        graphdef, state = nnx.split(layer)
        assert not np.any(nnx.merge(graphdef, jax.tree.map(jnp.zeros_like, state))(x))
        wrt = nnx.DiffState(0, nnx.Variable)
        gradients = nnx.grad(lambda layer: (layer(x) ** 2).mean(), argnums=wrt)(layer)
        leaves = jax.tree.leaves(gradients)
        assert len(leaves) == 2 and all(np.any(leaf) for leaf in leaves)
        norm = FlaxLayer({
            "linen": nn.BatchNorm(use_running_average=None),
            "nnx": nnx.BatchNorm(3, rngs=nnx.Rngs(1)),
        }[KIND])
        norm(x)
        nnx.jit(lambda layer: layer(x, training=True))(norm)
        assert np.any(norm.flax_variables["batch_stats"]["mean"])

        def make():
            linear = nnx.Linear(3, 2, rngs=nnx.Rngs(1))
            return keras.Sequential([keras.Input((3,)), FlaxLayer(linear)])

        made = nnx.eval_shape(make)
        assert len(made.weights) == 2
        model.save(PATH)
        loaded = keras.models.load_model(PATH)
        np.testing.assert_array_equal(loaded.predict(x, verbose=0), expected)
        try:
            FlaxLayer(keras.layers.Dense(2))
        except ModuleError as error:
            assert "Keras layer" in str(error)
        else:
            raise AssertionError
    """
    path = str(tmp_path / "m.keras")
    run_code(code.replace("KIND", repr(kind)).replace("PATH", repr(path)), KERAS_NNX_ENABLED="true")


class Noisy(nnx.Module):
    """A module whose parts get the mode as an attribute."""

    def __init__(self, rngs=None):
        self.norm = nnx.BatchNorm(100, momentum=0.5, rngs=nnx.Rngs(0))
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.dropout(self.norm(x))


def test_the_parts_get_the_mode_even_if_the_method_takes_it():
    def method(module, inputs, training):
        return module(inputs) if training in (True, False) else None

    x = 3 + floats(8, 100)
    at_inference = FlaxLayer(Noisy(), method)
    # The running statistics of a new module are zero and one.
    np.testing.assert_allclose(at_inference(x), x / np.sqrt(1 + 1e-5), rtol=1e-5)
    mean = at_inference.flax_variables["batch_stats"]["norm"]["mean"]
    np.testing.assert_array_equal(mean, np.zeros(100))
    layer = FlaxLayer(Noisy(rngs()), method)
    dropped = np.asarray(layer(x, training=True)) == 0
    assert 0.3 < dropped.mean() < 0.7
    mean = layer.flax_variables["batch_stats"]["norm"]["mean"]
    np.testing.assert_allclose(mean, x.mean(axis=0) / 2, rtol=1e-5)


def test_a_mode_that_the_method_passes_on_wins_over_the_attributes():
    def always_random(module, inputs, training):
        return module.dropout(inputs, deterministic=False)

    x = np.ones((4, 100), np.float32)
    dropped = np.asarray(FlaxLayer(Noisy(rngs()), always_random)(x))
    assert set(np.unique(dropped)) == {0, 2}


class Loss(nnx.Variable):
    pass


class Encoder(nnx.Module):
    """Keeps its loss as an attribute, as Flax's example of an autoencoder does."""

    def __init__(self, rngs):
        self.linear = nnx.Linear(3, 2, rngs=rngs)
        self.norm = nnx.BatchNorm(2, rngs=rngs)

    def __call__(self, x):
        y = self.norm(self.linear(x))
        self.kl = Loss(jnp.mean(y**2))
        self.part = nnx.Dict({"last": Loss(y)})
        return y


def test_variables_that_a_call_creates_are_sown_and_not_state(tmp_path):
    layer = FlaxLayer(Encoder(rngs()))
    x = floats(4, 3)
    y = layer(x)
    assert sorted(layer.variables_by_path) == [
        *(f"batch_stats/norm/{name}" for name in ("mean", "var")),
        *(f"params/{path}" for path in ("linear/bias", "linear/kernel", "norm/bias", "norm/scale")),
    ]
    assert layer.sown.keys() == {"Loss"}
    np.testing.assert_allclose(layer.sown["Loss"]["kl"], np.mean(np.square(y)), rtol=1e-6)
    np.testing.assert_array_equal(layer.sown["Loss"]["part"]["last"], y)
    model = model_of(layer, (3,))
    model.compile("sgd", "mse")
    model.fit(x, floats(4, 2), verbose=0)
    expected = model.predict(x, verbose=0)
    model.save_weights(tmp_path / "m.weights.h5")
    other = model_of(FlaxLayer(Encoder(rngs())), (3,))
    other.load_weights(tmp_path / "m.weights.h5")
    np.testing.assert_array_equal(other.predict(x, verbose=0), expected)


def test_a_loss_may_be_a_variable_that_a_call_creates():
    # In a new process, because Flax's names of types are global.
    run_code("""
        import jax.numpy as jnp, numpy as np
        from flax import nnx
        from kerasflax import FlaxLayer

        kind = type("Losses", (nnx.Variable,), {})
        nnx.register_variable_name("losses", kind)

        class Penalized(nnx.Module):
            def __call__(self, x):
                self.penalty = kind(jnp.sum(x))
                return x

        layer = FlaxLayer(Penalized())
        layer(np.ones((2, 3), np.float32))
        np.testing.assert_array_equal(layer.losses, [6])
    """)
