"""Variables in files: Flax's msgpack, safetensors, and Orbax checkpoints.

What is read is data and nothing else. What is written takes the place of an older file only when it is whole.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np

from .. import _limits, _models
from .._errors import ArgumentError, FileError, KerasFlaxError, StateError, VariablesError
from .._paths import SEPARATOR
from ..bridge import _variables
from . import _msgpack, _orbax, _replace, _safetensors, _source
from ._rename import Rename, Report, renaming, shown, targets_of
from ._source import Progress, Source

PyTree = Any
Array = np.ndarray[Any, Any]

_FILE_READERS: Mapping[str, Callable[[Source], Any]] = {
    ".msgpack": _msgpack.read,
    ".safetensors": _safetensors.read,
}
_READABLE = "What can be read: `.msgpack` (Flax), `.safetensors`, and, under any other name, a directory that is an Orbax checkpoint."
# What nobody means as the name of an Orbax checkpoint.
_FOREIGN = {
    ".bin",
    ".gguf",
    ".gz",
    ".h5",
    ".hdf5",
    ".json",
    ".keras",
    ".npy",
    ".npz",
    ".onnx",
    ".pickle",
    ".pkl",
    ".pt",
}
_FOREIGN |= {".pth", ".rda", ".rds", ".tar", ".zip"}


def read_variables(
    path: str | os.PathLike[str],
    *,
    like: keras.layers.Layer | PyTree = None,
    rename: Rename | None = None,
    progress: Progress | None = None,
    report: Callable[[Report], object] | None = None,
) -> PyTree:
    r"""Read variables from a file, for `FlaxLayer(module, variables=...)`, say.

    No code from the file is run, and no length in it is believed before it has been checked. The memory that it takes is that
    of the arrays; one that an Orbax checkpoint has in a single piece, as those of other programs do, counts twice meanwhile.

    Args:
        path: A file of Flax (`.msgpack`), one of safetensors (`.safetensors`), or, without one of these suffixes, a directory
            that is an Orbax checkpoint.
        like: A layer, a model, or a nested dict of arrays or of their specs, that what is read must fit: the same paths and
            shapes, and dtypes of a kind that fits.
        rename: Where weights are to go: a dict from regular expressions to replacements (`\1` for a group), of which the first
            that matches the whole path counts; or a function from path to path. None in the place of a new path leaves the
            weight out. Paths without a match stay as they are.
        progress: Called with the bytes that have been read and their total number, again and again.
        report: Called once with the `Report` of what was mapped, left over and missing, before an error about it is raised.

    Returns:
        Nested dicts of NumPy arrays, of the dtypes in the file (bfloat16 and 8-bit floats are those of `ml_dtypes`). With
        `like` they have its structure. Otherwise names are as the file has them: integers in `.msgpack` alone, and the names
        in a `.safetensors` file, or new ones, are split at "/". Of typed random keys the file holds the data.

    Raises:
        ArgumentError: `rename` is no such thing, or sends two weights to one path.
        FileError: There is no such file; it is damaged; it is of another kind.
        PackageError: safetensors or Orbax is needed, and not installed.
        VariablesError: What was read does not fit `like`; it lists every place by path.
    """
    path = _source.named(path)
    rename_path = renaming(rename)
    template, expected = (None, None) if like is None else _expected(_tree_of(like, "like"))
    try:
        tree = _read(path, progress)
        if template is None and rename is None:
            return tree
        named = _named(tree, path)
    except FileError:
        raise
    except OSError as error:
        raise FileError(f"{str(path)!r} cannot be read: {error.strerror or error}.") from error
    except RecursionError as error:
        raise FileError(f"{str(path)!r} nests deeper than Python goes here.") from error
    targets = targets_of(named, rename_path)
    if expected is not None:
        shorter = _variables.unboxed([new for new in targets.values() if new is not None], expected)
        targets = {old: None if new is None else shorter[new] for old, new in targets.items()}
    moved = {new: named[old] for old, new in targets.items() if new is not None}
    if report:
        report(Report.of(targets, moved if expected is None else expected))
    if template is None or expected is None:
        return _variables.nested(moved)
    fitted = _variables.fitted_by_path(
        expected,
        {new: value for new, value in moved.items() if isinstance(value, np.ndarray)},
        others={new: value for new, value in moved.items() if not isinstance(value, np.ndarray)},
        what=f"What {str(path)!r} holds",
        advice=shown(targets),
    )
    return template.merge(fitted)


def write_variables(
    variables: keras.layers.Layer | Mapping[str, PyTree],
    path: str | os.PathLike[str],
    *,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write variables to a file that Flax, safetensors or Orbax can read.

    It is written under a temporary name beside its place, which it takes when it is whole.

    Args:
        variables: A built `FlaxLayer`; a Keras model, of which each Flax layer's variables are written below the layer's name;
            or a nested dict of arrays. Of typed random keys their data are written, boxes of metadata (`nn.Partitioned`) as
            Flax writes them: a dict of their fields, which paths leave out.
        path: The name of the file, whose suffix decides on the format: `.msgpack` (what `flax.serialization` writes),
            `.safetensors` (the weights' paths are their names; empty dicts and None are not kept), anything else a directory,
            an Orbax checkpoint (which has no arrays without elements). Integers as names are kept by `.msgpack`, and are text
            in the others.
        metadata: Texts by name, for `.safetensors`.

    Raises:
        ArgumentError: `variables` or `metadata` is no such thing, or no such file is written.
        FileError: The file cannot be written.
        PackageError: safetensors or Orbax is needed, and not installed.
        NotBuiltError: The layer has no variables yet.
        StateError: Two weights have the same path.
        VariablesError: Something is no array of numbers, or not of a dtype that the format has; nothing has been written.
    """
    path = _source.named(path)
    try:
        # Not `resolve()`, which ends at a link to itself.
        path = Path(os.path.realpath(path))
        write = _writer(path, metadata)
        tree, arrays = _written(_plain(_tree_of(variables, "variables"), "variables"))
        with _replace.replacing(path) as new:
            write(tree, arrays, new)
    except KerasFlaxError:
        raise
    except RecursionError as error:
        raise VariablesError("`variables` nest deeper than Python goes here.") from error
    except OSError as error:
        raise FileError(f"{str(path)!r} cannot be written: {error.strerror or error}.") from error


