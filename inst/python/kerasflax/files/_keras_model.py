"""Keras models in Keras's own files, which replace an older file only once they are complete."""

from __future__ import annotations

import os
from pathlib import Path

import keras

from .. import _processes
from .._errors import FileError
from . import _replace, _source

_FILES = (".keras", ".h5", ".hdf5")
# The contents of a model that Keras saves as a folder.
_FOLDER = {"metadata.json", "config.json", "model.weights.h5", "assets"}


def save_model(model: keras.Model, filepath: str, *, zipped: bool | None = None) -> None:
    """Save a model as `keras.saving.save_model` does, but replace an older one in a single step.

    Keras writes the model under a temporary name next to the path. Once complete, it is moved to
    the path. Of several processes, which must all call this, the first writes.

    Args:
        model: The model.
        filepath: A path, which is overwritten. If it is the address of another machine, Keras
            writes to it directly.
        zipped: Whether to write a file; False for a folder.

    Raises:
        FileError: The file cannot be written, or something else is at the path.
        UnsupportedError: A weight is split over several processes.
    """
    if _processes.are_several():
        _processes.check_are_here({each.path: each.value for each in model.variables})
    is_file = str(filepath).endswith(_FILES)
    if "://" in str(filepath) or is_file == (zipped is False):
        # Either another machine's file, or a name that Keras refuses, with its own message.
        _processes.agreed(lambda: _save(model, filepath, zipped) if _processes.is_first() else None)
        return
    path = Path(os.path.realpath(_source.named(filepath)))
    try:
        others = sorted(set(os.listdir(path)) - _FOLDER) if path.is_dir() and not is_file else []
        if others:
            raise FileError(
                f"{str(path)!r} exists and is not a saved model: it holds {others[0]!r}.",
                advice="Give another name.",
            )
        if path.is_dir() == is_file and path.exists():
            raise FileError(
                f"{str(path)!r} exists and cannot be replaced by a saved model.",
                advice="Give another name.",
            )
        _processes.replace_together(
            lambda: _replace.replacing(path, path.suffix if is_file else ""),
            lambda new: _save(model, str(new), zipped),
            by_all=False,
        )
    except FileError:
        raise
    except (OSError, RuntimeError) as error:
        # If the disk is full, HDF5 raises an OSError, or a RuntimeError that has the error number
        # only in its text. A RuntimeError can also come from the code of a module.
        if isinstance(error, OSError) or "errno" in str(error):
            # HDF5's text contains a time that ends in a newline.
            reason = " ".join(str(getattr(error, "strerror", None) or error).split())
            raise FileError(f"{str(path)!r} cannot be written: {reason}.") from error
        raise


def _save(model: keras.Model, filepath: str, zipped: bool | None) -> None:
    # Keras creates an optimizer, to see which attributes all have. Under a distribution over
    # several processes, that optimizer's variables would wait for the other ones.
    distribution = keras.distribution.distribution() if _processes.are_several() else None
    if distribution:
        keras.distribution.set_distribution(None)
    try:
        keras.saving.save_model(model, filepath, overwrite=True, zipped=zipped)
    finally:
        if distribution:
            keras.distribution.set_distribution(distribution)
