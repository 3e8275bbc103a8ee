import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from support import cpu_devices, run_code

from kerasflax import _host
from kerasflax.tracing import _initial_values
from kerasflax.tracing._initial_values import _group_alike, _split, evaluate

pytestmark = pytest.mark.usefixtures("optimized")


class Wide(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x):
        kernels = [
            nn.Dense(3, kernel_init=nn.initializers.orthogonal(scale)) for scale in (1.0, 2.0)
        ]
        x = sum(kernel(x) for kernel in kernels)
        return sum(nn.Dense(4)(x) for _ in range(self.width))


def init(module):
    return lambda key: module.init(jax.random.wrap_key_data(key), jnp.ones((2, 5)))


KEY = np.array([0, 7], np.uint32)


def jaxpr_of(function, *args):
    return jax.make_jaxpr(function)(*args)


def assert_evaluated(function, *args):
    closed = jaxpr_of(function, *args)
    got = evaluate(closed.jaxpr, closed.consts, *args)
    for value, expected in zip(got, jax.tree.leaves(function(*args)), strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-6)


def test_the_values_equal_those_of_init():
    assert_evaluated(init(Wide(4)), KEY)


def test_the_values_of_a_large_array_equal_those_of_init():
    # The code for arrays of at least 2**19 numbers is optimized.
    assert_evaluated(init(nn.Dense(2**17)), KEY)


def test_the_host_hears_how_far_a_build_is():
    heard = []
    _host.register(built=lambda done, total: heard.append((done, total)))
    try:
        assert_evaluated(init(Wide(4)), KEY)
    finally:
        _host.register()
    # Two kernels of 5 x 3 and four of 3 x 4, with their biases.
    assert {total for _, total in heard} == {2 * (15 + 3) + 4 * (12 + 4)}
    done = [each for each, _ in heard]
    assert done == sorted(set(done))
    assert (len(done) > 1, done[-1]) == (True, 100)


def test_an_xla_without_the_options_computes_the_same_values(monkeypatch):
    monkeypatch.setattr(
        _initial_values, "_FAST_TO_COMPILE", {"xla_option_of_another_version": False}
    )
    assert_evaluated(init(Wide(4)), KEY)


def test_only_cpus_get_the_options_for_cpus():
    class Lowered:
        def __init__(self):
            self.options = []

        def compile(self, options=None):
            self.options.append(options)

    class Device:
        def __init__(self, platform):
            self.platform = platform

    for platform in ("gpu", "tpu", "METAL"):
        lowered = Lowered()
        _initial_values._compiled_for(Device(platform), lowered, True)
        assert lowered.options == [None]
    lowered = Lowered()
    _initial_values._compiled_for(Device("cpu"), lowered, True)
    assert "xla_cpu_use_fusion_emitters" in lowered.options[0]


def test_arrays_that_are_made_in_the_same_way_are_compiled_once():
    def recipes(width):
        split = _split(jaxpr_of(init(Wide(width)), KEY).jaxpr)[0]
        return _group_alike(split, dict.fromkeys(split))

    assert len(recipes(4)) == len(recipes(40))
    assert max(map(len, recipes(40))) == 40


CONSTANT = np.arange(6.0, dtype=np.float32).reshape(2, 3)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: (x, x),
        lambda x: (x + 1, x + 2, 3.0),
        lambda x: (CONSTANT @ x, x[:2] * CONSTANT[0, :2]),
        # Arrays computed from another array, and one filled with a number computed from an array.
        lambda x: (lambda y: (y, y * 2, jnp.full(4, y.sum())))(jnp.sin(x)),
        lambda x: jax.lax.scan(lambda c, _: (c + 1, c), x, None, 3),
        lambda x: (jnp.zeros(3), jnp.zeros(3), jnp.ones(3), jnp.zeros((2, 2), bool)),
        lambda x: (),
    ],
)
def test_any_computation_keeps_its_results(function):
    assert_evaluated(function, np.array([1.0, 2.0, 3.0], np.float32))


def run_with_two_devices(code):
    run_code(code, **cpu_devices(2))


