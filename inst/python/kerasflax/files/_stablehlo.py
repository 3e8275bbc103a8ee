"""Models as StableHLO: a single file that JAX runs without Keras, Flax or the code of any module.

The file is what `jax.export` serializes, followed by a mark and the SHA-256 of everything before
the digest. `jax.export` ignores bytes after its own, so it reads the file unchanged. JAX trusts
the bytes it reads: a changed byte can end the process or change the results.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np

from .. import _host, _keras, _messages
from .._errors import ArgumentError, FileError
from .._messages import spec_text, value_text
from .._paths import SEPARATOR
from . import _replace, _source

PyTree = Any

_PLATFORMS = ("cpu", "cuda", "tpu")
_KNOWN_PLATFORMS = {"cpu", "cuda", "rocm", "tpu"}
_PURPOSE = "A StableHLO file"
# Its last character is the version of the digest.
_MARK = b"\nkerasflax-sha256-1\n"


def export_model(
    model: keras.Model, path: str | os.PathLike[str], *, platforms: Sequence[str] = _PLATFORMS
) -> None:
    """Write the inference computation of a model, including its weights, as a StableHLO file.

    `jax.export.deserialize(Path(path).read_bytes()).call(inputs)` runs it, and ignores the checksum
    at the end of the file. Sizes that the input of the model leaves open, such as the batch size,
    stay open.

    Args:
        model: A model with defined inputs: a functional model, or a Sequential model that is built.
        path: The file. It is written under a temporary name, and replaces an older one once it is
            complete.
        platforms: The platforms to compile for, by JAX's names.

    Raises:
        ArgumentError: The model has no defined inputs, or JAX has no such platform.
        FileError: The file cannot be written.
        PackageError: The flatbuffers package is not installed.
    """
    _source.needed("flatbuffers", "flatbuffers", _PURPOSE)
    if not platforms or not set(platforms) <= _KNOWN_PLATFORMS:
        raise ArgumentError(
            f"`platforms` must be some of {', '.join(sorted(_KNOWN_PLATFORMS))},"
            f" got {list(platforms)!r}."
        )
    inputs = _inputs(model)
    trainable, others = (
        [variable.value for variable in vs]
        for vs in (model.trainable_variables, model.non_trainable_variables)
    )

    def infer(inputs: PyTree) -> PyTree:
        return model.stateless_call(trainable, others, inputs, training=False)[0]

    exported = jax.export.export(jax.jit(infer), platforms=tuple(platforms))(_specs(inputs))
    path = Path(os.path.realpath(_source.named(path)))
    data = exported.serialize()
    digest = hashlib.sha256(data)
    digest.update(_MARK)
    try:
        if path.exists() and not path.is_file():
            raise FileError(
                f"{str(path)!r} exists and is not a regular file, so it cannot be replaced.",
                advice="Give another name.",
            )
        with _replace.replacing(path) as new, open(new, "wb") as file:
            file.writelines([data, _MARK, digest.digest()])
    except FileError:
        raise
    except OSError as error:
        raise FileError(f"{str(path)!r} cannot be written: {error.strerror or error}.") from error


def import_model(
    path: str | os.PathLike[str], *, checked: bool = True
) -> Callable[[PyTree], PyTree]:
    """Read a file that `export_model` wrote.

    The checksum detects a damaged file. It does not say who wrote it: **a StableHLO file is a
    program**, which JAX compiles and runs. Only use files from people whose code you would run.

    Args:
        path: The file.
        checked: Whether to refuse a file without a checksum. Other programs do not write one, and
            neither did kerasflax before its first release. JAX checks little of what it reads: one
            changed byte in an unchecked file can end the process or change the results.

    Returns:
        A function from the inputs of the model to its outputs.

    Raises:
        FileError: The file does not exist, is damaged, or is of another kind.
        PackageError: The flatbuffers package is not installed.
    """
    _source.needed("flatbuffers", "flatbuffers", _PURPOSE)
    path = _source.named(path)
    try:
        with _source.opened(path) as source:
            kind = _source.kind_of(source)
            data = np.empty(source.size, np.uint8)
            source.fill(data)
    except FileError:
        raise
    except OSError as error:
        raise FileError(f"{str(path)!r} cannot be read: {error.strerror or error}.") from error
    if checked:
        body, digest = np.split(data, [max(0, len(data) - hashlib.sha256().digest_size)])
        if body[-len(_MARK) :].tobytes() != _MARK:
            reason = f"is {kind}" if kind else "is damaged, or kerasflax did not write it"
            raise FileError(
                f"{str(path)!r} ends without a checksum: it {reason}.",
                advice="If another program wrote it and you trust it as you trust code, use"
                f" {_host.word('unchecked')}.",
            )
        if hashlib.sha256(body.data).digest() != digest.tobytes():
            raise FileError(f"{str(path)!r} is damaged: its bytes do not match its checksum.")
    try:
        exported = jax.export.deserialize(bytearray(data))
    except Exception as error:
        # Depending on the bytes, flatbuffers raises exceptions of any class.
        reason = f"is {kind}" if kind else "is damaged, or `jax.export` did not write it"
        raise FileError(
            f"{str(path)!r} cannot be read ({_messages.first_line(error)}): it {reason}."
        ) from error
    call = jax.jit(exported.call)

    def run(inputs: PyTree) -> PyTree:
        (expected,), _ = jax.tree.unflatten(exported.in_tree, exported.in_avals)
        try:
            arrays = jax.tree.map(lambda aval, x: jnp.asarray(x, aval.dtype), expected, inputs)
        except (TypeError, ValueError) as error:
            raise ArgumentError(
                f"The inputs must be like {_specs_text(expected)}, got {_specs_text(inputs)}."
            ) from error
        try:
            return call(arrays)
        except (TypeError, ValueError) as error:
            # The first line says which size does not fit; the others say how JAX found out.
            raise ArgumentError(
                f"The inputs must be like {_specs_text(expected)}, got {_specs_text(inputs)}:"
                f" {_messages.first_line(error)}"
            ) from error

    return run


def _inputs(model: Any) -> PyTree:
    if not isinstance(model, keras.Model):
        raise ArgumentError(
            f"`model` must be a Keras model, got {value_text(model)}.",
            advice="Put the layer into a model.",
        )
    functional = _keras.functional(model)
    if functional is None:
        raise ArgumentError(
            "The model has no defined inputs.",
            advice=f"Build it, or create it with {_host.word('functional model')}.",
        )
    return functional.input


def _specs(inputs: PyTree) -> PyTree:
    """Specs of the inputs, with a symbol for each unknown size: one for the batch, one per axis."""
    scope = jax.export.SymbolicScope()

    def spec(tensor: keras.KerasTensor) -> jax.ShapeDtypeStruct:
        names = ["batch", *(f"d{axis}" for axis in range(1, len(tensor.shape)))]
        sizes = ", ".join(
            name if size is None else str(size)
            for name, size in zip(names, tensor.shape, strict=False)
        )
        shape = jax.export.symbolic_shape(sizes, scope=scope)
        return jax.ShapeDtypeStruct(shape, keras.backend.standardize_dtype(tensor.dtype))  # type: ignore[no-untyped-call]

    return jax.tree.map(spec, inputs)


def _specs_text(tree: PyTree) -> str:
    """The dtypes and shapes of the arrays in a tree, each with its path."""
    texts = [
        ": ".join(
            [jax.tree_util.keystr(keys, simple=True, separator=SEPARATOR)] * bool(keys)
            + [spec_text(leaf) if hasattr(leaf, "dtype") else value_text(leaf)]
        )
        for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    ]
    text = ", ".join(texts) or "nothing"
    return text if len(text) <= 300 else f"{text[:297]}..."
