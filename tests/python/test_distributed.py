"""The public functions with a distribution: the numbers and files of one device.

Most tests need eight devices. They run in a new process, which the first test starts. The two
processes read each other's files.
"""

import os
from pathlib import Path

import jax
import keras
import numpy as np
import pytest
from eight_devices import MESH, MODULES, X, Y, axes_of, model_of, on_eight
from support import assert_close, cpu_devices, environment, run_python

import kerasflax
from kerasflax import FlaxLayer, distribute
from kerasflax.bridge import _distribution

SETTINGS = {
    "data": {"mesh": {"batch": 8}},
    "layout": {"mesh": MESH, "layout": {"**/kernel": (None, "model"), "**/last/bias": "model"}},
    "metadata": {"mesh": MESH, "rules": {"mlp": "model", "embed": None}},
    "auto": {"mesh": MESH, "auto": True},
}
# Where a model of eight devices is loaded, in the same process, and where it comes back from.
ONE = {"mesh": None}
FOUR = {"mesh": {"batch": 2, "model": 2}, "auto": True}
SUFFIXES = (".msgpack", ".safetensors", ".orbax")
# Each setting, and each module system twice.
some = pytest.mark.parametrize(
    ("kind", "setting"),
    [("linen", "data"), ("nnx", "layout"), ("linen", "metadata"), ("nnx", "auto")],
)
# The folder of files that the process with one device shares with the other.
FILES = "KERASFLAX_TEST_FILES"


@pytest.fixture(autouse=True)
def everything_is_split(monkeypatch):
    monkeypatch.setattr(_distribution, "SMALLEST_SPLIT", 1)
    yield
    distribute(None)


def trained(kind, setting):
    """A model after two steps, under a distribution."""
    distribute(**setting)
    keras.utils.set_random_seed(3)
    model, layer = model_of(kind)
    train(model)
    return model, layer


def train(model, **options):
    options = {"batch_size": 8, "shuffle": False, "verbose": 0, **options}
    return model.fit(X, Y, **options).history["loss"]


def host(layer):
    return {path: np.asarray(variable.value) for path, variable in layer.variables_by_path.items()}


def predicted(model):
    return model.predict(X, verbose=0)


def write(model, folder):
    """Write a model in every format, and train it further. Write what a reader must find, too."""
    (layer,) = model.layers
    for suffix in SUFFIXES:
        kerasflax.write_variables(layer, folder / f"variables{suffix}")
    kerasflax.save_model(model, folder / "model.keras")
    model.save_weights(folder / "all.weights.h5")
    kerasflax.export_model(model, folder / "model.stablehlo")
    predictions = predicted(model)
    np.savez(folder / "expected.npz", predictions=predictions, losses=train(model, epochs=2))
    np.savez(folder / "values.npz", **host(layer))


def check_read(kind, folder):
    """Read what `write` has written, under the distribution that is set, and return a model."""
    expected = np.load(folder / "expected.npz")
    model, layer = model_of(kind)
    initial, axes = layer.flax_variables, [v.value.sharding for v in layer.variables]

    def check(model):
        np.testing.assert_allclose(predicted(model), expected["predictions"], 1e-5, 1e-6)

    for suffix in SUFFIXES:
        file = folder / f"variables{suffix}"
        layer.flax_variables = initial
        layer.flax_variables = kerasflax.read_variables(file, like=layer)
        check(model)
        given = FlaxLayer(MODULES[kind](), variables=kerasflax.read_variables(file))
        given.build((None, 8))
        assert_close(host(given), host(layer))
        assert [v.value.sharding for v in given.variables] == axes
    layer.flax_variables = initial
    # An optimizer that has trained nothing yet has no slots to load.
    model.compile(loss="mse")
    model.optimizer.build(model.trainable_variables)
    model.load_weights(folder / "all.weights.h5", skip_mismatch=True)
    check(model)
    assert [v.value.sharding for v in layer.variables] == axes
    np.testing.assert_allclose(
        kerasflax.import_model(folder / "model.stablehlo")(X), expected["predictions"], 1e-5, 1e-6
    )
    loaded = keras.saving.load_model(folder / "model.keras")
    check(loaded)
    assert [v.value.sharding for v in loaded.layers[-1].variables] == axes
    np.testing.assert_allclose(train(loaded, epochs=2), expected["losses"], 1e-5, 1e-6)
    assert_close(host(loaded.layers[-1]), dict(np.load(folder / "values.npz")))
    return loaded


@pytest.mark.skipif("jax.device_count() >= 8", reason="this test starts such a process")
def test_what_one_device_writes_eight_read_and_the_other_way_round(tmp_path):
    for kind in MODULES:
        (tmp_path / f"one-{kind}").mkdir()
        write(trained(kind, ONE)[0], tmp_path / f"one-{kind}")
    options = ["-q", "-x", "-p", "no:cacheprovider"]
    env = environment(**cpu_devices(8), **{FILES: str(tmp_path)})
    run = run_python("-m", "pytest", *options, __file__, env=env)
    assert run.returncode == 0, run.stdout
    assert "no tests ran" not in run.stdout
    for folder in tmp_path.glob("eight-*"):
        check_read(folder.name.split("-")[1], folder)
    assert len(list(tmp_path.glob("eight-*"))) == 4


@on_eight
@some
def test_files_of_eight_devices_are_read_on_four_and_come_back(kind, setting, tmp_path):
    shared = Path(os.environ.get(FILES, tmp_path))
    first, back = shared / f"eight-{kind}-{setting}", tmp_path / "back"
    first.mkdir()
    back.mkdir()
    write(trained(kind, SETTINGS[setting])[0], first)
    distribute(**FOUR)
    write(check_read(kind, first), back)
    distribute(**SETTINGS[setting])
    check_read(kind, back)
    if FILES in os.environ:
        check_read(kind, shared / f"one-{kind}")


