"""One training run that `test_processes.py` starts in one process or several.

    python processes.py ADDRESS PROCESSES ID FOLDER

Each process has a part of eight devices, takes its part of the data, and writes what it sees to
FOLDER/ID.json.
"""

import gc
import json
import sys
from pathlib import Path

import jax
import keras
import numpy as np
from flax import linen as nn
from flax import nnx
from support import most_on_a_device

import kerasflax
from kerasflax import _models

ROWS, BATCH = 64, 16
INPUTS = np.linspace(-1, 1, ROWS * 16, dtype=np.float32).reshape(ROWS, 16) ** 3
TARGETS = np.cos(np.arange(ROWS * 3, dtype=np.float32)).reshape(ROWS, 3)
FORMATS = ("w.msgpack", "w.safetensors", "w")


class Linen(nn.Module):
    @nn.compact
    def __call__(self, inputs, train: bool):
        x = nn.Dense(64)(inputs)
        x = nn.BatchNorm(use_running_average=not train)(x)
        x = nn.Dropout(0.5, deterministic=not train)(nn.relu(x))
        x = nn.Dense(128)(x)
        return nn.Dense(3)(x)


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(16, 64, rngs=rngs)
        self.norm = nnx.BatchNorm(64, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.second = nnx.Linear(64, 128, rngs=rngs)
        self.last = nnx.Linear(128, 3, rngs=rngs)

    def __call__(self, inputs):
        x = self.dropout(nnx.relu(self.norm(self.first(inputs))))
        return self.last(self.second(x))


MODULES = {"linen": Linen, "nnx": lambda: kerasflax.LazyModule(Nnx)}
# With the second mesh, each process holds a part of each large weight, and all rows.
MESHES = {"data": {"batch": 8}, "model": {"batch": 1, "model": 8}}


def rows_of(array, count):
    """The rows that this process passes to Keras, if `count` processes share each global batch."""
    batches = array.reshape(-1, count, BATCH // count, *array.shape[1:])
    return batches[:, jax.process_index() % count].reshape(-1, *array.shape[1:])


def model_of(kind):
    keras.utils.set_random_seed(3)
    model = keras.Sequential([keras.Input((16,)), kerasflax.FlaxLayer(MODULES[kind](), seed=5)])
    # With larger steps, rounding errors grow from step to step.
    model.compile(keras.optimizers.SGD(0.005, momentum=0.5), "mse")
    return model


def message_of(function, *arguments):
    try:
        function(*arguments)
    except kerasflax.KerasFlaxError as error:
        return f"{type(error).__name__}: {error}"
    return None


def bytes_here(tree):
    """The bytes of the arrays in this process; those of one that several devices hold, once."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, np.ndarray):
            total += leaf.nbytes
        else:
            parts = {str(part.index): part.data.nbytes for part in leaf.addressable_shards}
            total += sum(parts.values())
    return total


def as_pytorch(path, array):
    """A weight as PyTorch stores it: a kernel has the axes (out, in)."""
    return array.T if "kernel" in jax.tree_util.keystr(path) else array


def split(size):
    """A square array of which each device holds some rows."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ["all"])
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("all"))
    shape = (size, size)
    return jax.make_array_from_callback(
        shape, sharding, lambda index: np.zeros(shape, np.float32)[index]
    )


def are_equal_here(tree, expected):
    """Whether each part of each array that this process holds has the values of NumPy's array."""
    equal = []
    for leaf, whole in zip(jax.tree.leaves(tree), jax.tree.leaves(expected), strict=True):
        parts = [(..., leaf)]
        if isinstance(leaf, jax.Array):
            is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            leaf = jax.random.key_data(leaf) if is_key else leaf
            parts = [(part.index, part.data) for part in leaf.addressable_shards]
        assert parts
        equal += [np.array_equal(np.asarray(whole)[i], np.asarray(data)) for i, data in parts]
    return all(equal)


def results(kind, mesh, folder):
    folder.mkdir(exist_ok=True)
    kerasflax.distribute(MESHES[mesh], auto=mesh == "model")
    model = model_of(kind)
    count = jax.process_count() if mesh == "data" else 1
    inputs, targets = rows_of(INPUTS, count), rows_of(TARGETS, count)
    options = {"batch_size": BATCH // count, "verbose": 0}
    losses = model.fit(inputs, targets, epochs=2, shuffle=False, **options).history["loss"]
    loss = model.evaluate(inputs, targets, **options)
    for name in FORMATS:
        kerasflax.write_variables(model, folder / name)
    values = _models.numpy_variables(model)
    found = {
        "losses": losses,
        "loss": loss,
        "values": [np.asarray(leaf).tolist() for leaf in jax.tree.leaves(values)],
        "parts": bytes_here(kerasflax._models.own_variables(model)),
        "nowhere": message_of(kerasflax.write_variables, model, folder / "nowhere" / "w.msgpack"),
        "save": message_of(kerasflax.save_model, model, folder / "model.keras"),
        "read": {},
        "bytes": {},
        "turned": {},
        "more_on_a_device": {},
    }
    for name in FORMATS:
        model.layers[0].flax_variables = jax.tree.map(np.zeros_like, values[model.layers[0].name])
        gc.collect()
        held = most_on_a_device()
        tree = kerasflax.read_variables(folder / name, like=model)
        found["bytes"][name] = bytes_here(tree)
        found["more_on_a_device"][name] = most_on_a_device() - held
        _models.set_variables(model, tree)
        found["read"][name] = model.evaluate(inputs, targets, **options)
    turned = jax.tree_util.tree_map_with_path(as_pytorch, values)
    for name in FORMATS:
        kerasflax.write_variables(turned, folder / f"turned-{name}")
        model.layers[0].flax_variables = jax.tree.map(np.zeros_like, values[model.layers[0].name])
        tree = kerasflax.read_variables(
            folder / f"turned-{name}", like=model, transpose={"**/kernel": (1, 0)}
        )
        read = are_equal_here(tree, values)
        _models.set_variables(model, tree)
        found["turned"][name] = [read, are_equal_here(_models.own_variables(model), values)]
        # The shape of a square array does not tell that its axes are in another order.
        square = {"kernel": np.arange(64.0**2, dtype=np.float32).reshape(64, 64)}
        kerasflax.write_variables({"kernel": square["kernel"].T}, folder / f"square-{name}")
        tree = kerasflax.read_variables(
            folder / f"square-{name}", like={"kernel": split(64)}, transpose={"kernel": (1, 0)}
        )
        found["turned"][name].append(are_equal_here(tree, square))
    # Copies are the user's: the next step must not delete them.
    copies = model.layers[0].flax_variables
    model.fit(inputs, targets, **options)
    found["copied"] = all(not leaf.is_deleted() for leaf in jax.tree.leaves(copies))
    return found


def main(address, count, number, folder):
    # Nothing that has been imported has looked for devices.
    if count > 1:
        keras.distribution.initialize(address, count, number)
    found = {
        f"{kind}-{mesh}": results(kind, mesh, folder / f"{kind}-{mesh}")
        for kind in MODULES
        for mesh in MESHES
    }
    (folder / f"{number}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