def test_small_arrays_are_computed_on_a_cpu_if_there_is_an_accelerator():
    # The second CPU stands for the accelerator.
    run_with_two_devices("""
        import jax, keras, numpy as np
        from flax import linen as nn, nnx
        from kerasflax import FlaxLayer, LazyModule
        from kerasflax.tracing import _initial_values
        from kerasflax.bridge import _variables
        cpu, accelerator = jax.devices()
        seen, where = {}, []
        create, compiled_for = _variables.create, _initial_values._compiled_for
        _variables.create = lambda arrays, *rest, **more: (
            seen.update(arrays) or create(arrays, *rest, **more)
        )

        def note_device(device, *rest):
            where.append((device, rest[-1]))
            return compiled_for(device, *rest)

        _initial_values._compiled_for = note_device

        class Net(nn.Module):
            @nn.compact
            def __call__(self, x):
                self.variable("keys", "key", lambda: jax.random.split(self.make_rng("params"), 3))
                return nn.Dense(3)(nn.BatchNorm(use_running_average=True)(nn.Dense(2**18)(x)))

        def build():
            seen.clear(), where.clear()
            for module in (Net(), LazyModule(nnx.Linear, 4, 6)):
                FlaxLayer(module, seed=1)(np.ones((2, 4), "float32"))
            return dict(seen)

        expected = build()
        assert {device for device, _ in where} == {cpu}
        _initial_values._devices = lambda: (cpu, accelerator)
        with jax.default_device(accelerator):
            got = build()
            assert set(where) == {(cpu, True), (accelerator, False)}, where
            assert got.keys() == expected.keys()
            for path, array in got.items():
                assert array.devices() == {accelerator} and not array.committed, path
                assert array.dtype == expected[path].dtype
                np.testing.assert_allclose(array, expected[path], rtol=1e-6, atol=1e-7)
    """)


def test_initial_values_are_computed_in_the_sharding_of_a_distribution():
    run_with_two_devices("""
        import jax, keras, numpy as np
        from flax import linen as nn, nnx
        from kerasflax import FlaxLayer, LazyModule
        from kerasflax.bridge import _variables
        seen = []
        create = _variables.create

        def note_arrays(arrays, *rest, **more):
            seen.append(dict(arrays))
            return create(arrays, *rest, **more)

        _variables.create = note_arrays
        make = [
            lambda: FlaxLayer(nn.Dense(6), seed=1),
            lambda: FlaxLayer(LazyModule(nnx.Linear, 4, 6), seed=1),
        ]
        for layer in (each() for each in make):
            keras.Sequential([keras.Input((4,)), layer])
        alone = [dict(arrays) for arrays in seen]
        seen.clear()
        devices = keras.distribution.list_devices()
        mesh = keras.distribution.DeviceMesh((1, 2), ["batch", "model"], devices)
        layout = keras.distribution.LayoutMap(mesh)
        layout[".*kernel"] = (None, "model")
        keras.distribution.set_distribution(
            keras.distribution.ModelParallel(layout_map=layout, batch_dim_name="batch")
        )
        for layer, before in zip((each() for each in make), alone):
            model = keras.Sequential([keras.Input((4,)), layer])
            arrays = seen.pop()
            kernel = arrays["params/kernel"]
            shapes = [shard.data.shape for shard in kernel.addressable_shards]
            assert shapes == [(4, 3)] * 2, kernel.sharding
            value = layer.variables_by_path["params/kernel"].value
            assert value.sharding.is_equivalent_to(kernel.sharding, 2)
            for path in arrays:
                np.testing.assert_allclose(arrays[path], before[path], rtol=1e-6)
            model.compile("sgd", "mse")
            model.fit(np.ones((2, 4)), np.ones((2, 6)), verbose=0)
    """)


def test_a_device_holds_no_more_than_its_share_of_many_small_weights():
    run_with_two_devices("""
        import keras
        from flax import linen as nn
        from support import most_on_a_device
        import kerasflax
        from kerasflax import _host

        number, size = 64, 4 * 128 * 128
        peaks = []
        _host.register(built=lambda done, total: peaks.append(most_on_a_device()))
        kerasflax.distribute({"batch": 1, "model": 2}, auto=True)
        module = nn.Sequential([nn.Dense(128, use_bias=False) for _ in range(number)])
        kerasflax.FlaxLayer(module, seed=1)(keras.Input((128,)))
        assert peaks and max(peaks) < 1.05 * number * size / 2, (peaks, number * size / 2)
    """)
