"""Models as StableHLO: one file that JAX runs without Keras, without Flax and without the code of any module.

The file is what `jax.export` serializes, and after it a mark and the SHA-256 of all before the digest. `jax.export` reads no
further than what it has written, so that it reads the file as it is. JAX trusts what it reads: a changed byte can end the
process, or give other numbers.
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

from .. import _limits
from .._errors import ArgumentError, FileError
from . import _replace, _source

PyTree = Any

_PLATFORMS = ("cpu", "cuda", "tpu")
_KNOWN_PLATFORMS = {"cpu", "cuda", "rocm", "tpu"}
_PURPOSE = "A file of StableHLO"
# Its last character is the version of what follows.
_MARK = b"\nkerasflax-sha256-1\n"


def export_model(
    model: keras.Model, path: str | os.PathLike[str], *, platforms: Sequence[str] = _PLATFORMS
) -> None:
    """Write what a model computes at inference, its weights included, as `jax.export` serializes it.

    `jax.export.deserialize(Path(path).read_bytes()).call(inputs)` runs it, and does not look at the checksum at its end. Sizes
    of the input that the model leaves open, the batch's above all, stay open.

    Args:
        model: A model that knows its inputs: a functional one, or a Sequential one that has been built.
        path: The file, which is written under a temporary name and takes its place when it is whole.
        platforms: Where it shall run, as JAX names it.

    Raises:
        ArgumentError: It is no such model.
        FileError: The file cannot be written.
        PackageError: flatbuffers is needed, and not installed.
    """
    _source.needed("flatbuffers", "flatbuffers", _PURPOSE)
    if not platforms or not set(platforms) <= _KNOWN_PLATFORMS:
        raise ArgumentError(
            f"`platforms` must be some of {', '.join(sorted(_KNOWN_PLATFORMS))}, got {list(platforms)!r}."
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
                f"{str(path)!r} is no file that another could replace.\nGive another name."
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
    """Read what `export_model` wrote: a function from the model's inputs to its outputs.

    A checksum finds a file that has been damaged. It does not say who wrote it: **a file of StableHLO is a program**, which is
    compiled and run as JAX finds it. Take such files only from those whose code you would run.

    Args:
        path: The file.
        checked: Whether to refuse a file without a checksum. Other programs write none, and neither did kerasflax before its
            first release. JAX checks little of what it reads: in an unchecked file one changed byte can end the process, or
            change the results.

    Raises:
        FileError: There is no such file; it is damaged; it is of another kind.
        PackageError: flatbuffers is needed, and not installed.
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
    problem = f"is {kind}, and" if kind else "is"
    if checked:
        body, digest = np.split(data, [max(0, len(data) - hashlib.sha256().digest_size)])
        if body[-len(_MARK) :].tobytes() != _MARK:
            raise FileError(
                f"{str(path)!r} {problem} no file that kerasflax has written, or damaged: it ends without a checksum.\n"
                "Read a file of another program by `checked=False`, if you trust it as you trust code."
            )
        if hashlib.sha256(body.data).digest() != digest.tobytes():
            raise FileError(f"{str(path)!r} is damaged: its bytes are not those of its checksum.")
    try:
        exported = jax.export.deserialize(bytearray(data))
    except Exception as error:
        # flatbuffers raises whatever the bytes lead it to.
        text = _limits.printable(str(error))
        raise FileError(
            f"{str(path)!r} {problem} no file that `jax.export` has written: {text}"
        ) from error
    call = jax.jit(exported.call)

    def run(inputs: PyTree) -> PyTree:
        (expected,), _ = jax.tree.unflatten(exported.in_tree, exported.in_avals)
        try:
            arrays = jax.tree.map(lambda aval, x: jnp.asarray(x, aval.dtype), expected, inputs)
        except (TypeError, ValueError) as error:
            raise ArgumentError(
                f"The model takes inputs like {_shown(expected)}, got {_shown(inputs)}."
            ) from error
        try:
            return call(arrays)
        except (TypeError, ValueError) as error:
            # The first line says which size does not fit, the others how JAX came to know.
            problem = str(error).splitlines()[0]
            raise ArgumentError(
                f"The model takes inputs like {_shown(expected)}, got {_shown(inputs)}.\n{problem}"
            ) from error

    return run


def _inputs(model: Any) -> PyTree:
    if not isinstance(model, keras.Model):
        raise ArgumentError(
            f"A model is needed, got {type(model).__name__}.\nPut the layer into one."
        )
    if isinstance(model, keras.Sequential):
        model = model._functional
    if not isinstance(model, keras.src.models.Functional):
        raise ArgumentError(
            "The model does not know its inputs.\nBuild it, or put it behind `keras.Input` in a `keras.Model`."
        )
    return model.input


def _specs(inputs: PyTree) -> PyTree:
    """Specs with a symbol for each size that is not known: one for the batch, and one for each other axis."""
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


def _shown(tree: PyTree) -> str:
    text = str(
        jax.tree.map(lambda x: f"{getattr(x, 'dtype', type(x).__name__)}{list(np.shape(x))}", tree)
    )
    return text if len(text) <= 300 else f"{text[:297]}..."
