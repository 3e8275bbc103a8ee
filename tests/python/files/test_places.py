import warnings

import flax
import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import orbax.checkpoint
import pytest
from checkpoints import ARRAY, assert_same
from flax import linen as nn
from flax import nnx
from flax.training import checkpoints, train_state

import kerasflax
from kerasflax import FlaxLayer, VariablesError, read_variables, write_variables
from kerasflax.bridge._variables import named_leaves

X = np.linspace(-1, 1, 8 * 4, dtype=np.float32).reshape(8, 4)


class Net(nnx.Module):
    """Has params, batch statistics, random state, and a list."""

    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.blocks = nnx.List([nnx.Linear(4, 4, rngs=rngs) for _ in range(2)])

    def __call__(self, x):
        x = self.dropout(self.norm(x))
        for block in self.blocks:
            x = block(x)
        return x


class Boxed(nn.Module):
    """Has batch statistics, and weights in boxes of metadata."""

    @nn.compact
    def __call__(self, x, training=False):
        for partition in (nn.with_partitioning, nn.with_logical_partitioning):
            x = nn.Dense(4, kernel_init=partition(nn.initializers.lecun_normal(), ("a", None)))(x)
        return nn.BatchNorm(use_running_average=not training)(x)


class State(train_state.TrainState):
    """A train state as Flax's users write it."""

    batch_stats: dict


def trained():
    """An NNX module whose state is not that of a new one."""
    module = Net(nnx.Rngs(0))
    module(X)
    return module


def with_key_data(tree):
    return jax.tree.map(
        lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x,
        tree,
    )


def in_orbax(tree, folder):
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "standard", tree)
    return folder / "standard"


def in_older_orbax(tree, folder):
    orbax.checkpoint.PyTreeCheckpointer().save(folder / "pytree", tree)
    return folder / "pytree"


def in_orbax_steps(tree, folder):
    with orbax.checkpoint.CheckpointManager(folder / "steps") as manager:
        manager.save(3, args=orbax.checkpoint.args.StandardSave(tree))
    return folder / "steps/3/default"


def in_msgpack(tree, folder):
    (folder / "w.msgpack").write_bytes(flax.serialization.to_bytes(tree))
    return folder / "w.msgpack"


