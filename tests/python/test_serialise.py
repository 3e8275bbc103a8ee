import base64
import contextlib
import dataclasses
import enum
import functools
import importlib
import inspect
import json
import marshal
import os
import pickle
import subprocess
import sys
import textwrap
import time
import zipfile
from collections import namedtuple
from pathlib import Path
from typing import Any

import flax
import hostile
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from fixtures import write
from flax import linen as nn
from modules import MLP, ConvNet

import kerasflax
from kerasflax import ConfigError, FlaxLayer, ModuleError, freeze
from kerasflax._models import check_savable
from kerasflax.bridge._forms import Form, split
from kerasflax.saving import _allowed
from kerasflax.saving._to_json import from_config, to_config

FIXTURES = Path(write.__file__).parent
X = np.linspace(-1, 1, 8 * 5 * 5, dtype=np.float32).reshape(8, 5, 5, 1)
Y = np.linspace(0, 1, 8 * 3, dtype=np.float32).reshape(8, 3)


class Kind(enum.Enum):
    WIDE = 1
    DEEP = 2


@dataclasses.dataclass
class Settings:
    width: int
    kind: Kind = Kind.WIDE
    sizes: list = dataclasses.field(default_factory=list)


Pair = namedtuple("Pair", ["a", "b"])


class Holder(nn.Module):
    """Whatever a field may hold."""

    value: Any = None
    part: nn.Module | None = None

    @nn.compact
    def __call__(self, inputs):
        return (self.part or nn.Dense(3))(inputs)


@flax.struct.dataclass
class Two:
    a: Any
    b: Any


class Declares(nn.Module):
    """Makes the data classes above known as what fields of modules hold."""

    settings: Settings | None = None
    pairs: "tuple[Pair, ...]" = ()
    inputs: "dict[str, Two]" = dataclasses.field(default_factory=dict)


class Sum(nn.Module):
    @nn.compact
    def __call__(self, inputs):
        return nn.Dense(3)(inputs.a) + inputs.b


@keras.saving.register_keras_serializable(package="tests")
class Scale:
    def __init__(self, by):
        self.by = by

    def get_config(self):
        return {"by": self.by}

    def __eq__(self, other):
        return isinstance(other, Scale) and self.by == other.by

    __hash__ = None


@keras.saving.register_keras_serializable(package="tests")
def twice(module, inputs):
    return module(module(inputs))


@keras.saving.register_keras_serializable(package="tests")
def make_folder(path):
    os.mkdir(path)


def again(value):
    return from_config(json.loads(json.dumps(to_config(value, "value"))), "value")


# Values -----------------------------------------------------------------------------------------------------------------

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
    """What R makes of JSON, and hands back: a list of one scalar is that scalar, and integers are of 32 bits."""
    if isinstance(node, list):
        items = [through_r(item) for item in node]
        return (
            items[0] if len(items) == 1 and isinstance(items[0], (bool, int, float, str)) else items
        )
    if isinstance(node, dict):
        return {key: through_r(item) for key, item in node.items()}
    return (node + 2**31) % 2**32 - 2**31 if type(node) is int else node


@pytest.mark.parametrize("name", VALUES)
def test_values_come_back_as_they_were(name):
    value = VALUES[name]
    got = again(value)
    assert type(got) is type(value)
    if name in ("numbers", "partial", "class"):
        assert repr(got) == repr(value)
    else:
        assert got == value


def test_a_config_goes_through_r():
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
    layer.by_path.frozen = ("params/part/bias",)
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
def test_arrays_come_back_to_the_bit(array):
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
def test_initializers_give_the_same_values(name):
    key = jax.random.key(3)
    expected = INITIALIZERS[name](key, (2, 2))
    got = again(INITIALIZERS[name])(key, (2, 2))
    assert got.dtype == expected.dtype
    np.testing.assert_array_equal(got, expected)


def test_partitioned_initializers_keep_their_names():
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
def test_modules_come_back_with_the_same_outputs(name):
    x = jnp.linspace(0, 1, 40).reshape(2, 5, 4)
    outputs = [
        module.init_with_output(jax.random.key(1), x)
        for module in (MODULES[name], again(MODULES[name]))
    ]
    assert jax.tree.structure(outputs[0]) == jax.tree.structure(outputs[1])
    jax.tree.map(np.testing.assert_array_equal, *outputs)


def test_what_holds_itself_cannot_be_saved():
    value = []
    value.append(value)
    with pytest.raises(ConfigError, match="Holder"):
        FlaxLayer(Holder(value)).get_config()


def test_a_config_can_be_read_by_a_person():
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
def test_what_cannot_be_saved_is_named_by_its_path(name):
    module, path = UNSAVABLE[name]
    with pytest.raises(ConfigError, match=path):
        FlaxLayer(module).get_config()


def test_a_method_is_saved_by_name_or_registered():
    def config_of(module, method):
        return json.loads(json.dumps(FlaxLayer(module, method).get_config()))

    module = nn.Dense(5)
    for method in ("__call__", module.__call__, nn.Dense.__call__, twice):
        layer = FlaxLayer.from_config(config_of(module, method))
        layer(np.ones((1, 5), np.float32))
    assert layer.method is twice
    with pytest.raises(ConfigError, match="`method`"):
        config_of(module, lambda module, inputs: module(inputs))


# Models -----------------------------------------------------------------------------------------------------------------


def model_of(module, **arguments):
    model = keras.Sequential([keras.Input(X.shape[1:]), FlaxLayer(module, name="net", **arguments)])
    model.compile("adam", "mse")
    return model


def test_a_loaded_model_goes_on_as_the_saved_one_would(tmp_path):
    model = model_of(ConvNet(), regularizers={"params/**/kernel": keras.regularizers.L2(0.01)})
    freeze(model, "net/params/Conv_0/*")
    model.fit(X, Y, epochs=2, verbose=0)
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert [v.path for v in loaded.weights] == [v.path for v in model.weights]
    assert loaded.layers[-1].frozen == ["params/Conv_0/bias", "params/Conv_0/kernel"]
    np.testing.assert_array_equal(loaded.predict(X, verbose=0), model.predict(X, verbose=0))
    # Older versions of Keras go on with the mean of the last epoch.
    model.reset_metrics()
    assert loaded.train_on_batch(X, Y) == model.train_on_batch(X, Y)
    for mine, theirs in zip(model.weights, loaded.weights, strict=True):
        np.testing.assert_array_equal(mine, theirs, err_msg=mine.path)


def test_weights_below_weights_are_saved(tmp_path):
    model = keras.Sequential([keras.Input((4,)), FlaxLayer(nn.WeightNorm(nn.Dense(3)))])
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    x = np.linspace(0, 1, 8, dtype=np.float32).reshape(2, 4)
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))


def test_a_layer_that_was_not_built_is_saved_and_loaded(tmp_path):
    with pytest.warns(UserWarning, match="not yet been built"):
        keras.Sequential([FlaxLayer(nn.Dense(2), seed=4)]).save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert not loaded.layers[0].built
    assert loaded.predict(np.ones((2, 3), np.float32), verbose=0).shape == (2, 2)


def test_a_clone_has_the_same_settings_and_values_of_its_own():
    model = model_of(MLP())
    clone = keras.models.clone_model(model)
    assert clone.layers[-1].get_config() == model.layers[-1].get_config()
    paths = [path for path in model.layers[-1].variables_by_path if path.endswith("kernel")]
    for path in paths:
        mine, theirs = (m.layers[-1].variables_by_path[path].numpy() for m in (model, clone))
        assert mine.shape == theirs.shape
        assert not np.array_equal(mine, theirs)


