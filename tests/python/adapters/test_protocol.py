import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conformance import LINEN
from conformance_nnx import NNX
from modules import MLP
from support import run_code

from kerasflax import ModuleError
from kerasflax.adapters._protocol import APIS, Adapter, adapt, adapter_of
from kerasflax.bridge._variables import split
from kerasflax.tracing._trace import until_learned

CASES = {
    f"{kind}: {name}": case
    for kind, table in {"linen": LINEN, "nnx": NNX}.items()
    for name, case in table.items()
}
cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def wrapper(module, inputs):
    return module(inputs)


@pytest.mark.parametrize("api", APIS)
def test_an_adapter_has_the_signatures_of_the_protocol(api):
    for name in vars(Adapter):
        if inspect.isroutine(getattr(Adapter, name)) and (
            not name.startswith("_") or name == "__init__"
        ):
            expected, got = (
                list(inspect.signature(getattr(kind, name)).parameters.items())
                for kind in (Adapter, adapter_of(api))
            )
            assert [(name, p.kind) for name, p in got] == [
                (name, p.kind) for name, p in expected
            ], name


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (None, "got None"),
        (MLP, "got the class MLP, not an instance.\nCreate an instance: `MLP(...)`"),
        (wrapper, "got the function wrapper"),
        (3, "got builtins.int: 3"),
    ],
)
def test_an_object_that_is_not_a_module_instance_is_an_error(module, message):
    with pytest.raises(ModuleError) as error:
        adapt(module, None)
    assert message in str(error.value)


LINEN_ALONE = """
import sys
import keras
from flax import linen as nn
import kerasflax
model = keras.Sequential([keras.Input((3,)), kerasflax.FlaxLayer(nn.Dense(2))])
model.save(sys.argv[1])
keras.saving.load_model(sys.argv[1])
assert "flax.nnx" not in sys.modules
import flax.nnx
kerasflax.FlaxLayer(flax.nnx.Linear(3, 2, rngs=flax.nnx.Rngs(0)))
kerasflax.FlaxLayer(nn.Dense(2))
"""
# The class is in a submodule of NNX. The process that loads it has not imported NNX.
BRIDGED = """
import sys
import keras
import kerasflax
if sys.argv[2] == "save":
    from flax import linen as nn, nnx
    module = nnx.bridge.ToLinen(nnx.Linear, args=(3, 2))
    keras.Sequential([keras.Input((3,)), kerasflax.FlaxLayer(module)]).save(sys.argv[1])
else:
    assert "flax.nnx" not in sys.modules
    assert keras.saving.load_model(sys.argv[1]).output_shape == (None, 2)
"""
LAZY_ALONE = """
import sys
import keras
import kerasflax
assert "flax.nnx" not in sys.modules
def make(rngs):
    from flax import nnx
    return nnx.Linear(3, 2, rngs=rngs)
model = keras.Sequential([keras.Input((3,)), kerasflax.FlaxLayer(kerasflax.LazyModule(make))])
assert model.output_shape == (None, 2)
"""


@pytest.mark.parametrize(
    ("script", "arguments"),
    [(LINEN_ALONE, [""]), (LAZY_ALONE, [""]), (BRIDGED, ["save", "load"])],
    ids=["linen", "a lazy module", "a part of nnx"],
)
def test_a_module_system_is_imported_only_when_it_is_needed(script, arguments, tmp_path):
    path = str(tmp_path / "model.keras")
    for argument in arguments:
        run_code(f"import sys\nsys.argv[1:] = {[path, argument]!r}\n{script}")


def assert_same(got, expected):
    got, expected = (split(tree)[1] for tree in (got, expected))
    assert got.keys() == expected.keys()
    for path in expected:
        np.testing.assert_allclose(got[path], expected[path], rtol=1e-6, atol=1e-7, err_msg=path)


def initialized(module, adapter, key, inputs):
    """The outputs of `init`, and the values that a layer starts with."""
    values = adapter.values_of(module)
    outputs, variables = until_learned(lambda: adapter.init(key, inputs))
    if values is not None:
        assert jax.tree.structure(variables) == jax.tree.structure(values)
    return outputs, values or variables


@cases
def test_init_gives_the_variables_of_plain_init_without_sown_values(case):
    adapter = adapt(case.module, case.method)
    key = jax.random.key(7)
    outputs, variables = initialized(case.module, adapter, key, case.first)
    assert_same(
        variables, {name: tree for name, tree in case.init(key).items() if name not in case.sown}
    )
    assert jax.tree.leaves(outputs)
    assert [name for name in variables if adapter.trainable(name)] == [
        name for name in variables if name in case.trainable
    ]


@cases
@pytest.mark.parametrize("training", [False, True])
def test_apply_gives_the_results_of_plain_apply_with_the_streams_that_the_module_uses(
    case, training
):
    adapter = adapt(case.module, case.method)
    _, variables = initialized(case.module, adapter, jax.random.key(7), case.first)
    seed_state = jnp.array([3, 5], jnp.uint32)

    def apply():
        return adapter.apply(
            variables, case.inputs, training=training, mask=None, seed_state=seed_state
        )

    outputs, state, sown = until_learned(apply)
    expected, written = case.apply(variables, case.inputs, training, seed_state)
    assert_same({"out": outputs}, {"out": expected})
    assert_same(state, {name: tree for name, tree in written.items() if name not in case.sown})
    assert_same(sown, {name: tree for name, tree in written.items() if name in case.sown})
    assert adapter.draws(training) == bool(case.streams[training])
