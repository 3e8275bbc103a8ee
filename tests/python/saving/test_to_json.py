import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import flax
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from fixtures import write
from flax import linen as nn
from modules import MLP, ConvNet
from samples import Holder, Kind, Pair, Scale, Settings, Sum, Two, X, Y, again, model_of, twice
from support import run_code

from kerasflax import ConfigError, FlaxLayer, freeze
from kerasflax._models import check_savable
from kerasflax.bridge._forms import Form, split
from kerasflax.saving._from_json import from_config
from kerasflax.saving._to_json import to_config

FIXTURES = Path(write.__file__).parent

# Values -------------------------------------------------------------------------------------------

VALUES = {
    "None": None,
    "numbers": [1, 2.5, True, 2**70, 1e-300, 1 + 2j, complex("nan"), float("inf"), -0.0],
    "text": "a \N{SNOWMAN}",
    "tuple": (1, (2.0, [3, ()])),
    "dict": {"a": 1, "b": {"c": (1,)}, "object": "os:system"},
    "dict by number": {1: "a", (2, "x"): None},
    "frozen dict": flax.core.freeze({"a": {"b": (1, 2)}}),
    "sets": [{1, 2}, frozenset({"a"})],
    "dtype": [
        np.dtype("float16"),
        jnp.dtype("bfloat16"),
        jnp.float32,
        jnp.bfloat16,
        np.float64,
        float,
        int,
    ],
    "functions": [
        nn.relu,
        jax.nn.gelu,
        jnp.tanh,
        jax.lax.rsqrt,
        nn.initializers.zeros,
        nn.dot_product_attention,
        jnp.add,
    ],
    "partial": functools.partial(nn.leaky_relu, negative_slope=0.3),
    "class": [nn.BatchNorm, functools.partial(nn.Conv, use_bias=False)],
    "enum": [Kind.DEEP, jax.lax.Precision.HIGHEST],
    "dataclass": Settings(3, Kind.DEEP, [1, (2,)]),
    "named tuple": Pair(1, {"x": 2}),
    "partition": jax.sharding.PartitionSpec("data", None, ("a", "b")),
    "registered": [Scale(3.0), twice],
}


def through_r(node):
    """Return JSON as R returns it: without lists of one scalar, and with integers of 32 bits."""
    if isinstance(node, list):
        items = [through_r(item) for item in node]
        return (
            items[0] if len(items) == 1 and isinstance(items[0], (bool, int, float, str)) else items
        )
    if isinstance(node, dict):
        return {key: through_r(item) for key, item in node.items()}
    return (node + 2**31) % 2**32 - 2**31 if type(node) is int else node


@pytest.mark.parametrize("name", VALUES)
def test_a_loaded_value_equals_the_saved_value(name):
    value = VALUES[name]
    got = again(value)
    assert type(got) is type(value)
    if name in ("numbers", "partial", "class"):
        assert repr(got) == repr(value)
    else:
        assert got == value


def test_a_config_survives_a_round_trip_through_r():
    value = [
        [1],
        ["a"],
        [[True]],
        (2.5,),
        {"a": [3]},
        [None],
        [],
        {3},
        {1: [2]},
        jax.sharding.PartitionSpec("data"),
        Pair([0], ()),
    ]
    layer = FlaxLayer(Holder(value, part=nn.Conv(3, (2,))), seed=2**32 - 1)
    layer._held.frozen = ("params/part/bias",)
    config = json.loads(json.dumps(layer.get_config()))
    again = FlaxLayer.from_config(through_r(config))
    assert again.module.value == value
    assert [type(item) for item in again.module.value] == [type(item) for item in value]
    assert again.get_config() == config
    form = split({"b": None, "a": 1})[0]
    assert Form.from_config(through_r(json.loads(json.dumps(form.get_config())))) == form