class Printed(nn.Module):
    features: int = 1

    def __repr__(self):
        raise AssertionError("printed with the file's values")


def test_no_error_prints_an_object_that_was_made_from_the_file():
    node = {"constructor": f"{__name__}:Printed", "keywords": {"features": 12345}}
    with pytest.raises(ConfigError, match="is no class of NNX modules"):
        FlaxLayer.from_config(FlaxLayer(nn.Dense(1)).get_config() | {"module": node})


@pytest.mark.parametrize(
    "policy",
    [
        "int8_from_float32",
        "int4/32_from_float32",
        "float8_from_float32",
        "gptq/4/128_from_float32",
        "mixed_",
        "",
        "x" * 99,
    ],
)
def test_a_policy_that_is_not_listed_is_not_made_of_its_name(policy):
    with pytest.raises(ConfigError, match="which is no dtype policy of a Flax layer"):
        FlaxLayer.from_config(FlaxLayer(nn.Dense(1)).get_config() | {"dtype": policy})


@pytest.mark.parametrize("policy", [None, "bfloat16", "mixed_bfloat16"])
def test_a_policy_is_kept_where_there_is_one(policy):
    layer = FlaxLayer.from_config(FlaxLayer(nn.Dense(2), dtype=policy).get_config())
    layer(np.ones((1, 3), np.float32))
    assert str(layer.variables_by_path["params/kernel"].dtype) == (
        "bfloat16" if policy == "bfloat16" else "float32"
    )
    assert layer.get_config() == FlaxLayer.from_config(layer.get_config()).get_config()


def test_tokens_and_collections_that_were_given_are_there_after_loading(tmp_path):
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


def test_what_a_layer_was_called_with_is_kept(tmp_path):
    inputs = keras.Input((4,)), keras.Input((3,))
    model = keras.Model(inputs, FlaxLayer(Sum())(Two(*inputs)))
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    x = [np.linspace(0, 1, 8, dtype=np.float32).reshape(2, 4), np.ones((2, 3), np.float32)]
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))


def test_a_model_that_cannot_be_saved_is_known_before_the_file_is_opened():
    @flax.struct.dataclass
    class Local:
        a: Any
        b: Any

    inputs = keras.Input((4,)), keras.Input((3,))
    check_savable(keras.Model(inputs, FlaxLayer(Sum())(Two(*inputs))))
    with pytest.raises(ConfigError, match=r"The input .*Local is made in a function"):
        check_savable(keras.Model(inputs, FlaxLayer(Sum())(Local(*inputs))))
    wrapped = keras.layers.TimeDistributed(FlaxLayer(nn.Sequential([lambda x: x])))
    with pytest.raises(ConfigError, match=r"Sequential\.layers"):
        check_savable(keras.Sequential([keras.Input((3, 4)), wrapped]))


@pytest.mark.parametrize(
    "wrong",
    [
        *({"positions": positions} for positions in (None, [0], [0, 0], [0, "1"], [1, 2])),
        *({"model": {"tuple": leaves}} for leaves in ([0, "a"], [0, 0.5], [0, {"set": [1]}])),
    ],
)
def test_a_wrong_form_is_refused(wrong):
    config = split(Two(1, 2))[0].get_config()
    with pytest.raises(ConfigError, match="form"):
        Form.from_config(config | wrong)


def test_a_deferred_model_of_tokens_is_loaded(tmp_path):
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


def run(code, **environment):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_new_process_finds_the_module_in_the_script_in_a_package_and_nowhere(tmp_path):
    (tmp_path / "netpackage.py").write_text(
        "from flax import linen as nn\n"
        "class Net(nn.Module):\n"
        "    units: int = 3\n"
        "    @nn.compact\n"
        "    def __call__(self, inputs):\n"
        "        return nn.Dense(self.units)(inputs)\n"
    )
    make = """
        import keras, numpy as np, kerasflax
        from kerasflax import FlaxLayer
        {define}
        model = keras.Sequential([keras.Input((4,)), FlaxLayer(Net(units=2), seed=3)])
        model.save({path!r})
        print(model.predict(np.ones((1, 4)), verbose=0).tolist())
    """
    load = """
        import keras, numpy as np, kerasflax
        {define}
        try:
            print(keras.models.load_model({path!r}).predict(np.ones((1, 4)), verbose=0).tolist())
        except kerasflax.ConfigError as error:
            print(error)
    """
    script = (tmp_path / "netpackage.py").read_text().replace("\n", "\n        ")
    for name, define in {"script": script, "package": "from netpackage import Net"}.items():
        path = str(tmp_path / f"{name}.keras")
        expected = run(
            make.format(define=define, path=path),
            PYTHONPATH=os.pathsep.join([str(tmp_path), *sys.path]),
        )
        found = run(
            load.format(define=define, path=path),
            PYTHONPATH=os.pathsep.join([str(tmp_path), *sys.path]),
        )
        assert found == expected
        missing = run(
            load.format(define="", path=path),
            PYTHONPATH=os.pathsep.join([str(tmp_path), *sys.path]),
        )
        assert "'Net'" in missing
        assert ("import netpackage" if name == "package" else "the code that defines it") in missing


