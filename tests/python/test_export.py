import os
import subprocess
import sys
from pathlib import Path

import jax
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
    np.testing.assert_allclose(
        import_model(tmp_path / "m.stablehlo")(X[:rows]), model(X[:rows]), rtol=1e-6, atol=1e-6
    )


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

    inputs = {
        "tokens": keras.Input((None,), dtype="int32", name="tokens"),
        "x": keras.Input((3,), name="x"),
    }
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


def test_damage_in_any_byte_is_found_before_jax_sees_the_file(tmp_path, monkeypatch):
    path = tmp_path / "m"
    export_model(
        keras.Sequential([keras.Input((2,)), FlaxLayer(nn.Dense(1))]), path, platforms=["cpu"]
    )
    whole = path.read_bytes()
    monkeypatch.setattr(
        jax.export, "deserialize", lambda _: pytest.fail("JAX has seen a damaged file")
    )
    # Changed in place: a system may write a file to the disk whenever it is cut to nothing and written anew.
    with open(path, "r+b") as file:
        for i in range(len(whole)):
            for change in (bytes([whole[i] ^ 1 << i % 8]), whole[i : i + 1]):
                file.seek(i)
                file.write(change)
                file.flush()
                if change != whole[i : i + 1]:
                    with pytest.raises(
                        FileError, match=r"is damaged: its bytes|ends without a checksum"
                    ):
                        import_model(path)
        for i in reversed(range(len(whole))):
            file.truncate(i)
            with pytest.raises(FileError, match=r"is damaged: its bytes|ends without a checksum"):
                import_model(path)
    for data in (
        whole + b"\0",
        whole + whole,
        whole[1:],
        whole.replace(b"kerasflax-sha256-1", b"kerasflax-sha256-2"),
    ):
        path.write_bytes(data)
        with pytest.raises(FileError, match=r"is damaged: its bytes|ends without a checksum"):
            import_model(path)


def test_a_file_of_jax_is_read_where_that_is_asked_for(tmp_path):
    function = jax.export.export(jax.jit(lambda x: 2 * x))(jax.ShapeDtypeStruct((3,), "float32"))
    (tmp_path / "m").write_bytes(function.serialize())
    with pytest.raises(FileError, match="`checked=False`, if you trust it"):
        import_model(tmp_path / "m")
    np.testing.assert_array_equal(
        import_model(tmp_path / "m", checked=False)(np.ones(3)), 2 * np.ones(3)
    )


def test_a_pipe_or_a_name_that_no_file_has_is_said(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    model = keras.Sequential([keras.Input((2,)), FlaxLayer(nn.Dense(1))])
    with pytest.raises(FileError, match="is no regular file"):
        import_model(tmp_path / "pipe")
    with pytest.raises(FileError, match="no file that another could replace"):
        export_model(model, tmp_path / "pipe", platforms=["cpu"])
    for use in (import_model, lambda path: export_model(model, path, platforms=["cpu"])):
        with pytest.raises(FileError, match=r"\\ud800.* is no name that a file can have"):
            use(str(tmp_path / "\ud800"))


def test_flatbuffers_is_asked_for_by_name(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    for attempt in (
        lambda: export_model(convolutional(), tmp_path / "m"),
        lambda: import_model(tmp_path / "m"),
    ):
        with pytest.raises(PackageError, match="pip install flatbuffers"):
            attempt()
    assert not list(tmp_path.iterdir())