ARRAYS = [
    np.float16(0.1),
    np.int8(-3),
    np.arange(6.0).reshape(2, 3),
    np.zeros((0, 3), np.uint8),
    np.array(True),
    np.array([np.nan, np.inf, -0.0], np.float32),
    np.array([1 + 2j], np.complex64),
    np.array([2**64 - 1], np.uint64),
    jnp.array([1.5, 3], jnp.bfloat16),
    jnp.float32(2),
]


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{type(array).__name__}-{array.dtype}")
def test_a_loaded_array_has_the_same_bits(array):
    got = again(array)
    assert type(got) is type(array)
    assert (got.dtype, got.shape) == (array.dtype, array.shape)
    assert np.asarray(got).tobytes() == np.asarray(array).tobytes()


INITIALIZERS = {
    "normal": nn.initializers.normal(0.02),
    "normal of a dtype": nn.initializers.normal(0.02, jnp.bfloat16),
    "lecun": nn.initializers.lecun_normal(in_axis=0, out_axis=1, batch_axis=()),
    "variance scaling": nn.initializers.variance_scaling(2.0, "fan_avg", "uniform"),
    "truncated": nn.initializers.truncated_normal(0.3, lower=-1.0, upper=1.5),
    "orthogonal": nn.initializers.orthogonal(0.5, column_axis=0),
    "uniform": nn.initializers.uniform(3),
    "constant": nn.initializers.constant(7.0),
    "constant array": nn.initializers.constant(np.arange(4.0).reshape(2, 2)),
    "ones": nn.initializers.ones_init(),
}


@pytest.mark.parametrize("name", INITIALIZERS)
def test_a_loaded_initializer_returns_the_same_values(name):
    key = jax.random.key(3)
    expected = INITIALIZERS[name](key, (2, 2))
    got = again(INITIALIZERS[name])(key, (2, 2))
    assert got.dtype == expected.dtype
    np.testing.assert_array_equal(got, expected)


def test_a_loaded_partitioned_initializer_keeps_its_axis_names():
    init = again(nn.with_partitioning(nn.initializers.normal(0.3), (None, "model")))
    box = init(jax.random.key(0), (2, 3))
    assert box.names == (None, "model")
    np.testing.assert_array_equal(box.value, nn.initializers.normal(0.3)(jax.random.key(0), (2, 3)))


MODULES = {
    "dense": nn.Dense(3, dtype=jnp.float16, kernel_init=nn.initializers.normal(0.3)),
    "sequential": nn.Sequential([nn.Dense(4), nn.relu, nn.Dense(3)]),
    "nested": Holder(
        Settings(2), part=Holder(value={"a": (nn.relu,)}, part=nn.Dense(3, name="inner"))
    ),
    "lists and dicts of modules": Holder([nn.Dense(1), {"a": nn.Conv(2, (3,))}], part=nn.Dense(3)),
    "rnn": nn.RNN(nn.LSTMCell(4), time_major=False),
    "weight norm": nn.WeightNorm(nn.Dense(3)),
    "attention": nn.MultiHeadDotProductAttention(
        2, qkv_features=4, precision=jax.lax.Precision.HIGHEST
    ),
}


@pytest.mark.parametrize("name", MODULES)
def test_a_loaded_module_has_the_same_outputs(name):
    x = jnp.linspace(0, 1, 40).reshape(2, 5, 4)
    outputs = [
        module.init_with_output(jax.random.key(1), x)
        for module in (MODULES[name], again(MODULES[name]))
    ]
    assert jax.tree.structure(outputs[0]) == jax.tree.structure(outputs[1])
    jax.tree.map(np.testing.assert_array_equal, *outputs)


def test_a_value_that_contains_itself_cannot_be_saved():
    value = []
    value.append(value)
    with pytest.raises(ConfigError, match="Holder"):
        FlaxLayer(Holder(value)).get_config()


def test_a_config_is_readable_json():
    config = FlaxLayer(
        nn.Dense(3, kernel_init=nn.initializers.normal(0.5)), name="net", seed=1
    ).get_config()
    assert json.loads(json.dumps(config)) == config
    assert config["format_version"] == 1
    assert config["module"] == {
        "object": "flax.linen:Dense",
        "fields": {
            "features": 3,
            "kernel_init": {
                "initializer": "jax.nn.initializers:normal",
                "arguments": {"stddev": 0.5},
            },
        },
    }