@pytest.mark.parametrize("optimizer", ["SGD(0.1, momentum=0.9)", "Adam(0.01)"])
def test_a_new_process_makes_the_next_steps_that_the_old_one_would_have_made(optimizer, tmp_path):
    code = """
        import sys, keras, numpy as np
        sys.path.insert(0, {tests!r})
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
        "model = keras.Sequential([keras.Input((5, 5, 1)), FlaxLayer(ConvNet(), name='net', seed=1)]); "
        f"freeze(model, 'net/params/Conv_0/*'); model.compile(keras.optimizers.{optimizer}, 'mse'); "
        f"model.fit(x, y, batch_size=2, epochs=2, verbose=0); model.save({path!r})"
    )
    tests = os.path.dirname(__file__)
    old = run(code.format(tests=tests, begin=first))
    assert run(code.format(tests=tests, begin=f"model = keras.models.load_model({path!r})")) == old


def test_training_that_was_killed_goes_on_as_if_it_had_not_been(tmp_path):
    train = """
        import os, sys, keras, numpy as np
        sys.path.insert(0, {tests!r})
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
        callbacks = [keras.callbacks.BackupAndRestore({folder!r}), keras.callbacks.ModelCheckpoint({path!r})]
        model.fit(x, y, batch_size=2, epochs=4, shuffle=False, verbose=0, callbacks=callbacks + [Kill()] * {kill})
        print([w.numpy().tobytes().hex() for w in model.weights])
        assert model.predict(x, verbose=0).tolist() == keras.models.load_model({path!r}).predict(x, verbose=0).tolist()
    """
    tests = os.path.dirname(__file__)

    def printed(folder, kill):
        return run(
            train.format(
                tests=tests,
                folder=str(tmp_path / folder),
                path=str(tmp_path / "m.keras"),
                kill=kill,
            )
        )

    assert printed("killed", kill=True) == ""
    assert printed("killed", kill=False) == printed("never killed", kill=False) != ""


# The recorded numbers come from optimized programs; tanh differs by 2e-5 without optimization.
@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize(
    "path", sorted(FIXTURES.glob("v*/*.keras")), ids=lambda path: f"{path.parent.name}-{path.stem}"
)
def test_files_of_every_version_are_read(path):
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


# Foreign files ----------------------------------------------------------------------------------------------------------

HOSTILE = {
    "no description": None,
    "a number": 3,
    "another kind of key": {"python/object/apply": "os.system"},
    "two kinds": {"object": "flax.linen:Dense", "function": "jax.nn:relu"},
    "a module of the system": {"object": "os:system", "fields": {}},
    "a class of the system": {"object": "subprocess:Popen", "fields": {"args": ["true"]}},
    "a package not imported": {"object": "antigravity:Net", "fields": {}},
    "a submodule of one": {"object": "test.support:Net", "fields": {}},
    "a Linen class as a maker of NNX modules": {
        "constructor": "flax.linen:Dense",
        "arguments": [1],
    },
    "a bridge to Linen as a maker of NNX modules": {
        "constructor": "flax.nnx.bridge.wrappers:ToLinen",
        "arguments": [1],
    },
    "a private way": {"object": "flax.linen:Dense.__init__.__globals__", "fields": {}},
    "a function as a class": {"object": "flax.linen:vmap", "fields": {}},
    "no such field": {"object": "flax.linen:Dense", "fields": {"features": 1, "evil": 2}},
    "fields that are none": {"object": "flax.linen:Dense", "fields": [1]},
    "no text": {"object": 3, "fields": {}},
    "a function that reads": {"function": "jax.numpy:load"},
    "a function that writes": {"function": "jax.numpy:save"},
    "a function that calls back": {"function": "jax.lax:map"},
    "a transformation": {"function": "flax.linen:jit"},
    "another namespace": {"function": "builtins:eval"},
    "a namespace below": {"function": "jax.numpy.linalg:inv"},
    "another factory": {"initializer": "builtins:open", "arguments": {"file": "x"}},
    "a partial of nothing": {"partial": {"tuple": []}},
    "a partial of open": {"partial": {"function": "builtins:open"}, "arguments": ["x"]},
    "a type": {"type": "builtins:type"},
    "an enum": {"enum": "flax.linen:Dense", "member": "x"},
    "an array of text": {"array": ["a"], "shape": [1], "dtype": "str"},
    "an array of objects": {"array": [1], "shape": [1], "dtype": "object"},
    "an array that is too large": {"array": [], "shape": [10**12], "dtype": "float32"},
    "an array whose sizes overflow": {
        "array": [],
        "shape": [2**62, 0],
        "dtype": "float32",
        "of": "jax",
    },
    "a function of a function": {"function": "jax.numpy:mask_indices"},
    "a wrong number": {"float": "__import__('os')"},
    "a set of lists": {"set": [[1]]},
    "another package's class, through Flax": {
        "object": "flax.training.checkpoints:ocp.CheckpointManagerOptions"
    },
    "another package's class, through a package": {
        "object": "kerasflax.saving._to_json:np.ndarray"
    },
    "a parent": {
        "object": "flax.linen:Dense",
        "fields": {"parent": {"object": "flax.linen:Dense", "fields": {"features": 1}}},
    },
    "a shaped dtype": {"dtype": "(1000000000,)f4"},
    "a dtype that is code": {"dtype": "(1,"},
    "an accessor": {
        "object": "flax.nnx.proxy_caller:DelayedAccessor",
        "fields": {"actions": {"tuple": []}},
    },
    "a dataclass of Flax": {"object": "flax.nnx.proxy_caller:GetAttr", "fields": {"name": "x"}},
    "a sequence of classes": {
        "object": "flax.linen:Sequential",
        "fields": {"layers": [{"type": "flax.linen:Dense"}]},
    },
    "a sequence of data": {"object": "flax.linen:Sequential", "fields": {"layers": ["x"]}},
    "a module that makes what is called": {
        "object": "flax.linen:Dense",
        "fields": {
            "features": 1,
            "dot_general_cls": {"object": "flax.linen:Dense", "fields": {"features": 1}},
        },
    },
    "a partial of a module": {
        "partial": {"object": "flax.linen:Dense", "fields": {"features": 1}},
        "keywords": {"rngs": 1},
    },
    "a partial of a partial": {"partial": {"partial": {"function": "jax.nn:relu"}}},
    "a partial of a wrapper": {
        "partial": {"type": "flax.nnx.bridge.wrappers:ToLinen"},
        "keywords": {"skip_rng": True},
    },
    "a partial of a class, with a wrong field": {
        "partial": {"type": "flax.linen:Dense"},
        "keywords": {"evil": 1},
    },
    "a partial of a function, with a function": {
        "partial": {"function": "flax.linen:dot_product_attention"},
        "keywords": {"einsum": {"function": "jax.numpy:append"}},
    },
    "a set of modules": {"set": [{"object": "flax.linen:Dense", "fields": {"features": 1}}]},
    "a dict by modules": {"dict": [[{"object": "flax.linen:Dense", "fields": {"features": 1}}, 1]]},
    "a private function": {"function": "jax.numpy:_einsum"},
    "a class of NumPy that is no number": {"type": "numpy:memmap"},
    "a lazy module of NumPy": {"type": "numpy:matlib"},
    "nobody's": {"registered": "nobody>thing"},
}
DEEP: Any = 1
for _ in range(500):
    DEEP = [DEEP]
HOSTILE["deep"] = {"tuple": DEEP}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_description_is_an_error_and_imports_nothing(name):
    config = FlaxLayer(nn.Dense(1)).get_config() | {"module": HOSTILE[name]}
    # A file may name Flax's own modules, and NNX brings packages of its own.
    from_config({"constructor": "flax.nnx:Linear", "arguments": [1, 1]}, "it")
    before = set(sys.modules)
    with pytest.raises((ConfigError, TypeError), match=r"described|module|taken|known") as caught:
        FlaxLayer.from_config(config)
    assert type(caught.value).__module__ == "kerasflax"
    assert {name.partition(".")[0] for name in set(sys.modules) - before} <= {"jax", "flax"}


def test_no_program_of_a_package_is_run(tmp_path, monkeypatch):
    (tmp_path / "programpackage").mkdir()
    (tmp_path / "programpackage/__init__.py").write_text(
        "from flax import linen as nn\nclass Net(nn.Module): pass\n"
    )
    (tmp_path / "programpackage/more.py").write_text(
        "from flax import linen as nn\nclass Other(nn.Module): pass\n"
    )
    (tmp_path / "programpackage/__main__.py").write_text(
        f"import os\nos.mkdir({str(tmp_path / 'mark')!r})\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("programpackage")
    with pytest.raises(ConfigError, match=r"Run `import programpackage\.more` first"):
        from_config({"object": "programpackage.more:Other"}, "it")
    assert "programpackage.more" not in sys.modules
    with pytest.raises(ConfigError, match=r"not there.\nRun the code"):
        from_config({"object": "programpackage.__main__:Net"}, "it")
    importlib.import_module("programpackage.more")
    assert type(from_config({"object": "programpackage.more:Other"}, "it")).__name__ == "Other"
    assert not (tmp_path / "mark").exists()


def test_nobody_is_asked_to_import_what_is_there_or_has_no_modules():
    for name in ("os:Net", "antigravity:Net", f"{__name__}:Net"):
        with pytest.raises(ConfigError, match="does not have") as caught:
            from_config({"object": name}, "it")
        assert "import" not in str(caught.value)


def damaged(path, change):
    """Change the description of the layer in a file."""
    with zipfile.ZipFile(path) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    config = json.loads(parts["config.json"])
    change(config["config"]["layers"][-1])
    with zipfile.ZipFile(path, "w") as file:
        for name, data in parts.items():
            file.writestr(name, json.dumps(config) if name == "config.json" else data)


def walk_to_exec(mark):
    """Two steps, to run a command: attributes are looked up by name until there is `exec`, which a wrapper then calls."""
    accessor = "flax.nnx.proxy_caller"
    actions = [
        *(
            {"object": f"{accessor}:GetAttr", "fields": {"name": name}}
            for name in ("__wrapped__", "__globals__")
        ),
        *(
            {"object": f"{accessor}:GetItem", "fields": {"key": key}}
            for key in ("__builtins__", "exec")
        ),
    ]
    return {
        "partial": {
            "object": f"{accessor}:DelayedAccessor",
            "fields": {"actions": {"tuple": actions}},
        },
        "arguments": [{"function": "jax.numpy:append"}],
    }, {
        "partial": {"type": "flax.nnx.bridge.wrappers:ToLinen"},
        "keywords": {
            "args": {"tuple": [f"__import__('os').mkdir({str(mark)!r})"]},
            "skip_rng": True,
        },
    }


def dense(**fields):
    return {"object": "flax.linen:Dense", "fields": {"features": 3, **fields}}


def sequence(*layers):
    return {"object": "flax.linen:Sequential", "fields": {"layers": list(layers)}}


def through_dot_general(mark):
    return dense(dot_general_cls=sequence(*walk_to_exec(mark)))


class Payload:
    """What a pickle may do when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def payload(path):
    return base64.b64encode(pickle.dumps(Payload(str(path)))).decode()


