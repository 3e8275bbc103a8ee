"""The cost of the layer: copies of weights, runs of the module's code, compiled operations."""

import collections
import gc
import re

import jax
import keras
import numpy as np
import pytest
from flax import linen as nn
from modules import ConvNet
from support import IMAGES, TARGETS, VECTORS, cpu_devices, run_code

from kerasflax import FlaxLayer


def copies(shape):
    """Return the addresses of the buffers that hold arrays of a shape."""
    gc.collect()
    return {
        array.unsafe_buffer_pointer()
        for array in jax.live_arrays()
        if array.shape == shape and not array.is_deleted()
    }


@pytest.mark.parametrize("is_enabled", [True, False])
def test_a_build_pauses_garbage_collection_and_then_restores_the_setting(is_enabled):
    class Failing(nn.Module):
        @nn.compact
        def __call__(self, inputs):
            assert not gc.isenabled()
            raise OSError("no file")

    (gc.enable if is_enabled else gc.disable)()
    try:
        with pytest.raises(OSError, match="no file"):
            FlaxLayer(Failing())(VECTORS)
        assert gc.isenabled() == is_enabled
    finally:
        gc.enable()


@pytest.mark.parametrize("given", [False, True])
def test_a_weight_has_a_single_copy_at_all_times_after_the_build(given, tmp_path):
    shape = (31, 777)
    x, y = np.ones((4, 31), np.float32), np.ones((4, 777), np.float32)
    variables = nn.Dense(777).init(jax.random.key(0), x) if given else None
    # The user's own copy, which a compiled step does not donate.
    own = copies(shape)
    assert len(own) == given
    model = keras.Sequential([keras.Input((31,)), FlaxLayer(nn.Dense(777), variables=variables)])
    assert len(copies(shape) - own) == 1
    model.compile("sgd", "mse")
    model.predict(x, verbose=0)
    assert len(copies(shape) - own) == 1
    model.fit(x, y, verbose=0)
    assert len(copies(shape) - own) == 1
    handed_out = model.layers[-1].flax_variables
    assert len(copies(shape) - own) == 2
    del handed_out
    assert len(copies(shape) - own) == 1
    model.save_weights(tmp_path / "m.weights.h5")
    model.load_weights(tmp_path / "m.weights.h5")
    assert len(copies(shape) - own) == 1
    assert variables is None or not variables["params"]["kernel"].is_deleted()


def test_the_module_runs_once_for_each_mode_and_batch_size():
    runs = []

    class Noting(nn.Module):
        @nn.compact
        def __call__(self, inputs, training=False):
            runs.append((inputs.shape[0], training))
            return nn.Dropout(0.5, deterministic=not training)(nn.Dense(2)(inputs))

    model = keras.Sequential([keras.Input((3,)), FlaxLayer(Noting())])
    model.compile("sgd", "mse")
    assert len(runs) == 1
    x, y = np.ones((8, 3), np.float32), np.ones((8, 2), np.float32)
    for _ in range(2):
        model.fit(x, y, batch_size=4, verbose=0)
        model.evaluate(x, y, batch_size=4, verbose=0)
        model.predict(x, batch_size=4, verbose=0)
        model.fit(x, y, batch_size=8, verbose=0)
        model(x[:4])
    assert sorted(runs[1:]) == [(4, False), (4, True), (8, True)]


class Plain(keras.layers.Layer):
    """A layer that only calls `module.apply`."""

    def __init__(self, module, inputs):
        super().__init__(autocast=False)
        variables = module.init(jax.random.key(0), inputs)
        named = jax.tree_util.tree_flatten_with_path(variables)[0]
        self.held = [
            keras.Variable(value, trainable=path[0].key == "params") for path, value in named
        ]
        self.apply = lambda values, *args, **kwargs: module.apply(
            jax.tree.unflatten(jax.tree.structure(variables), values),
            *args,
            mutable=["batch_stats"],
            **kwargs,
        )
        self.built = True

    def call(self, inputs, training=False):
        outputs, state = self.apply(
            [variable.value for variable in self.held], inputs, training=training
        )
        written = [variable for variable in self.held if not variable.trainable]
        for variable, value in zip(written, jax.tree.leaves(state), strict=True):
            variable.assign(value)
        return outputs


def compiled_step(layer, x, y):
    """Compile the training step of a model with the layer: counts of its operations, and flops."""
    model = keras.Sequential([keras.Input(x.shape[1:]), layer])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    model._symbolic_build(data_batch=(x, y))
    variables = (
        model.trainable_variables,
        model.non_trainable_variables,
        model.optimizer.variables,
        model.metrics_variables,
    )
    state = tuple([variable.value for variable in group] for group in variables)
    program = jax.jit(model.train_step, donate_argnums=0).lower(state, (x, y)).compile()
    operations = re.findall(
        r"^\s*(?:ROOT )?%\S+ = .*?\s([\w-]+)\(", program.as_text(), re.MULTILINE
    )
    return collections.Counter(operations), program.cost_analysis()["flops"]


@pytest.mark.usefixtures("optimized")
def test_a_training_step_compiles_to_the_same_operations_as_the_thinnest_layer():
    # Without dropout: the random streams of the two would differ.
    module = ConvNet(rate=0.0)
    operations, flops = compiled_step(FlaxLayer(module), IMAGES, TARGETS)
    expected, expected_flops = compiled_step(Plain(module, IMAGES), IMAGES, TARGETS)
    assert expected["fusion"] + expected["dot"] > 20
    # The state of the layer's seed is one more parameter of the program.
    assert operations - expected == {"parameter": 1}
    assert not expected - operations
    assert flops == expected_flops


@pytest.mark.usefixtures("optimized")
def test_initial_values_are_created_on_the_devices_of_their_variables():
    # JAX fixes the number of devices when it starts, so this needs a new process.
    code = """
import gc, jax, keras, numpy as np
from flax import linen as nn
from kerasflax import FlaxLayer

def places(shape):
    gc.collect()
    arrays = [array for array in jax.live_arrays() if array.shape == shape]
    return [sorted(device.id for device in array.devices()) for array in arrays]

layer = FlaxLayer(nn.Dense(777))
with jax.default_device(jax.devices()[1]), jax.transfer_guard_device_to_device("disallow_explicit"):
    layer.build((None, 31))
assert places((31, 777)) == [[1]], places((31, 777))

devices = keras.distribution.list_devices("cpu")
mesh = keras.distribution.DeviceMesh((1, 2), ["batch", "model"], devices)
layouts = keras.distribution.LayoutMap(mesh)
layouts[".*kernel"] = (None, "model")
keras.distribution.set_distribution(
    keras.distribution.ModelParallel(layout_map=layouts, batch_dim_name="batch")
)
x = np.ones((4, 31), np.float32)
model = keras.Sequential([keras.Input((31,)), FlaxLayer(nn.Dense(778), seed=5)])
assert places((31, 778)) == [[0, 1]], places((31, 778))
kernel = model.layers[0].variables_by_path["params/kernel"].value
assert {shard.data.shape for shard in kernel.addressable_shards} == {(31, 389)}
expected = nn.Dense(778).init(jax.random.key(5), x)["params"]["kernel"]
np.testing.assert_allclose(kernel, expected, rtol=1e-6, atol=1e-6)
"""
    run_code(code, **cpu_devices(2))