@on_eight
@some
def test_variables_are_read_set_applied_and_cloned(kind, setting):
    _, one = trained(kind, ONE)
    model, layer = trained(kind, SETTINGS[setting])
    assert_close(host(layer), host(one))
    expected, axes = predicted(model), axes_of(layer)
    assert bool(axes) is (setting != "data")

    tree = layer.flax_variables
    if kind == "linen":
        module, variables = layer.to_flax()
        assert_close(module.apply(variables, X), expected)
    else:
        module = layer.to_flax()
        module.eval()
        assert_close(module(X), expected)
    layer.flax_variables = {"params": jax.tree.map(np.zeros_like, tree["params"])}
    assert not np.any(host(layer)["params/last/kernel"])
    layer.flax_variables = tree
    assert_close(predicted(model), expected)
    kernel = np.asarray(tree["params"]["last"]["kernel"])
    layer.flax_variables = {"params": {"last": {"kernel": 2 * kernel}}}
    assert_close(host(layer)["params/last/kernel"], 2 * kernel)
    layer.flax_variables = tree

    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    assert_close(predicted(clone), expected)
    assert axes_of(clone.layers[-1]) == axes_of(layer) == axes


@on_eight
@some
def test_weights_are_frozen_and_tabulated(kind, setting):
    found = []
    for each in (ONE, SETTINGS[setting]):
        distribute(**each)
        model, layer = model_of(kind)
        assert kerasflax.freeze(layer, "**/last/*") == ["params/last/bias", "params/last/kernel"]
        frozen = host(layer)["params/last/kernel"]
        losses = train(model)
        np.testing.assert_array_equal(host(layer)["params/last/kernel"], frozen)
        table = kerasflax.parameters(model, stats=True)
        numbers = [table[name] for name in ("mean", "sd", "min", "max", "n_nonfinite")]
        found.append((losses, numbers, table["trainable"], layer.frozen))
    assert found[1][2:] == found[0][2:]
    assert_close(found[1][:2], found[0][:2])


class Look(keras.callbacks.Callback):
    """Reads, sets, tabulates and writes the weights after each epoch."""

    def __init__(self, folder):
        super().__init__()
        self.seen, self._folder = [], folder

    def on_epoch_end(self, epoch, logs=None):
        (layer,) = self.model.layers
        self.seen.append(host(layer))
        layer.flax_variables = {"params": {"last": {"bias": np.ones(4, np.float32)}}}
        kerasflax.parameters(self.model, stats=True)
        kerasflax.write_variables(layer, self._folder / "seen.safetensors")


@on_eight
@some
def test_callbacks_see_set_and_restore_the_weights(kind, setting, tmp_path):
    found = []
    for each in (ONE, SETTINGS[setting]):
        distribute(**each)
        model, layer = model_of(kind)
        look = Look(tmp_path)
        best = keras.callbacks.ModelCheckpoint(tmp_path / "best.keras")
        stop = keras.callbacks.EarlyStopping(
            "loss", patience=0, min_delta=1e9, restore_best_weights=True
        )
        train(model, epochs=3, callbacks=[look, best, stop])
        axes = axes_of(layer) if each["mesh"] else None
        loaded = keras.saving.load_model(tmp_path / "best.keras")
        assert axes is None or axes_of(loaded.layers[-1]) == axes
        found.append((look.seen, host(layer), predicted(loaded)))
    assert_close(found[1], found[0])


@on_eight
@pytest.mark.parametrize(
    ("kind", "setting", "then"),
    [
        ("linen", "data", ONE),
        ("nnx", "layout", FOUR),
        ("linen", "metadata", SETTINGS["metadata"]),
        ("nnx", "auto", ONE),
    ],
    ids=["data to one", "layout to four", "metadata to the same", "auto to one"],
)
def test_training_resumes_from_a_backup(kind, setting, then, tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    def backup():
        return keras.callbacks.BackupAndRestore(tmp_path / "backup")

    distribute(**ONE)
    expected = train(model_of(kind)[0], epochs=4)
    distribute(**SETTINGS[setting])
    with pytest.raises(KeyboardInterrupt):
        train(model_of(kind)[0], epochs=4, callbacks=[backup(), Stop()])
    distribute(**then)
    assert_close(train(model_of(kind)[0], epochs=4, callbacks=[backup()]), expected[2:])


@on_eight
@some
def test_batches_and_moving_averages_give_the_numbers_of_one_device(kind, setting):
    found = []
    for each in (ONE, SETTINGS[setting]):
        distribute(**each)
        keras.utils.set_random_seed(3)
        model, layer = model_of(kind)
        model.compile(keras.optimizers.SGD(0.05, use_ema=True, ema_momentum=0.5), "mse")
        # Keras 3.13 fails without weights of the samples.
        batch = (X, Y, np.ones(len(X), np.float32))
        numbers = [float(model.train_on_batch(*batch)), float(model.test_on_batch(*batch))]
        train(model, callbacks=[keras.callbacks.SwapEMAWeights(swap_on_epoch=True)])
        model.optimizer.finalize_variable_values(model.trainable_variables)
        numbers.append(np.asarray(model.predict_on_batch(X)))
        numbers.append(np.asarray(model(X, training=False)))
        found.append((numbers, host(layer)))
    assert_close(found[1], found[0])