def lambda_that_makes(path):
    code = marshal.dumps(compile(f"__import__('os').mkdir({str(path)!r})", "file", "eval"))
    value = base64.b64encode(code).decode()
    return {
        "class_name": "__lambda__",
        "config": {"value": value},
        "registered_name": "kerasflax>FlaxLayer",
    }


# As foreign files have run code in Keras.
ATTACKS = {
    # CVE-2025-1550: names of modules and functions in config.json.
    "a function of the system": lambda layer, mark: layer["config"].update(
        module={"object": "os:mkdir", "fields": {"path": str(mark)}}
    ),
    "a partial of one": lambda layer, mark: layer["config"].update(
        module={"partial": {"function": "os:mkdir"}, "arguments": [str(mark)]}
    ),
    "a registered function": lambda layer, mark: layer["config"].update(
        module={"registered": "tests>make_folder", "config": {"dict": {"path": str(mark)}}}
    ),
    "a registered function as a method": lambda layer, mark: layer["config"].update(
        method={"registered": "tests>make_folder", "config": {"dict": {"path": str(mark)}}}
    ),
    "an object of Keras's": lambda layer, mark: layer["config"].update(
        module={
            "module": "os",
            "class_name": "mkdir",
            "config": {"path": str(mark)},
            "registered_name": "mkdir",
        }
    ),
    "a lambda of Keras's": lambda layer, mark: layer["config"].update(
        method={"class_name": "__lambda__", "config": {"value": payload(mark)}}
    ),
    # Keras looks for a lambda where its caller looks for regularizers, if a registered name leads it there.
    "a lambda as a regularizer": lambda layer, mark: layer["config"].update(
        regularizers={"**": lambda_that_makes(mark)}
    ),
    "a lambda as a constraint": lambda layer, mark: layer["config"].update(
        constraints={"**": lambda_that_makes(mark)}
    ),
    "a lambda as a policy": lambda layer, mark: layer["config"].update(
        dtype=lambda_that_makes(mark)
    ),
    "the layer's own class": lambda layer, mark: layer.update(
        module="os", class_name="mkdir", registered_name="mkdir"
    ),
    # CVE-2025-49655: a pickle in the place of a module.
    "a pickle": lambda layer, mark: layer["config"].update(module=payload(mark)),
    "a pickle as bytes": lambda layer, mark: layer["config"].update(
        module={"class_name": "__bytes__", "config": {"value": payload(mark)}}
    ),
    # CVE-2026-1462: a path in the config to something that is loaded and run.
    "a path": lambda layer, mark: layer["config"].update(filepath=str(mark)),
    "variables": lambda layer, mark: layer["config"].update(variables={"params": payload(mark)}),
    "attributes by name, to exec": lambda layer, mark: layer["config"].update(
        module=through_dot_general(mark)
    ),
    "the same in a sequence": lambda layer, mark: layer["config"].update(
        module=sequence(*walk_to_exec(mark))
    ),
    "the same in NNX": lambda layer, mark: layer["config"].update(
        module={"constructor": "flax.nnx:Sequential", "arguments": [*walk_to_exec(mark)]}
    ),
    "the same in an initializer": lambda layer, mark: layer["config"].update(
        module=dense(kernel_init=sequence(*walk_to_exec(mark)))
    ),
    "the same in metadata": lambda layer, mark: layer["config"].update(
        module={
            "constructor": "flax.nnx:Linear",
            "arguments": [1, 3],
            "keywords": {"kernel_metadata": {"dict": {"on_get_value": walk_to_exec(mark)[0]}}},
        }
    ),
    "the same in a regularizer": lambda layer, mark: layer["config"].update(
        activity_regularizer=flax_layer(through_dot_general(mark))
    ),
    "the same in regularizers": lambda layer, mark: layer["config"].update(
        regularizers={"**": flax_layer(through_dot_general(mark))}
    ),
    "the same in constraints": lambda layer, mark: layer["config"].update(
        constraints={"**": flax_layer(through_dot_general(mark))}
    ),
    "the same as a dtype": lambda layer, mark: layer["config"].update(
        dtype=flax_layer(through_dot_general(mark))
    ),
    "the same in a registered layer": lambda layer, mark: layer["config"].update(
        module={
            "registered": "kerasflax>FlaxLayer",
            "config": {"dict": {"module": {"dict": through_dot_general(mark)}}},
        }
    ),
    "a class of the bridge": lambda layer, mark: layer["config"].update(
        module={
            "object": "flax.nnx.bridge.wrappers:Functional",
            "fields": {
                "module_type": {"registered": "tests>make_folder"},
                "graphdef": None,
                "args": [str(mark)],
            },
        }
    ),
}


@pytest.mark.parametrize("safe_mode", [True, False])
@pytest.mark.parametrize("name", ATTACKS)
def test_no_file_runs_code(name, safe_mode, tmp_path):
    path, mark = tmp_path / "m.keras", tmp_path / "mark"
    model_of(MLP()).save(path)
    damaged(path, lambda layer: ATTACKS[name](layer, mark))
    with pytest.raises((ConfigError, ModuleError, TypeError, ValueError)):
        keras.models.load_model(path, safe_mode=safe_mode)
    assert not mark.exists()


