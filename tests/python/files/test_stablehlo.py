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
def test_an_exported_model_has_the_outputs_of_the_model_for_any_batch_size(rows, tmp_path):
    model = convolutional()
    export_model(model, tmp_path / "m.stablehlo")
    np.testing.assert_allclose(
        import_model(tmp_path / "m.stablehlo")(X[:rows]), model(X[:rows]), rtol=1e-6, atol=1e-6
    )


def test_jax_runs_the_file_without_keras_and_flax(tmp_path):
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


def test_inputs_can_have_several_dtypes_and_open_sizes(tmp_path):
    class Both(nn.Module):
        @nn.compact
        def __call__(self, inputs):
            return nn.Embed(9, 4)(inputs["tokens"]).sum(1) + nn.Dense(4)(inputs["x"])

    inputs = {
        "tokens": keras.Input((None,), dtype="int32", name="tokens"),
        "x": keras.Input((3,), name="x"),
    }
    model = keras.Model(inputs, FlaxLayer(Both())(inputs))
    export_model(model, tmp_path / "m", platforms=["cpu", "cuda"])
    run = import_model(tmp_path / "m")
    for length in (2, 5):
        data = {"tokens": np.arange(2 * length).reshape(2, length) % 9, "x": np.ones((2, 3))}
        np.testing.assert_allclose(run(data), model(data), rtol=1e-6)
    with pytest.raises(ArgumentError, match="tokens"):
        run(data["x"])


def test_errors_about_inputs_and_platforms_say_what_is_expected(tmp_path):
    model = convolutional()
    with pytest.raises(ArgumentError, match="cuda"):
        export_model(model, tmp_path / "m", platforms=["gpu"])
    export_model(model, tmp_path / "m", platforms=["cpu"])
    for inputs in (X[:, :4], X[0], [X]):
        with pytest.raises(ArgumentError, match="5, 5, 1") as caught:
            import_model(tmp_path / "m")(inputs)
        assert len(str(caught.value)) < 1000


def test_only_models_with_inputs_and_files_with_a_checksum_are_accepted(tmp_path):
    with pytest.raises(ArgumentError, match="FlaxLayer"):
        export_model(FlaxLayer(nn.Dense(1)), tmp_path / "m")
    with pytest.raises(ArgumentError, match="has no defined inputs"):
        export_model(keras.Sequential([FlaxLayer(nn.Dense(1))]), tmp_path / "m")
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileError, match="No such file"):
        import_model(tmp_path / "m")
    for data in (b"", b"\x00" * 40, b"PK\x03\x04" + bytes(range(256))):
        Path(tmp_path, "m").write_bytes(data)
        with pytest.raises(FileError, match="ends without a checksum"):
            import_model(tmp_path / "m")


def test_damage_in_any_byte_is_found_before_jax_reads_the_file(tmp_path, monkeypatch):
    path = tmp_path / "m"
    export_model(
        keras.Sequential([keras.Input((2,)), FlaxLayer(nn.Dense(1))]), path, platforms=["cpu"]
    )
    original = path.read_bytes()
    monkeypatch.setattr(
        jax.export, "deserialize", lambda _: pytest.fail("JAX has read a damaged file")
    )
    # Change the file in place. A system may flush a file to the disk each time it is truncated to
    # nothing and written again.
    with open(path, "r+b") as file:
        for i in range(len(original)):
            for change in (bytes([original[i] ^ 1 << i % 8]), original[i : i + 1]):
                file.seek(i)
                file.write(change)
                file.flush()
                if change != original[i : i + 1]:
                    with pytest.raises(
                        FileError, match=r"is damaged: its bytes|ends without a checksum"
                    ):
                        import_model(path)
        for i in reversed(range(len(original))):
            file.truncate(i)
            with pytest.raises(FileError, match=r"is damaged: its bytes|ends without a checksum"):
                import_model(path)
    for data in (
        original + b"\0",
        original + original,
        original[1:],
        original.replace(b"kerasflax-sha256-1", b"kerasflax-sha256-2"),
    ):
        path.write_bytes(data)
        with pytest.raises(FileError, match=r"is damaged: its bytes|ends without a checksum"):
            import_model(path)


def test_a_file_without_a_checksum_is_read_if_unchecked(tmp_path):
    function = jax.export.export(jax.jit(lambda x: 2 * x))(jax.ShapeDtypeStruct((3,), "float32"))
    (tmp_path / "m").write_bytes(function.serialize())
    with pytest.raises(FileError, match="you trust it as you trust code, use `checked=False`"):
        import_model(tmp_path / "m")
    np.testing.assert_array_equal(
        import_model(tmp_path / "m", checked=False)(np.ones(3)), 2 * np.ones(3)
    )


def test_pipes_and_names_that_the_system_cannot_represent_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    model = keras.Sequential([keras.Input((2,)), FlaxLayer(nn.Dense(1))])
    with pytest.raises(FileError, match="is not a regular file"):
        import_model(tmp_path / "pipe")
    with pytest.raises(FileError, match="not a regular file, so it cannot be replaced"):
        export_model(model, tmp_path / "pipe", platforms=["cpu"])
    for use in (import_model, lambda path: export_model(model, path, platforms=["cpu"])):
        with pytest.raises(FileError, match=r"\\ud800.* cannot be the name of a file"):
            use(str(tmp_path / "\ud800"))


def test_the_error_for_missing_flatbuffers_names_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    for attempt in (
        lambda: export_model(convolutional(), tmp_path / "m"),
        lambda: import_model(tmp_path / "m"),
    ):
        with pytest.raises(PackageError, match="pip install flatbuffers"):
            attempt()
    assert not list(tmp_path.iterdir())