# Where -----------------------------------------------------------------------------------------------------------------


def _read(path: Path, progress: Progress | None) -> PyTree:
    """What a file or folder holds; it is refused if something else is there than its name says."""
    suffix = path.suffix.lower()
    if not os.path.lexists(path):
        # A writer may have been stopped in the middle of replacing a folder.
        _replace.finish(Path(os.path.realpath(path)))
    if not path.exists():
        raise FileError(f"There is no file {str(path)!r}.")
    if path.is_dir():
        if suffix in _FILE_READERS:
            raise FileError(f"{str(path)!r} is a directory, and `{suffix}` a file.\n{_READABLE}")
        return _orbax.read(path, progress)
    if not path.is_file():
        raise FileError(f"{str(path)!r} is neither a file nor a directory.")
    with _source.opened(path, progress) as source:
        kind = _source.kind_of(source)
        named = _source.SAFETENSORS if suffix == ".safetensors" else None
        if suffix not in _FILE_READERS or kind not in (None, named):
            raise FileError(f"{str(path)!r} is {kind or 'a file of unknown kind'}.\n{_READABLE}")
        read = _FILE_READERS[suffix]
        tree = read(source)
    return _variables.nested(tree) if read is _safetensors.read else tree


def _named(tree: PyTree, path: Path) -> dict[str, Any]:
    """What a file holds, by path."""
    problem = _limits.problem_of_tree(tree)
    if problem:
        raise FileError(f"{str(path)!r} is too large: {problem}.")
    try:
        return _variables.named_leaves(tree)
    except StateError as error:
        raise FileError(
            f"{str(path)!r} has weights that cannot be told apart: {_limits.printable(str(error))}"
        ) from error


def _writer(
    path: Path, metadata: Mapping[str, str] | None
) -> Callable[[PyTree, Mapping[str, Array], Path], None]:
    """What writes such a path; it is refused when something else is there."""
    suffix = path.suffix.lower()
    if suffix in _FOREIGN:
        raise ArgumentError(
            f"No file like {path.name!r} is written.\n"
            "`.msgpack` is for Flax, `.safetensors` for most others, and another name for a directory of Orbax."
        )
    if metadata is not None and suffix != ".safetensors":
        raise ArgumentError("`metadata` is for `.safetensors` files alone.")
    if not all(isinstance(text, str) for item in (metadata or {}).items() for text in item):
        raise ArgumentError(f"`metadata` must hold texts by name, got {metadata!r}.")
    is_file = suffix in _FILE_READERS
    if is_file and path.is_dir():
        raise FileError(
            f"{str(path)!r} is a directory, and `{suffix}` a file.\nGive the file's own name."
        )
    if is_file and path.exists() and not path.is_file():
        raise FileError(f"{str(path)!r} is no file that another could replace.\nGive another name.")
    if (
        not is_file
        and path.exists()
        and not (path.is_dir() and (_orbax.is_checkpoint(path) or not any(path.iterdir())))
    ):
        raise FileError(
            f"{str(path)!r} is there, and no Orbax checkpoint that another could replace.\nGive another name."
        )
    if suffix == ".msgpack":
        return lambda tree, _, new: _msgpack.write(tree, new)
    if suffix == ".safetensors":
        return lambda tree, arrays, new: _safetensors.write(
            _unsplit(tree, arrays), new, metadata or {}
        )
    return _orbax.write