@pytest.mark.parametrize("version", [None, 0, 2, "1", [1], True, 1.0])
def test_another_version_is_refused(version):
    config = FlaxLayer(nn.Dense(1)).get_config() | {"format_version": version}
    with pytest.raises(ConfigError, match="version"):
        FlaxLayer.from_config(config)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("frozen", {"params": 1}),
        ("frozen", [1]),
        ("given", [1]),
        ("given", {"a": [[-1], "x"]}),
        ("given", {"a": [[-1], "float32"]}),
        ("given", {"a": [[2**62, 0], "float32"]}),
        ("given", {"a": 3}),
        ("method", {"a": 1}),
        ("method", {"registered": "tests>Scale"}),
        ("autocast", "x"),
        ("name", 5),
        ("trainable", "x"),
        ("regularizer", {"**": {"class_name": "L3", "config": {}}}),
        ("constraint", {"**": {"class_name": "NonNeg", "config": 3}}),
        ("variable_dtype", {"class_name": "TFSMLayer", "config": {}}),
    ],
)
def test_other_parts_are_checked(key, value):
    part = {
        "regularizer": "regularizers",
        "constraint": "constraints",
        "variable_dtype": "dtype",
    }.get(key, key)
    with pytest.raises(ConfigError, match=key):
        FlaxLayer.from_config(FlaxLayer(nn.Dense(1)).get_config() | {part: value})


@pytest.mark.parametrize(
    "config",
    [
        {"input_shape": [1]},
        {"input_shape": [-3], "input_dtype": "int32"},
        {"input_dtype": ["int8"]},
    ],
)
def test_what_a_layer_is_built_on_is_checked(config):
    with pytest.raises(ConfigError, match="The input"):
        FlaxLayer(nn.Dense(1)).build_from_config(config)


def test_the_newest_class_of_a_name_counts_and_custom_objects_come_first():
    def define(scale):
        class Net(nn.Module):
            def __call__(self, inputs):
                return inputs * scale

        return Net

    old, new = define(2), define(3)
    node = to_config(old(), "net")
    assert type(from_config(node, "net")) is new
    for custom in ({"Net": old}, {old.__qualname__: old}):
        with keras.saving.custom_object_scope(custom):
            assert type(from_config(node, "net")) is old
    with keras.saving.custom_object_scope({"Net": old}):
        assert type(from_config({"object": "elsewhere:Net"}, "net")) is old


def test_what_flax_has_transformed_twice_is_not_chosen_in_silence():
    class Repeated(nn.Dense):
        pass

    def repeated(axis):
        return nn.vmap(
            Repeated,
            in_axes=axis,
            out_axes=axis,
            variable_axes={"params": 0},
            split_rngs={"params": True},
        )

    old = repeated(1)
    node = to_config(old(3), "net")
    assert type(from_config(node, "net")) is old
    new = repeated(2)
    with pytest.warns(UserWarning, match="VmapRepeated.*2 here"):
        assert type(from_config(node, "net")) is new
    with keras.saving.custom_object_scope({"VmapRepeated": old}):
        assert type(from_config(node, "net")) is old


def test_a_keras_layer_of_the_name_is_not_taken_for_the_module():
    with keras.saving.custom_object_scope({"Holder": keras.layers.Dense}):
        assert type(again(Holder())) is Holder
        with pytest.raises(ConfigError, match="another kind"):
            from_config({"object": "elsewhere:Holder"}, "it")


def test_the_class_that_has_the_name_now_counts_whatever_it_is_derived_from():
    class Base(nn.Module):
        pass

    def define(base):
        Redefined = type("Redefined", (base,), {"__module__": __name__})
        globals()["Redefined"] = Redefined
        return Redefined

    for base in (nn.Module, Base, nn.Module, Base):
        new = define(base)
        assert type(from_config({"object": f"{__name__}:Redefined"}, "net")) is new


def test_a_registered_class_is_found_by_its_name_there_wherever_it_is_defined():
    def define(place):
        body = {
            "__module__": place,
            "get_config": lambda self: {},
            "from_config": classmethod(lambda cls, config: cls()),
        }
        return keras.saving.register_keras_serializable("tests")(type("Known", (nn.Module,), body))

    old = define("somewhere")
    node = to_config([old(), functools.partial(old)], "net")
    new = define("elsewhere")
    module, partial = from_config(node, "net")
    assert type(module) is partial.func is new


def test_a_field_is_what_it_was_when_its_default_has_become_another():
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

    # A default that cannot be saved is left to the class.
    node = json.loads(json.dumps(to_config(define(0.5, {"a": 1}, len)(), "net")))
    assert node["fields"] == {"rate": 0.5, "options": {"dict": {"a": 1}}}
    new = define(0.1, {}, max)
    module = from_config(node, "net")
    assert (type(module), module.rate, module.options, module.function) == (new, 0.5, {"a": 1}, max)


SETTINGS_PACKAGE = """
from __future__ import annotations
import dataclasses, enum, typing
import typing as tp
from flax import linen as nn
import flax.struct
class Kind(enum.Enum):
    WIDE = 1
class Level(enum.IntEnum):
    LOW = 1
class Bits(enum.Flag):
    A = 1
class Pair(typing.NamedTuple):
    a: int
@flax.struct.dataclass
class Inner:
    pair: Pair | None = None
    def doubled(self):
        return 2 * self.pair.a
    @property
    def half(self):
        return self.pair.a / 2
class Node(flax.struct.PyTreeNode):
    rate: float = 0.5
@dataclasses.dataclass(frozen=True, order=True, slots=True)
class Plain:
    width: int
    kind: Kind = Kind.WIDE
    more: tuple = ()
    inner: tp.Optional[Inner] = None
    parts: dict = dataclasses.field(default_factory=dict)
@dataclasses.dataclass
class Undeclared:
    width: int
class Net(nn.Module):
    plain: typing.Sequence["Plain"] = ()
    node: tp.Dict[str, Node] | None = None
    level: tp.Optional[tp.Union[Level, Bits]] = None
    unknown: Missing = None
    def __call__(self, inputs):
        return inputs
"""


def test_data_classes_are_found_if_a_module_declares_them_wherever_they_are_defined(tmp_path):
    (tmp_path / "settingspackage.py").write_text(SETTINGS_PACKAGE)
    make = """
        import json, keras, sys
        from kerasflax.saving import _to_json
        {}
        for node in json.loads({!r}):
            try:
                print(_to_json.from_config(node, "it"))
            except _to_json.ConfigError as error:
                print(error)
            assert ("settingspackage" in sys.modules) == {!r}
    """
    pair = {"named_tuple": "settingspackage:Pair", "fields": [1]}
    inner = {"object": "settingspackage:Inner", "fields": {"pair": pair}}
    nodes = [
        {"object": "settingspackage:Plain", "fields": {"width": 3, "inner": inner}},
        {"enum": "settingspackage:Kind", "member": "WIDE"},
        {"enum": "settingspackage:Level", "member": "LOW"},
        {"enum": "settingspackage:Bits", "member": "A"},
        {"object": "settingspackage:Node", "fields": {"rate": 1}},
        {"object": "settingspackage:Undeclared", "fields": {"width": 1}},
    ]
    path = os.pathsep.join([str(tmp_path), *sys.path])
    *found, refused, advice = run(
        make.format("import settingspackage", json.dumps(nodes), True), PYTHONPATH=path
    ).splitlines()
    assert found == [
        "Plain(width=3, kind=<Kind.WIDE: 1>, more=(), inner=Inner(pair=Pair(a=1)), parts={})",
        *("Kind.WIDE", "1", "Bits.A", "Node(rate=1)"),
    ]
    assert "no field of a module is declared to hold it" in refused
    assert "custom_objects={'Undeclared': Undeclared}" in advice
    assert "import settingspackage" in run(
        make.format("", json.dumps(nodes[:1]), False), PYTHONPATH=path
    )


