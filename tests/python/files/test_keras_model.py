import os
import zipfile

import keras
import numpy as np
import pytest
from flax import linen as nn

from kerasflax import FileError, FlaxLayer, save_model

X = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)


def model(seed):
    return keras.Sequential([keras.Input((3,)), FlaxLayer(nn.Dense(2), seed=seed)])


@pytest.mark.parametrize(
    ("name", "zipped"), [("m.keras", None), ("m.keras", True), ("m", False), ("m.h5", None)]
)
def test_keras_loads_a_saved_model(name, zipped, tmp_path):
    for seed in (1, 2):
        save_model(model(seed), str(tmp_path / name), zipped=zipped)
        if name != "m.h5":
            loaded = keras.saving.load_model(tmp_path / name)
            np.testing.assert_array_equal(loaded(X), model(seed)(X))
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize(("name", "zipped"), [("m.keras", None), ("m", False)])
@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), OSError(28, "No space left on device"), ValueError("other")]
)
def test_an_exception_while_saving_leaves_the_old_model(name, zipped, error, tmp_path, monkeypatch):
    save_model(model(1), str(tmp_path / name), zipped=zipped)

    def stop(*_, **__):
        raise error

    monkeypatch.setattr(zipfile.ZipFile, "writestr", stop)
    monkeypatch.setattr(FlaxLayer, "save_own_variables", stop)
    expected = FileError if isinstance(error, OSError) else type(error)
    with pytest.raises(
        expected, match="cannot be written: No space" if expected is FileError else None
    ):
        save_model(model(2), str(tmp_path / name), zipped=zipped)
    monkeypatch.undo()
    assert os.listdir(tmp_path) == [name]
    np.testing.assert_array_equal(keras.saving.load_model(tmp_path / name)(X), model(1)(X))


def test_only_a_saved_model_is_replaced(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/thesis.tex").touch()
    with pytest.raises(FileError, match=r"is not a saved model: it holds 'thesis\.tex'"):
        save_model(model(1), str(tmp_path / "thesis"), zipped=False)
    (tmp_path / "m.keras").mkdir()
    with pytest.raises(FileError, match="cannot be replaced by a saved model"):
        save_model(model(1), str(tmp_path / "m.keras"))
    (tmp_path / "file").touch()
    with pytest.raises(FileError, match="cannot be replaced by a saved model"):
        save_model(model(1), str(tmp_path / "file"), zipped=False)
    with pytest.raises(ValueError, match=r"Received: filepath=.*m\.pt"):
        save_model(model(1), str(tmp_path / "m.pt"))
    assert (tmp_path / "thesis/thesis.tex").exists()