UNSAVABLE = {
    "lambda": (nn.Sequential([nn.Dense(3), lambda x: x]), r"Sequential\.layers\[1\]"),
    "deep": (Holder({"a": [object()]}), r"Holder\.value\['a'\]\[0\]"),
    "text array": (Holder(np.array(["a"])), r"Holder\.value"),
    "key": (Holder(jax.random.key(0)), r"Holder\.value"),
    "with a mesh": (
        Holder(nn.with_partitioning(nn.relu, (None,), mesh=object())),
        r"Holder\.value",
    ),
}


@pytest.mark.parametrize("name", UNSAVABLE)
def test_an_error_names_the_path_of_a_value_that_cannot_be_saved(name):
    module, path = UNSAVABLE[name]
    with pytest.raises(ConfigError, match=path):
        FlaxLayer(module).get_config()


def test_a_method_is_saved_by_its_name_or_its_registered_name():
    def config_of(module, method):
        return json.loads(json.dumps(FlaxLayer(module, method).get_config()))

    module = nn.Dense(5)
    for method in ("__call__", module.__call__, nn.Dense.__call__, twice):
        layer = FlaxLayer.from_config(config_of(module, method))
        layer(np.ones((1, 5), np.float32))
    assert layer.method is twice
    with pytest.raises(ConfigError, match="`method`"):
        config_of(module, lambda module, inputs: module(inputs))


def test_a_loaded_field_keeps_its_value_if_its_default_has_changed():
    def define(default, options, function):
        annotations = {"rate": float, "options": dict, "function": Any}
        body = {
            "__module__": __name__,
            "__annotations__": annotations,
            "rate": default,
            "function": function,
        }
        return type(
            "Changing",
            (nn.Module,),
            body | {"options": dataclasses.field(default_factory=lambda: options)},
        )

    # A default that cannot be saved is omitted, and comes from the class.
    node = json.loads(json.dumps(to_config(define(0.5, {"a": 1}, len)(), "net")))
    assert node["fields"] == {"rate": 0.5, "options": {"dict": {"a": 1}}}
    new = define(0.1, {}, max)
    module = from_config(node, "net")
    assert (type(module), module.rate, module.options, module.function) == (new, 0.5, {"a": 1}, max)


# Models -------------------------------------------------------------------------------------------


def test_a_loaded_model_predicts_and_trains_like_the_saved_one(tmp_path):
    model = model_of(ConvNet(), regularizers={"params/**/kernel": keras.regularizers.L2(0.01)})
    freeze(model, "net/params/Conv_0/*")
    model.fit(X, Y, epochs=2, verbose=0)
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert [v.path for v in loaded.weights] == [v.path for v in model.weights]
    assert loaded.layers[-1].frozen == ["params/Conv_0/bias", "params/Conv_0/kernel"]
    np.testing.assert_array_equal(loaded.predict(X, verbose=0), model.predict(X, verbose=0))
    # Older versions of Keras continue the mean of the last epoch.
    model.reset_metrics()
    assert loaded.train_on_batch(X, Y) == model.train_on_batch(X, Y)
    for mine, theirs in zip(model.weights, loaded.weights, strict=True):
        np.testing.assert_array_equal(mine, theirs, err_msg=mine.path)


def test_weights_nested_below_weights_are_saved(tmp_path):
    model = keras.Sequential([keras.Input((4,)), FlaxLayer(nn.WeightNorm(nn.Dense(3)))])
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    x = np.linspace(0, 1, 8, dtype=np.float32).reshape(2, 4)
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))