def test_fields_are_checked_against_their_declared_types(tmp_path, monkeypatch):
    (tmp_path / "settingspackage2.py").write_text(SETTINGS_PACKAGE)
    monkeypatch.syspath_prepend(tmp_path)
    package = importlib.import_module("settingspackage2")
    plain = {"object": "settingspackage2:Plain", "fields": {"width": 3}}

    def net(**fields):
        return {"object": "settingspackage2:Net", "fields": fields}

    assert from_config(net(plain=[plain]), "it") == package.Net([package.Plain(3)])
    assert from_config(net(unknown=[plain]), "it").unknown == [package.Plain(3)]
    for wrong in (
        net(plain=["text"]),
        net(plain=[{"function": "jax.nn:relu"}]),
        net(plain=[{"object": "settingspackage2:Plain", "fields": {"width": "text"}}]),
        net(plain=[{"object": "settingspackage2:Plain", "fields": {"width": net()}}]),
        net(node={"dict": {"a": plain}}),
        net(level={"enum": "settingspackage2:Kind", "member": "WIDE"}),
        {"object": "flax.linen:Dense", "fields": {"features": {"function": "jax.nn:relu"}}},
        {"object": "flax.linen:Dense", "fields": {"features": 1, "use_bias": "yes"}},
        {"object": "flax.linen:Dense", "fields": {"features": 2.5}},
        {
            "object": "flax.linen:RNN",
            "fields": {"cell": {"object": "flax.linen:Dense", "fields": {"features": 1}}},
        },
        {"constructor": "flax.nnx:Linear", "arguments": [2], "keywords": {"out_features": "x"}},
    ):
        with pytest.raises(
            ConfigError,
            match=r"cannot be made as it is described: .*declared type|is not (data|a module)",
        ):
            from_config(wrong, "it")
    # Flax takes these as well.
    for right in (
        {"features": 2.0},
        {"features": {"number": 2, "dtype": "int32"}},
        {"features": 2, "dtype": "float32"},
    ):
        from_config({"object": "flax.linen:Dense", "fields": right}, "it")


@pytest.fixture(scope="module")
def acting(tmp_path_factory):
    """A package whose classes act, and the folder that they make."""
    folder = tmp_path_factory.mktemp("acting")
    mark = folder / "mark"
    (folder / "actingpackage.py").write_text(hostile.package_of(mark))
    sys.path.insert(0, str(folder))
    package = importlib.import_module("actingpackage")
    sys.path.remove(str(folder))
    return package, mark


def test_no_class_whose_methods_python_calls_is_made_even_if_it_is_declared(acting):
    package, mark = acting
    assert len(package.KINDS) > 80
    for kind in package.KINDS:
        node = hostile.described(kind)
        for around in (
            node,
            {"object": "actingpackage:Declares", "fields": {"held": node}},
            {"set": [node]},
            [{"dict": [[node, 1]]}],
        ):
            with pytest.raises(
                ConfigError, match=r"runs code|function makes|described wrongly"
            ) as error:
                from_config(around, "it")
            assert "custom_objects" in str(error.value) or "wrongly" in str(error.value), kind
        assert not mark.exists(), kind
    # The user's word counts.
    with keras.saving.custom_object_scope({"Data_post_init": package.Data_post_init}):
        from_config(hostile.described(package.Data_post_init), "it")
    assert mark.exists()
    mark.rmdir()


@pytest.mark.parametrize("method", ["__hash__", "__call__", "__post_init__", "__init__"])
def test_a_class_of_a_command_line_is_not_taken_for_a_written_one(method, tmp_path):
    code = f"""
        import dataclasses, os, typing
        from flax import linen as nn
        from kerasflax import ConfigError
        from kerasflax.saving._to_json import from_config
        @dataclasses.dataclass
        class Acts:
            value: str
            def {method}(self, *args): os.mkdir({str(tmp_path / "mark")!r})
        class Net(nn.Module):
            acts: Acts
        try:
            from_config({{"object": "__main__:Acts", "fields": {{"value": "x"}}}}, "it")
        except ConfigError as error:
            print(error)
    """
    assert f"Python calls `{method}`" in run(code)
    assert not (tmp_path / "mark").exists()


def test_nothing_is_made_of_a_description_that_ends_wrongly():
    made = []

    class Recorder(nn.Module):
        value: Any = None

        def __post_init__(self):
            made.append("module")
            super().__post_init__()

    class Configured:
        def __init__(self, value=None):
            made.append("registered")

        def get_config(self):
            return {}

        @classmethod
        def from_config(cls, config):
            made.append("registered")
            return cls()

        def __hash__(self):
            made.append("hash")
            return 0

    keras.saving.register_keras_serializable("tests", "Configured")(Configured)
    right = [
        {"object": f"{__name__}:{Recorder.__qualname__}", "fields": {}},
        {"registered": "tests>Configured", "config": {"dict": {}}},
    ]
    from_config(right, "it")
    assert "module" in made
    assert "registered" in made
    made.clear()
    for wrong in (
        {"function": "os:system"},
        {"set": [right[1]]},
        {"dict": [[right[1], 1]]},
        *({"partial": node} for node in right),
    ):
        with pytest.raises(ConfigError):
            from_config([*right, wrong], "it")
    config = FlaxLayer(nn.Dense(1)).get_config() | {"module": right[0]}
    for key, value in (
        ("activity_regularizer", {"class_name": "Evil"}),
        ("constraints", {"**": {"class_name": "Evil"}}),
        ("given", 3),
        ("frozen", 3),
        ("dtype", 3),
        ("unknown", 3),
    ):
        with pytest.raises(ConfigError):
            FlaxLayer.from_config(config | {key: value})
    assert made == []