# What ------------------------------------------------------------------------------------------------------------------


def _tree_of(value: Any, argument: str) -> Mapping[str, PyTree]:
    if isinstance(value, keras.layers.Layer):
        return _models.own_variables(value)
    if not isinstance(value, Mapping):
        raise ArgumentError(
            f"`{argument}` must be a layer, a model, or a dict of variables, got {type(value).__name__}."
        )
    return value


def _plain(tree: PyTree, argument: str) -> PyTree:
    problem = _limits.problem_of_tree(tree)
    if problem:
        raise VariablesError(f"`{argument}` holds more than files do: {problem}.")
    return _variables.plain(tree)


def _expected(tree: PyTree) -> tuple[_variables.Template, dict[str, Any]]:
    """The template of a tree, and by path what has the shape and dtype to be expected."""
    template, arrays = _variables.split(_plain(tree, "like"))
    return template, {
        path: value if hasattr(value, "shape") else np.asarray(value)
        for path, value in arrays.items()
    }


def _written(tree: PyTree) -> tuple[PyTree, dict[str, Array]]:
    """The tree as nested dicts of NumPy's arrays and Python's numbers, as Flax writes it; and its arrays by path."""
    problems: list[str] = []
    opened = _opened(tree, "", problems)
    if problems:
        raise VariablesError(
            "Arrays of numbers below names can be written, and these are none:\n"
            + "\n".join(problems)
        )
    named = _variables.named_leaves(tree)
    return opened, {path: np.asarray(_number(leaf)) for path, leaf in named.items()}


def _opened(tree: PyTree, path: str, problems: list[str]) -> PyTree:
    """Nested dicts in the place of all that nests, as `flax.serialization.to_state_dict` makes them of Flax's own."""
    if tree is None:
        return None
    if isinstance(tree, Mapping):
        if not all(type(key) in (str, int) for key in tree) or len({type(key) for key in tree}) > 1:
            problems.append(
                f"  {path or 'the whole'}: a dict by {', '.join(map(repr, tree))}; names are all texts, or all integers"
            )
        wrong = {key: _limits.problem_of_name(key) for key in tree if type(key) in (str, int)}
        problems += [
            f"  {_limits.printable(path) or 'the whole'}: {problem}"
            for problem in wrong.values()
            if problem
        ]
        prefix = path and path + SEPARATOR
        return {key: _opened(subtree, f"{prefix}{key}", problems) for key, subtree in tree.items()}
    if not isinstance(tree, (np.ndarray, jax.Array)):
        # One level: JAX knows what is in it, and how it is named.
        children = jax.tree_util.tree_flatten_with_path(
            tree, is_leaf=lambda node: node is not tree
        )[0]
        if [keys for keys, _ in children] != [()]:
            return _opened(
                {jax.tree_util.keystr(keys, simple=True): child for keys, child in children},
                path,
                problems,
            )
    try:
        return _number(tree)
    except (TypeError, RuntimeError) as error:
        problems.append(f"  {path}: {error}")
        return None


def _unsplit(tree: PyTree, arrays: Mapping[str, Array]) -> Mapping[str, Array]:
    """The arrays, once it is clear that names with a separator in them are not lost where paths are names.

    Raises:
        VariablesError: A weight would come back under other names.
    """
    if _limits.has_separator(tree):
        held = [
            names
            for names in _limits.names_of_leaves(tree)
            if any(SEPARATOR in name for name in names)
        ]
        kept = set(_limits.names_of_leaves(_variables.nested(arrays)))
        # Of a box the file has no name for the field in it.
        lost = [
            names for names in held if not kept & {names[:end] for end in range(1, len(names) + 1)}
        ]
        if lost:
            raise VariablesError(
                f"A `.safetensors` file has paths as names, and these weights have a {SEPARATOR!r} in a name:\n"
                + "\n".join(f"  {' > '.join(map(repr, names))}" for names in lost)
                + "\nWrite `.msgpack`."
            )
    return arrays


def _number(leaf: Any) -> Any:
    """A leaf as a number, where Flax writes it as such, or as a NumPy array; of a random key the data."""
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    array = np.asarray(leaf)
    is_number = array.dtype.kind in "biufc" or jnp.issubdtype(array.dtype, jnp.number)
    if not is_number:
        raise TypeError(f"{type(leaf).__name__} is no array of numbers")
    if isinstance(leaf, (bool, int, float, complex, np.generic)):
        return leaf
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