def test_an_unbuilt_layer_is_saved_and_loaded(tmp_path):
    with pytest.warns(UserWarning, match="not yet been built"):
        keras.Sequential([FlaxLayer(nn.Dense(2), seed=4)]).save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert not loaded.layers[0].built
    assert loaded.predict(np.ones((2, 3), np.float32), verbose=0).shape == (2, 2)


def test_a_clone_has_the_same_settings_and_other_values():
    model = model_of(MLP())
    clone = keras.models.clone_model(model)
    assert clone.layers[-1].get_config() == model.layers[-1].get_config()
    paths = [path for path in model.layers[-1].variables_by_path if path.endswith("kernel")]
    for path in paths:
        mine, theirs = (m.layers[-1].variables_by_path[path].numpy() for m in (model, clone))
        assert mine.shape == theirs.shape
        assert not np.array_equal(mine, theirs)


@pytest.mark.parametrize("policy", [None, "bfloat16", "mixed_bfloat16"])
def test_a_dtype_policy_is_saved(policy):
    layer = FlaxLayer.from_config(FlaxLayer(nn.Dense(2), dtype=policy).get_config())
    layer(np.ones((1, 3), np.float32))
    assert str(layer.variables_by_path["params/kernel"].dtype) == (
        "bfloat16" if policy == "bfloat16" else "float32"
    )
    assert layer.get_config() == FlaxLayer.from_config(layer.get_config()).get_config()


def test_integer_inputs_and_given_collections_survive_saving(tmp_path):
    class Reader(nn.Module):
        @nn.compact
        def __call__(self, inputs):
            return nn.Embed(7, 3)(inputs) * self.get_variable("scale", "by", 2.0)

    params = Reader().init(jax.random.key(0), np.zeros((1, 4), np.int32))
    inputs = keras.Input((4,), dtype="int32")
    layer = FlaxLayer(Reader(), variables={**params, "scale": {"by": np.full(3, 5, np.float32)}})
    model = keras.Model(inputs, layer(inputs))
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    tokens = np.arange(8).reshape(2, 4) % 7
    np.testing.assert_array_equal(
        loaded.predict(tokens, verbose=0), model.predict(tokens, verbose=0)
    )


def test_a_dataclass_of_inputs_survives_saving(tmp_path):
    inputs = keras.Input((4,)), keras.Input((3,))
    model = keras.Model(inputs, FlaxLayer(Sum())(Two(*inputs)))
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    x = [np.linspace(0, 1, 8, dtype=np.float32).reshape(2, 4), np.ones((2, 3), np.float32)]
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))


def test_check_savable_refuses_a_model_that_cannot_be_saved():
    @flax.struct.dataclass
    class Local:
        a: Any
        b: Any

    inputs = keras.Input((4,)), keras.Input((3,))
    check_savable(keras.Model(inputs, FlaxLayer(Sum())(Two(*inputs))))
    with pytest.raises(ConfigError, match=r"The input .*Local is local to a function"):
        check_savable(keras.Model(inputs, FlaxLayer(Sum())(Local(*inputs))))
    wrapped = keras.layers.TimeDistributed(FlaxLayer(nn.Sequential([lambda x: x])))
    with pytest.raises(ConfigError, match=r"Sequential\.layers"):
        check_savable(keras.Sequential([keras.Input((3, 4)), wrapped]))


def test_a_deferred_model_of_integer_inputs_survives_saving(tmp_path):
    model = keras.Sequential([FlaxLayer(nn.Sequential([nn.Embed(7, 3), nn.Dense(2)]))])
    model.compile("sgd", "mse")
    tokens = np.arange(8).reshape(2, 4) % 7
    model.fit(tokens, np.zeros((2, 4, 2)), verbose=0)
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(
        loaded.predict(tokens, verbose=0), model.predict(tokens, verbose=0)
    )
    model.reset_metrics()
    assert loaded.train_on_batch(tokens, np.ones((2, 4, 2))) == model.train_on_batch(
        tokens, np.ones((2, 4, 2))
    )


