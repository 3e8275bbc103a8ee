import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from flax import linen as nn
from modules import ConvNet

from kerasflax import ArgumentError, FileError, FlaxLayer, PackageError, export_model, import_model

X = np.linspace(-1, 1, 8 * 5 * 5, dtype=np.float32).reshape(8, 5, 5, 1)


def convolutional():
    return keras.Sequential([keras.Input(X.shape[1:]), FlaxLayer(ConvNet()), keras.layers.Dense(2)])


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_an_exported_model_computes_what_the_model_does_for_any_batch(rows, tmp_path):
    model = convolutional()
    export_model(model, tmp_path / "m.stablehlo")
    np.testing.assert_allclose(import_model(tmp_path / "m.stablehlo")(X[:rows]), model(X[:rows]), rtol=1e-6, atol=1e-6)


def test_jax_alone_runs_it(tmp_path):
    model = convolutional()
    export_model(model, tmp_path / "m.stablehlo")
    np.save(tmp_path / "x.npy", X)
    code = (
        "import jax.export, numpy as np, sys, pathlib\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "model = jax.export.deserialize(bytearray((folder / 'm.stablehlo').read_bytes()))\n"
        "np.save(folder / 'y.npy', model.call(np.load(folder / 'x.npy')))\n"
        "assert not {'keras', 'flax', 'kerasflax'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), model(X), rtol=1e-6, atol=1e-6)


def test_several_inputs_of_other_dtypes_and_open_sizes(tmp_path):
    class Both(nn.Module):
        @nn.compact
        def __call__(self, inputs):
            return nn.Embed(9, 4)(inputs["tokens"]).sum(1) + nn.Dense(4)(inputs["x"])

    inputs = {"tokens": keras.Input((None,), dtype="int32", name="tokens"), "x": keras.Input((3,), name="x")}
    model = keras.Model(inputs, FlaxLayer(Both())(inputs))
    export_model(model, tmp_path / "m", platforms=["cpu"])
    run = import_model(tmp_path / "m")
    for length in (2, 5):
        data = {"tokens": np.arange(2 * length).reshape(2, length) % 9, "x": np.ones((2, 3))}
        np.testing.assert_allclose(run(data), model(data), rtol=1e-6)
    with pytest.raises(ArgumentError, match="tokens"):
        run(data["x"])


def test_wrong_inputs_and_platforms_are_said(tmp_path):
    model = convolutional()
    with pytest.raises(ArgumentError, match="cuda"):
        export_model(model, tmp_path / "m", platforms=["gpu"])
    export_model(model, tmp_path / "m", platforms=["cpu"])
    for wrong in (X[:, :4], X[0], [X]):
        with pytest.raises(ArgumentError, match="5, 5, 1") as caught:
            import_model(tmp_path / "m")(wrong)
        assert len(str(caught.value)) < 1000


def test_what_is_no_model_or_no_file_is_said(tmp_path):
    with pytest.raises(ArgumentError, match="FlaxLayer"):
        export_model(FlaxLayer(nn.Dense(1)), tmp_path / "m")
    with pytest.raises(ArgumentError, match="inputs"):
        export_model(keras.Sequential([FlaxLayer(nn.Dense(1))]), tmp_path / "m")
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileError, match="No such file"):
        import_model(tmp_path / "m")
    for data in (b"", b"\x00" * 40, b"PK\x03\x04" + bytes(range(256))):
        Path(tmp_path, "m").write_bytes(data)
        with pytest.raises(FileError, match="no file that"):
            import_model(tmp_path / "m")


def test_flatbuffers_is_asked_for_by_name(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    for attempt in (lambda: export_model(convolutional(), tmp_path / "m"), lambda: import_model(tmp_path / "m")):
        with pytest.raises(PackageError, match="pip install flatbuffers"):
            attempt()
    assert not list(tmp_path.iterdir())
