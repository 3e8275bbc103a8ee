"""Keras models that are saved as Keras saves them, but take an older file's place only when they are whole."""

from __future__ import annotations

import os
from pathlib import Path

import keras

from .._errors import FileError
from . import _replace, _source

_FILES = (".keras", ".h5", ".hdf5")
# What Keras makes of a model that is saved as a folder.
_FOLDER = {"metadata.json", "config.json", "model.weights.h5", "assets"}


def save_model(model: keras.Model, filepath: str, *, zipped: bool | None = None) -> None:
    """Do what `keras.saving.save_model` does, under a temporary name beside the path, which it takes when it is whole.

    Args:
        model: The model.
        filepath: A path, which is overwritten, or an address elsewhere, which Keras writes itself.
        zipped: Whether to write a file; False for a folder.

    Raises:
        FileError: The file cannot be written, or a folder there holds something else.
    """
    is_file = str(filepath).endswith(_FILES)
    if "://" in str(filepath) or is_file == (zipped is False):
        # Not of this machine; or not of Keras's, and it says so.
        keras.saving.save_model(model, filepath, overwrite=True, zipped=zipped)
        return
    path = Path(os.path.realpath(_source.named(filepath)))
    try:
        others = sorted(set(os.listdir(path)) - _FOLDER) if path.is_dir() and not is_file else []
        if others:
            raise FileError(
                f"{str(path)!r} is there, and holds {others[0]!r}, which is of no saved model.\nGive another name."
            )
        if path.is_dir() == is_file and path.exists():
            raise FileError(
                f"{str(path)!r} is there, and cannot be replaced by a saved model.\nGive another name."
            )
        with _replace.replacing(path, path.suffix if is_file else "") as new:
            keras.saving.save_model(model, str(new), overwrite=True, zipped=zipped)
    except FileError:
        raise
    except (OSError, RuntimeError) as error:
        # HDF5 has errors of either class, if the disk is full; so has what a module is asked for.
        if isinstance(error, OSError) or "errno" in str(error):
            raise FileError(
                f"{str(path)!r} cannot be written: {getattr(error, 'strerror', None) or error}."
            ) from error
        raise