@pytest.mark.parametrize("optimizer", ["SGD(0.1, momentum=0.9)", "Adam(0.01)"])
def test_a_new_process_takes_the_same_next_training_steps(optimizer, tmp_path):
    code = """
        import keras, numpy as np
        from modules import ConvNet
        from kerasflax import FlaxLayer, freeze
        x = np.linspace(-1, 1, 8 * 5 * 5, dtype=np.float32).reshape(8, 5, 5, 1)
        y = np.linspace(0, 1, 8 * 3, dtype=np.float32).reshape(8, 3)
        {begin}
        model.reset_metrics()
        print(model.predict(x, verbose=0).tolist(), [model.train_on_batch(x, y) for _ in range(2)])
        print([(w.path, w.trainable, w.numpy().tobytes().hex()) for w in model.weights])
        print([w.numpy().tobytes().hex() for w in model.optimizer.variables])
    """
    path = str(tmp_path / "m.keras")
    first = (
        "layer = FlaxLayer(ConvNet(), name='net', seed=1); "
        "model = keras.Sequential([keras.Input((5, 5, 1)), layer]); "
        "freeze(model, 'net/params/Conv_0/*'); "
        f"model.compile(keras.optimizers.{optimizer}, 'mse'); "
        f"model.fit(x, y, batch_size=2, epochs=2, verbose=0); model.save({path!r})"
    )
    old = run_code(code.format(begin=first))
    assert run_code(code.format(begin=f"model = keras.models.load_model({path!r})")) == old


def test_killed_training_resumes_as_if_it_had_never_stopped(tmp_path):
    train = """
        import os, sys, keras, numpy as np
        from modules import ConvNet
        from kerasflax import FlaxLayer
        x = np.linspace(-1, 1, 8 * 5 * 5, dtype=np.float32).reshape(8, 5, 5, 1)
        y = np.linspace(0, 1, 8 * 3, dtype=np.float32).reshape(8, 3)
        class Kill(keras.callbacks.Callback):
            def on_epoch_begin(self, epoch, logs=None):
                self.epoch = epoch
            def on_train_batch_end(self, batch, logs=None):
                if (self.epoch, batch) == (2, 1):
                    sys.stdout.flush()
                    os._exit(0)
        model = keras.Sequential([keras.Input((5, 5, 1)), FlaxLayer(ConvNet(), seed=1)])
        model.compile("adam", "mse")
        callbacks = [
            keras.callbacks.BackupAndRestore({folder!r}),
            keras.callbacks.ModelCheckpoint({path!r}),
            *[Kill()] * {kill},
        ]
        model.fit(x, y, batch_size=2, epochs=4, shuffle=False, verbose=0, callbacks=callbacks)
        print([w.numpy().tobytes().hex() for w in model.weights])
        saved = keras.models.load_model({path!r})
        assert model.predict(x, verbose=0).tolist() == saved.predict(x, verbose=0).tolist()
    """

    def printed(folder, kill):
        return run_code(
            train.format(
                folder=str(tmp_path / folder),
                path=str(tmp_path / "m.keras"),
                kill=kill,
            )
        )

    assert printed("killed", kill=True) == ""
    assert printed("killed", kill=False) == printed("never killed", kill=False) != ""


# The recorded numbers come from optimized programs. Without optimization, tanh differs by 2e-5.
@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize(
    "path", sorted(FIXTURES.glob("v*/*.keras")), ids=lambda path: f"{path.parent.name}-{path.stem}"
)
def test_files_of_every_version_are_loaded(path):
    expected = json.loads(path.with_suffix(".json").read_text())
    with keras.saving.custom_object_scope({"Fixture": write.Fixture}):
        model = keras.models.load_model(path)
    np.testing.assert_allclose(
        model.predict(write.INPUTS, verbose=0), expected["predicted"], rtol=1e-5, atol=1e-6
    )
    assert all(name.endswith("/bias") for name in model.layers[-1].frozen)
    np.testing.assert_allclose(
        model.train_on_batch(write.INPUTS, write.TARGETS), expected["next_loss"], rtol=1e-5
    )