def in_legacy(tree, folder):
    """As `flax.training.checkpoints` wrote files before Orbax existed."""
    flax.config.update("flax_use_orbax_checkpointing", False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return folder / checkpoints.save_checkpoint(folder / "legacy", tree, step=1)
    finally:
        flax.config.update("flax_use_orbax_checkpointing", True)


NNX = {
    "the state in Orbax": lambda m: (in_orbax, nnx.state(m)),
    "the state in older Orbax": lambda m: (in_older_orbax, nnx.state(m)),
    "the state in Orbax's steps": lambda m: (in_orbax_steps, with_key_data(nnx.state(m))),
    "a dict in Orbax": lambda m: (in_orbax, nnx.to_pure_dict(nnx.state(m))),
    "a dict in msgpack": lambda m: (in_msgpack, with_key_data(nnx.to_pure_dict(nnx.state(m)))),
    "a legacy checkpoint": lambda m: (in_legacy, with_key_data(nnx.to_pure_dict(nnx.state(m)))),
    "with an optimizer": lambda m: (in_orbax, with_optimizer(m)),
    "in a tuple with an optimizer": lambda m: (in_orbax, tuple(with_optimizer(m).values())),
}


def with_optimizer(module):
    optimizer = nnx.Optimizer(module, optax.adam(1e-3), wrt=nnx.Param)
    return {"model": with_key_data(nnx.state(module)), "optimizer": nnx.state(optimizer)}


@pytest.fixture(scope="module")
def nnx_layer():
    layer = FlaxLayer(Net(nnx.Rngs(1)))
    layer(X)
    return layer


@pytest.mark.parametrize("case", NNX)
def test_a_checkpoint_of_an_nnx_module_is_read_as_its_author_saved_it(case, nnx_layer, tmp_path):
    module = trained()
    write, tree = NNX[case](module)
    read = read_variables(write(tree, tmp_path), like=nnx_layer)
    assert jax.tree.structure(read) == jax.tree.structure(nnx_layer.flax_variables)
    expected = {
        "/".join(map(str, path)): with_key_data(variable.get_raw_value())
        for path, variable in nnx.to_flat_state(nnx.state(module))
    }
    got = {path.partition("/")[2]: leaf for path, leaf in named_leaves(read).items()}
    assert got.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(with_key_data(got[path]), value, err_msg=path)
    nnx_layer.flax_variables = read
    module.eval()
    np.testing.assert_allclose(nnx_layer(X), module(X), rtol=1e-5)


def boxed_state():
    module = Boxed()
    variables = module.init(jax.random.key(0), X)
    return State.create(
        apply_fn=module.apply,
        params=variables["params"],
        tx=optax.adam(1e-3),
        batch_stats=jax.tree.map(lambda x: x + 1, variables["batch_stats"]),
    )


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state": s, "epoch": np.asarray(3)}])
@pytest.mark.parametrize("write", [in_orbax, in_older_orbax, in_msgpack, in_legacy])
def test_a_train_state_is_read_without_its_optimizer(write, wrap, tmp_path):
    state = boxed_state()
    path = write(wrap(state), tmp_path)
    inputs = keras.Input((4,))
    model = keras.Model(inputs, FlaxLayer(Boxed(), name="net", seed=1)(inputs))
    expected = {"params": state.params, "batch_stats": state.batch_stats}
    for like in (model, model.get_layer("net"), expected):
        read = read_variables(path, like=like)
        read = read["net"] if like is model else read
        assert jax.tree.structure(read) == jax.tree.structure(expected)
        jax.tree.map(np.testing.assert_array_equal, read, expected)
    model.get_layer("net").flax_variables = read
    np.testing.assert_allclose(model(X), Boxed().apply(expected, X), rtol=1e-5)


def test_a_directory_of_legacy_checkpoints_is_an_error_that_names_them(tmp_path):
    path = in_legacy({"params": {"w": ARRAY}}, tmp_path)
    with pytest.raises(kerasflax.FileError, match=f"Give one of the checkpoints in it: {path}"):
        read_variables(path.parent)
    assert_same({"params": {"w": ARRAY}}, read_variables(path))


LIKE = {"params": {"a": {"kernel": ARRAY, "bias": ARRAY[0]}}, "stats": {"a": {"mean": ARRAY[1]}}}
PARAMS = LIKE["params"]
OTHER = {"kernel": ARRAY.T}


@pytest.mark.parametrize(
    ("tree", "left_over"),
    [
        (LIKE, []),
        ({"variables": LIKE, "step": ARRAY[0]}, ["step"]),
        ({"net": {"params": PARAMS, "stats": LIKE["stats"]}}, []),
        ({"params": PARAMS, "stats": LIKE["stats"], "opt_state": {"mu": PARAMS}}, ["opt_state/**"]),
        ({"a": {**PARAMS["a"], **LIKE["stats"]["a"]}}, []),
        ({"m": {"a": {**PARAMS["a"], **LIKE["stats"]["a"]}}, "o": OTHER}, ["o/**"]),
        ({"params": {"b": PARAMS["a"]}, "stats": {"b": LIKE["stats"]["a"]}}, []),
        (
            {"x": {"params": {"b": {"a": PARAMS["a"]}}, "stats": {"b": {"a": LIKE["stats"]["a"]}}}},
            [],
        ),
    ],
)
def test_variables_are_found_below_other_names_and_without_their_collections(
    tree, left_over, tmp_path
):
    write_variables(tree, tmp_path / "w.msgpack")
    reports = []
    assert_same(LIKE, read_variables(tmp_path / "w.msgpack", like=LIKE, report=reports.append))
    (report,) = reports
    assert str(report).partition("Left over:\n  ")[2] == "\n  ".join(left_over)
    assert report.is_complete == (not left_over)


def dense(name):
    layer = FlaxLayer(nn.Dense(2), name=name)
    layer(X)
    return layer


def test_variables_of_a_model_with_one_flax_layer_are_read_whatever_its_name(tmp_path):
    layers = {name: dense(name) for name in ("one", "two", "three")}
    models = {name: keras.Sequential([keras.Input((4,)), each]) for name, each in layers.items()}
    values = jax.tree.map(np.asarray, layers["one"].flax_variables)
    write_variables(models["one"], tmp_path / "model.msgpack")
    write_variables(layers["one"], tmp_path / "layer.msgpack")
    write_variables(values["params"], tmp_path / "params.msgpack")
    for name in ("model", "layer", "params"):
        path = tmp_path / f"{name}.msgpack"
        assert_same(values, read_variables(path, like=layers["two"]))
        assert_same({"three": values}, read_variables(path, like=models["three"]))


def test_variables_in_several_places_are_an_error_that_names_them(tmp_path):
    path = tmp_path / "w.msgpack"
    write_variables({"model": PARAMS, "ema": PARAMS}, path)
    like = {"params": PARAMS}
    with pytest.raises(VariablesError) as error:
        read_variables(path, like=like)
    assert str(error.value) == (
        f"{str(path)!r} has the variables of `like` in several places.\n"
        "  ema: has them all\n"
        "  model: has them all\n"
        'Leave out all but one with `rename={"model/.*": None}`.'
    )
    assert_same(like, read_variables(path, like=like, rename={"model/.*": None}))


def test_a_weight_that_a_file_has_twice_is_an_error(tmp_path):
    path = tmp_path / "w.msgpack"
    write_variables({"a": ARRAY, "b": ARRAY, "params": {"a": ARRAY}}, path)
    with pytest.raises(VariablesError, match=r"two weights for one path\.\n  params/a: a and par"):
        read_variables(path, like={"params": {"a": ARRAY, "b": ARRAY}})


def test_weights_of_an_optimizer_or_of_a_part_of_another_module_are_not_taken(tmp_path):
    path = tmp_path / "w.msgpack"
    like = {"params": PARAMS}
    for tree in (
        {"opt_state": {"mu": PARAMS}, "w": ARRAY},
        {"params": {"x": PARAMS, "y": OTHER}},
        {"params": {"x": {"a": OTHER}}},
    ):
        write_variables(tree, path)
        with pytest.raises(VariablesError, match="params/a/kernel: missing"):
            read_variables(path, like=like)


def test_a_mismatch_below_other_names_is_reported_by_the_names_of_like(tmp_path):
    path = tmp_path / "w.msgpack"
    tree = {"model": {"a": {"kernel": ARRAY.T, "bias": ARRAY[0], "more": ARRAY}}, "step": ARRAY}
    write_variables(tree, path)
    with pytest.raises(VariablesError) as error:
        read_variables(path, like={"params": {**PARAMS, "b": ARRAY}})
    assert error.value.problems == {
        "params/b": "missing, expected float32(2, 3)",
        "params/a/kernel": "expected float32(2, 3), got shape (3, 2)",
        "a/more": "not in the module, got float32(2, 3)",
    }
