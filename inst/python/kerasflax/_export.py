"""Models as StableHLO: one file that JAX runs without Keras, without Flax and without the code of any module."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np

from . import _files
from ._errors import ArgumentError, FileError

PyTree = Any

_PLATFORMS = ("cpu", "cuda", "tpu")
_KNOWN_PLATFORMS = {"cpu", "cuda", "rocm", "tpu"}
_PURPOSE = "A file of StableHLO"


def export_model(model: keras.Model, path: str | os.PathLike[str], *, platforms: Sequence[str] = _PLATFORMS) -> None:
    """Write what a model computes at inference, its weights included, as `jax.export` serializes it.

    `jax.export.deserialize(Path(path).read_bytes()).call(inputs)` runs it. Sizes of the input that the model leaves open, the
    batch's above all, stay open.

    Args:
        model: A model that knows its inputs: a functional one, or a Sequential one that has been built.
        path: The file, which is written under a temporary name and takes its place when it is whole.
        platforms: Where it shall run, as JAX names it.

    Raises:
        ArgumentError: It is no such model.
        FileError: The file cannot be written.
        PackageError: flatbuffers is needed, and not installed.
    """
    _files.needed("flatbuffers", "flatbuffers", _PURPOSE)
    if not platforms or not set(platforms) <= _KNOWN_PLATFORMS:
        raise ArgumentError(f"`platforms` must be some of {', '.join(sorted(_KNOWN_PLATFORMS))}, got {list(platforms)!r}.")
    inputs = _inputs(model)
    trainable, others = (
        [variable.value for variable in vs] for vs in (model.trainable_variables, model.non_trainable_variables)
    )

    def infer(inputs: PyTree) -> PyTree:
        return model.stateless_call(trainable, others, inputs, training=False)[0]

    exported = jax.export.export(jax.jit(infer), platforms=tuple(platforms))(_specs(inputs))
    path = Path(path).expanduser().resolve()
    try:
        with _files.replacing(path) as new:
            new.write_bytes(exported.serialize())
    except OSError as error:
        raise FileError(f"{str(path)!r} cannot be written: {error.strerror or error}.") from error


def import_model(path: str | os.PathLike[str]) -> Callable[[PyTree], PyTree]:
    """Read what `export_model` wrote: a function from the model's inputs to its outputs.

    The computation in the file is compiled and run as JAX finds it. Take files from those whom you trust.

    Raises:
        FileError: There is no such file, or it is another kind of file.
        PackageError: flatbuffers is needed, and not installed.
    """
    _files.needed("flatbuffers", "flatbuffers", _PURPOSE)
    path = Path(path).expanduser()
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FileError(f"{str(path)!r} cannot be read: {error.strerror or error}.") from error
    try:
        exported = jax.export.deserialize(bytearray(data))
    except Exception as error:
        # flatbuffers raises whatever the bytes lead it to.
        kind = _files.kind_of(path)
        problem = f"is {kind}, and" if kind else "is"
        raise FileError(f"{str(path)!r} {problem} no file that `jax.export` has written: {error}") from error
    call = jax.jit(exported.call)

    def run(inputs: PyTree) -> PyTree:
        (expected,), _ = jax.tree.unflatten(exported.in_tree, exported.in_avals)
        try:
            arrays = jax.tree.map(lambda aval, x: jnp.asarray(x, aval.dtype), expected, inputs)
        except (TypeError, ValueError) as error:
            raise ArgumentError(f"The model takes inputs like {_shown(expected)}, got {_shown(inputs)}.") from error
        try:
            return call(arrays)
        except (TypeError, ValueError) as error:
            # The first line says which size does not fit, the others how JAX came to know.
            problem = str(error).splitlines()[0]
            raise ArgumentError(f"The model takes inputs like {_shown(expected)}, got {_shown(inputs)}.\n{problem}") from error

    return run


def _inputs(model: Any) -> PyTree:
    if not isinstance(model, keras.Model):
        raise ArgumentError(f"A model is needed, got {type(model).__name__}.\nPut the layer into one.")
    if isinstance(model, keras.Sequential):
        model = model._functional
    if not isinstance(model, keras.src.models.Functional):
        raise ArgumentError("The model does not know its inputs.\nBuild it, or put it behind `keras.Input` in a `keras.Model`.")
    return model.input


def _specs(inputs: PyTree) -> PyTree:
    """Specs with a symbol for each size that is not known: one for the batch, and one for each other axis."""
    scope = jax.export.SymbolicScope()

    def spec(tensor: keras.KerasTensor) -> jax.ShapeDtypeStruct:
        names = ["batch", *(f"d{axis}" for axis in range(1, len(tensor.shape)))]
        sizes = ", ".join(name if size is None else str(size) for name, size in zip(names, tensor.shape, strict=False))
        shape = jax.export.symbolic_shape(sizes, scope=scope)
        return jax.ShapeDtypeStruct(shape, keras.backend.standardize_dtype(tensor.dtype))  # type: ignore[no-untyped-call]

    return jax.tree.map(spec, inputs)


def _shown(tree: PyTree) -> str:
    text = str(jax.tree.map(lambda x: f"{getattr(x, 'dtype', type(x).__name__)}{list(np.shape(x))}", tree))
    return text if len(text) <= 300 else f"{text[:297]}..."