def test_no_name_in_a_file_imports_anything(tmp_path, monkeypatch):
    (tmp_path / "lazypackage").mkdir()
    (tmp_path / "lazypackage/__init__.py").write_text(
        "from flax import linen as nn\n"
        "class Net(nn.Module): pass\n"
        "def __getattr__(name):\n"
        "    import importlib\n"
        "    return importlib.import_module(f'lazypackage.{name}')\n"
    )
    (tmp_path / "lazypackage/sub.py").write_text(
        f"import os\nos.mkdir({str(tmp_path / 'mark')!r})\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("lazypackage")
    before = set(sys.modules)
    names = (
        "lazypackage.sub:Nope",
        "lazypackage:sub",
        "lazypackage:sub.Nope",
        "lazypackage:Net.sub",
        "numpy:matlib",
        "numpy:f2py",
    )
    for name in names:
        for node in (
            *(
                {kind: name}
                for kind in (
                    "object",
                    "type",
                    "function",
                    "initializer",
                    "constructor",
                    "custom",
                    "enum",
                )
            ),
            {"enum": name, "member": "A"},
            {"named_tuple": name, "fields": []},
            {"registered": name},
            {"partial": {"type": name}},
        ):
            with pytest.raises(ConfigError) as error:
                from_config(node, "it")
            if name == "lazypackage.sub:Nope" and {"object", "type", "constructor"} & node.keys():
                assert "`import lazypackage.sub`" in str(error.value)
    assert not (tmp_path / "mark").exists()
    assert set(sys.modules) == before


def test_only_what_is_listed_is_taken_from_flax():
    nnx = importlib.import_module("flax.nnx")
    for kind in (
        nnx.GraphDef,
        nnx.OfType,
        nnx.Variable,
        nnx.Rngs,
        nn.Module,
        nnx.Module,
        flax.struct.PyTreeNode,
    ):
        for form in ("object", "type", "constructor", "named_tuple", "enum"):
            with pytest.raises(ConfigError):
                from_config(
                    {
                        form: f"{kind.__module__}:{kind.__qualname__}",
                        **({"member": "A"} if form == "enum" else {}),
                    },
                    "it",
                )


WRAPPED = {
    "a function": {"function": "jax.numpy:append"},
    "a module": {"object": "flax.linen:Dense", "fields": {"features": 1}},
    "a partial": {"partial": {"function": "jax.numpy:append"}},
    "another class": {"type": "flax.nnx.bridge.wrappers:Functional"},
}


@pytest.mark.parametrize("name", WRAPPED)
def test_a_wrapper_of_nnx_takes_modules_of_the_list_alone(name):
    wrapper = "flax.nnx.bridge.wrappers:ToLinen"
    with pytest.raises(ConfigError):
        from_config(
            {"object": wrapper, "fields": {"nnx_class": WRAPPED[name], "skip_rng": True}}, "it"
        )
    right = {"nnx_class": {"type": "flax.nnx:Linear"}, "args": {"tuple": [4, 3]}}
    assert from_config({"object": wrapper, "fields": right}, "it").nnx_class.__name__ == "Linear"
    for wrong in (
        {"args": {"tuple": [4, "x"]}},
        {"kwargs": {"dict": {"dot_general": {"type": "flax.linen:Dense"}}}},
    ):
        with pytest.raises(ConfigError):
            from_config({"object": wrapper, "fields": right | wrong}, "it")


def test_a_wrapper_of_linen_goes_through_its_description():
    bridge = importlib.import_module("flax.nnx").bridge
    module = bridge.ToLinen(importlib.import_module("flax.nnx").Linear, args=(4, 3))
    x = np.ones((2, 4), np.float32)
    expected = module.init_with_output(jax.random.key(0), x)[0]
    np.testing.assert_array_equal(again(module).init_with_output(jax.random.key(0), x)[0], expected)


METHODS = [
    "__init__",
    "__reduce__",
    "__class__",
    "__setattr__",
    "apply",
    "init",
    "tabulate",
    "clone",
    "features",
    "nope",
    "bind",
]


@pytest.mark.parametrize("method", METHODS)
def test_a_method_that_is_flaxs_own_machinery_is_refused(method):
    config = FlaxLayer(nn.Dense(1)).get_config() | {"method": method}
    if method == "features":
        with pytest.raises(kerasflax.KerasFlaxError):
            FlaxLayer.from_config(config)
    else:
        with pytest.raises(ConfigError, match="no method"):
            FlaxLayer.from_config(config)


def keras_object(name, config, module="keras.regularizers", registered=None):
    return {"module": module, "class_name": name, "config": config, "registered_name": registered}


class Doubled(keras.regularizers.Regularizer):
    def __call__(self, x):
        return 2 * keras.ops.sum(x)

    def get_config(self):
        return {}


def test_keras_own_regularizers_and_those_given_come_back():
    x = np.ones((2, 3), np.float32)
    arguments = {
        "activity_regularizer": keras.regularizers.L1L2(0.25, 0.5),
        "regularizers": {
            "**/kernel": keras.regularizers.OrthogonalRegularizer(0.1),
            "bias": keras.regularizers.L1(0.5),
        },
        "constraints": {
            "**/kernel": keras.constraints.MinMaxNorm(0.5, 1.5),
            "bias": keras.constraints.UnitNorm(axis=[0]),
        },
        "dtype": "mixed_bfloat16",
    }
    arguments["regularizers"] = {
        f"params/{key}": value for key, value in arguments["regularizers"].items()
    }
    arguments["constraints"] = {
        f"params/{key}": value for key, value in arguments["constraints"].items()
    }
    layer = FlaxLayer(nn.Dense(2), **arguments)
    config = json.loads(json.dumps(layer.get_config()))
    loaded = FlaxLayer.from_config(config)
    assert json.loads(json.dumps(loaded.get_config())) == config
    assert loaded.dtype_policy.name == "mixed_bfloat16"
    plain = FlaxLayer.from_config(
        FlaxLayer(nn.Dense(2), activity_regularizer="l2").get_config()
        | {"activity_regularizer": "l1"}
    )
    plain(x)
    assert len(plain.losses) == 1
    own = json.loads(
        json.dumps(FlaxLayer(nn.Dense(2), activity_regularizer=Doubled()).get_config())
    )
    with pytest.raises(ConfigError, match=r"custom_objects=\{'Doubled': Doubled\}"):
        FlaxLayer.from_config(own)
    with keras.saving.custom_object_scope({"Doubled": Doubled}):
        given = FlaxLayer.from_config(own)
    outputs = given(x)
    # Some versions of Keras divide by the number of examples.
    plain = keras.layers.Identity(activity_regularizer=Doubled())
    plain(outputs)
    np.testing.assert_allclose(given.losses[0], plain.losses[0], rtol=1e-6)


def flax_layer(module):
    config = FlaxLayer(nn.Dense(1)).get_config() | {"module": module}
    return keras_object("FlaxLayer", config, "kerasflax._layer", "kerasflax>FlaxLayer")


LAYERS = {
    "a layer of kerasflax": flax_layer({"object": "flax.linen:Dense", "fields": {"features": 1}}),
    "a form": keras_object(
        "Form", {"model": 0, "positions": [0]}, "kerasflax.bridge._forms", "kerasflax>Form"
    ),
    "a layer of Keras": keras_object("Dense", {"units": 1}, "keras.layers"),
    "a lambda layer": keras_object("Lambda", {"function": "x"}, "keras.layers"),
    "a saved model": keras_object("TFSMLayer", {"filepath": "x"}, "keras.layers"),
    "a registered object": keras_object("Scale", {"by": 1.0}, __name__, "tests>Scale"),
    "a class as a function": keras_object("function", "tests>Scale", "builtins", "tests>Scale"),
    "a function of the system": keras_object("function", "system", "os", "system"),
    "a nested object": keras_object("L2", {"l2": keras_object("Lambda", {}, "keras.layers")}),
    "unknown parts": keras_object("L2", {}) | {"build_config": {"input_shape": [1]}},
    "no class": {"class_name": ["L2"], "config": {}},
    "another argument": keras_object("L2", {"filepath": "x"}),
    "a number": 3,
    "a text": "os.system",
}


@pytest.mark.parametrize("place", ["activity_regularizer", "regularizers", "constraints", "dtype"])
@pytest.mark.parametrize("name", LAYERS)
def test_nothing_but_a_regularizer_a_constraint_or_a_policy_is_made_in_its_place(name, place):
    value = {"**": LAYERS[name]} if place in ("regularizers", "constraints") else LAYERS[name]
    with pytest.raises(ConfigError):
        FlaxLayer.from_config(FlaxLayer(nn.Dense(1)).get_config() | {place: value})


def test_a_hostile_form_is_refused():
    layer = FlaxLayer(Sum())
    inputs = keras.Input((4,)), keras.Input((3,))
    for form in ("text", Scale(1.0), nn.Dense(1), {"model": 0}):
        with pytest.raises(ConfigError, match="form"):
            layer(inputs, form=form)
    for model in (
        {"object": "flax.linen:Dense", "fields": {"features": 0}},
        {"constructor": "flax.nnx:Linear"},
        {"custom": "a:b"},
    ):
        with pytest.raises(ConfigError):
            Form.from_config({"model": [model, 0], "positions": [0]})


@pytest.mark.parametrize(
    "model",
    [
        {"dict": [[1, 0], ["a", 1]]},
        {"set": [0, 1]},
        {"tuple": [0, 0.5]},
        3,
        [0, {"dict": {"a": "b"}}],
    ],
)
def test_a_form_of_what_jax_cannot_take_apart_is_refused(model):
    for config in (
        {"model": model, "positions": [0, 1]},
        [model],
        "text",
        {"model": model},
        {"model": [0, 1], "positions": ["a", 1]},
    ):
        with pytest.raises(ConfigError, match="form"):
            Form.from_config(config)


def test_patterns_from_a_file_are_few_and_short():
    config = FlaxLayer(nn.Dense(1)).get_config()
    node = keras_object("L2", {"l2": 0.1})
    for patterns in ({f"**/{i}*": node for i in range(300)}, {"**/" * 10_000: node}):
        for key in ("regularizers", "constraints"):
            with pytest.raises(ConfigError, match="too many patterns, or too long"):
                FlaxLayer.from_config(config | {key: patterns})
    paths = {f"params/kernel{i}": node for i in range(1000)}
    assert len(FlaxLayer.from_config(config | {"regularizers": paths}).regularizers) == 1000


def test_errors_quote_what_a_terminal_would_take_for_a_command():
    evil = "\x1b]0;x\x07\ud800\n"
    for node in (
        {"object": f"{evil}:{evil}"},
        {"object": "flax.linen:Dense", "fields": {evil: [{"function": evil}]}},
        {"custom": f"a:{evil}"},
        {"constructor": "flax.nnx:Linear", "keywords": {evil: {"dtype": evil}}},
        {"initializer": "jax.nn.initializers:normal", "arguments": {evil: 1}},
    ):
        with pytest.raises(ConfigError) as error:
            from_config(node, "it")
        assert not {"\x1b", "\ud800"} & set(str(error.value))


def test_a_config_that_is_none_is_refused():
    for config in (None, [], "text", [["module", 1]]):
        with pytest.raises(ConfigError):
            FlaxLayer.from_config(config)
        with pytest.raises(ConfigError):
            FlaxLayer(nn.Dense(1)).build_from_config(config)


def test_many_modules_of_one_class_are_read_in_time():
    class Small(nn.Module):
        value: int = 0

    nodes = [
        {"object": f"{__name__}:{Small.__qualname__}", "fields": {"value": i}} for i in range(3000)
    ]
    begin = time.perf_counter()
    assert [module.value for module in from_config(nodes, "it")] == list(range(3000))
    assert time.perf_counter() - begin < 10


def test_errors_are_short_whatever_the_file_says():
    long = "x" * 10**6
    nodes = [
        *(
            {key: long}
            for key in (
                "object",
                "type",
                "function",
                "initializer",
                "constructor",
                "custom",
                "registered",
                "dtype",
            )
        ),
        {"object": f"{long}:{long}", "fields": {}},
        {"object": "flax.linen:Dense", "fields": {long: 1}},
        {"object": "flax.linen:Dense", "fields": {"features": long}},
        {"object": "flax.linen:Dense", "fields": {"features": [long] * 10}},
        {"enum": "jax.lax:Precision", "member": long},
        {"array": [1], "shape": [10**4000], "dtype": "float32"},
        {"array": [1] * 10**5, "shape": [3], "dtype": long},
        {long: 1},
        {"float": long},
        {"partial": {"function": "jax.nn:relu"}, "keywords": {"x": [[{"function": long}]]}},
        {"number": long, "dtype": "int8"},
    ]
    for node in nodes:
        with pytest.raises(ConfigError) as error:
            from_config(node, "it")
        assert len(str(error.value)) < 2000
    base = FlaxLayer(nn.Dense(1)).get_config()
    parts = [
        *(
            {key: long}
            for key in ("format_version", "method", "module", "given", "activity_regularizer")
        ),
        *(
            {key: {long: long}}
            for key in ("regularizers", "constraints", "given", "method", "dtype", "frozen")
        ),
        {long: 1},
        {"name": [long]},
        {"frozen": [[long]]},
    ]
    for part in parts:
        with pytest.raises(ConfigError) as error:
            FlaxLayer.from_config(base | part)
        assert len(str(error.value)) < 3000, part.keys()


def test_the_time_for_a_description_grows_with_its_size():
    def seconds(node):
        begin = time.perf_counter()
        with contextlib.suppress(ConfigError):
            from_config(node, "it")
        return time.perf_counter() - begin

    deep = 1
    for _ in range(90):
        deep = {"tuple": [deep]}
    nested = {"dict": {}}
    for _ in range(90):
        nested = {"dict": {"k" * 60: nested}}
    # Of such numbers each has the hash of all others.
    collisions = {"set": [i * (2**61 - 1) for i in range(50_000)]}
    tuples = {"set": [{"tuple": [7] * 60 + [i * (2**61 - 1)]} for i in range(4096)]}
    for node in (
        [deep] * 300,
        [nested] * 300,
        [{"array": [1] * 50_000, "shape": [50_000], "dtype": "int8"}],
        collisions,
        tuples,
    ):
        assert seconds(node) < 10


@pytest.mark.parametrize(
    ("given", "match"),
    [
        (
            {"params/kernel": [[7], "int4"]},
            "'params/kernel' has the dtype 'int4', which no Keras variable has",
        ),
        ({"a/" * 300: [[7], "float32"]}, "it nests deeper than 256 levels"),
    ],
)
def test_given_specs_that_no_layer_has_are_refused_at_once(given, match):
    with pytest.raises(ConfigError, match=match):
        FlaxLayer.from_config(FlaxLayer(nn.Dense(1)).get_config() | {"given": given})


# What is listed ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["functions", "classes"])
def test_nothing_that_is_listed_reaches_a_callable_an_attribute_a_file_or_the_process(part):
    done = subprocess.run(
        [sys.executable, hostile.__file__, part],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["found"] == []
    if part == "functions":
        assert result["counts"]["functions"] > 500
    else:
        # A list of modules cannot be called.
        assert result["counts"]["not run"] == ["flax.nnx:List"]
        assert result["counts"]["accepted"] > 1000


def test_an_entry_of_a_list_is_the_object_itself():
    for table in (
        _allowed.FUNCTIONS,
        _allowed.FACTORIES,
        _allowed.MODULES,
        _allowed.HOLDERS,
        _allowed.ENUMS,
    ):
        for name, value in _allowed.entries(table):
            namespace, _, attribute = name.partition(":")
            assert vars(sys.modules[namespace])[attribute] is value
            root = (getattr(value, "__module__", None) or type(value).__module__).partition(".")[0]
            assert root in ("flax", "jax", "builtins", "numpy"), name
    assert len(set(_allowed.NUMBER_TYPES["builtins"].split())) == 4


def test_every_field_of_flax_that_takes_a_function_has_its_role():
    for name, kind in _allowed.entries(_allowed.MODULES):
        if dataclasses.is_dataclass(kind):
            declared = {field: str(f.type) for field, f in kind.__dataclass_fields__.items()}
        else:
            declared = {
                key: str(p.annotation)
                for key, p in inspect.signature(kind.__init__).parameters.items()
            }
        for field, text in declared.items():
            calls = any(
                word in text
                for word in (
                    "Callable[...",
                    "Initializer",
                    "DotGeneralT",
                    "EinsumT",
                    "PromoteDtypeFn",
                )
            )
            if calls:
                assert field in _allowed.ROLES, (name, field)
