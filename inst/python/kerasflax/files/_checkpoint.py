"""Variables in files: Flax's msgpack, safetensors, and Orbax checkpoints.

Reading a file never runs code from it. A new file replaces an older one only once it is complete.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Container, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np

from .. import _host, _limits, _messages, _models, _paths, _processes
from .._errors import ArgumentError, FileError, KerasFlaxError, StateError, VariablesError
from .._layer import FlaxLayer
from .._messages import value_text
from .._paths import SEPARATOR
from ..bridge import _variables
from . import _msgpack, _orbax, _places, _replace, _safetensors, _source
from ._rename import Rename, Report, advice_on_mismatches, rename_function, targets_of
from ._source import Places, Progress, Source
from ._transpose import Transpose, Transposition

PyTree = Any
Array = np.ndarray[Any, Any]
_ARRAYS = (np.ndarray, jax.Array)

_FILE_READERS: Mapping[str, Callable[[Source], Any]] = {
    ".msgpack": _msgpack.read,
    ".safetensors": _safetensors.read,
}
_READABLE = (
    "Give a `.msgpack` file (Flax), a `.safetensors` file, or, under any other name, a directory"
    " that holds an Orbax checkpoint."
)
# Suffixes that nobody uses for the name of an Orbax checkpoint.
_FOREIGN = {
    *(".bin", ".gguf", ".gz", ".h5", ".hdf5", ".json", ".keras", ".npy", ".npz", ".onnx"),
    *(".pickle", ".pkl", ".pt", ".pth", ".rda", ".rds", ".tar", ".zip"),
}


def read_variables(
    file: str | os.PathLike[str],
    *,
    like: keras.layers.Layer | PyTree = None,
    path: _paths.Patterns = None,
    skip: _paths.Patterns = None,
    rename: Rename | None = None,
    transpose: Transpose | None = None,
    progress: Progress | None = None,
    report: Callable[[Report], object] | None = None,
) -> PyTree:
    r"""Read variables from a file, for example for `FlaxLayer(module, variables=...)`.

    Reading never runs code from the file, and checks every length in it before using it. It takes
    as much memory as the arrays. The exception is an array that an Orbax checkpoint stores as a
    single chunk, as other programs do: it takes twice its size while it is read.

    With `like`, the file may name the variables as Flax's users save them: as `module.init()`
    returns them; as a `TrainState` holds them; by their paths in the module, as `nnx.state()` and
    `nnx.to_pure_dict()` name them; below other names, such as `model`; or as the same part of
    another module, such as `encoder` for `backbone`. What is not a variable of `like`, such as an
    optimizer's state, is left over.

    Args:
        file: A Flax file (`.msgpack`, or what `flax.training.checkpoints` writes), a safetensors
            file (`.safetensors`), or, under any other name, a directory that holds an Orbax
            checkpoint.
        like: A layer, a model, or a nested dict of arrays or of their specs. The file must have
            its variables, with the same shapes, and dtypes of a compatible kind.
        path: One or more patterns of paths (see `kerasflax._paths`). Only these variables are read.
            The paths are those of the result.
        skip: One or more patterns of paths. These variables are not read, and the file need not
            have them.
        rename: How to rename weights: a dict from regular expressions to replacements (`\1` for a
            group), of which the first that matches the whole path is used; or a function from path
            to path. A new path of None leaves the weight out. Paths that nothing matches stay as
            they are.
        transpose: How to order the axes of weights that other programs store differently: a dict
            from patterns of paths, in the result, to the axes of the file in their new order, as in
            `np.transpose`. The first pattern that matches is used. `{"**/kernel": (2, 3, 1, 0)}`
            is for PyTorch's convolutions.
        progress: Called repeatedly with the number of bytes read so far and their total.
        report: Called once with the `Report` of mapped, left-over, missing and skipped paths,
            before an error about them is raised.

    Returns:
        Nested dicts of NumPy arrays, with the dtypes of the file (bfloat16 and 8-bit floats are
        those of `ml_dtypes`). With `like`, they have its structure, without what is skipped: assign
        them to `FlaxLayer.flax_variables`, which sets only what is named. Without it, names are
        those of the file: only `.msgpack` has integers as names, and names in a `.safetensors`
        file, and renamed ones, are split at "/". For typed random keys a file holds their data.

        If `like` has weights that are split over several processes, each process reads its parts of
        these from safetensors and Orbax, but transposed ones as a whole. They are JAX arrays in the
        host's memory: `jax.device_put` moves them to the devices.

    Raises:
        ArgumentError: An argument is invalid, a pattern matches no path, `skip` excludes all that
            `path` selects, `rename` sends two weights to one path, or `transpose` has other axes
            than the weight.
        FileError: The file does not exist, is damaged, or is of another kind.
        PackageError: The file requires safetensors or Orbax, which is not installed.
        VariablesError: The variables do not fit `like`, and the error lists every mismatch by path;
            or the file has them in several places.
    """
    source = _source.named(file, "file")
    rename_path = rename_function(rename)
    selection = _paths.Selection(path, skip)
    transposition = Transposition(transpose)
    template, expected = (None, {}) if like is None else _template(_tree_of(like, "`like`"))
    # Each of several processes reads its parts of the arrays, once it is known which ones.
    in_parts = template is not None and _processes.are_several()
    with _reading(source):
        tree = _read(source, None, {}) if in_parts else _read(source, progress)
        if template is None and rename is None and selection.is_all and not transposition:
            return tree
        named = _named(tree, source)
    renamed = targets_of(named, rename_path)
    needed = {path: spec for path, spec in expected.items() if path in selection}
    targets = renamed
    if template is not None:
        kept = [new for new in renamed.values() if new is not None]
        wanted = _places.Wanted(expected, needed, _levels(like))
        places = _places.located(kept, wanted, repr(str(source)))
        targets = {old: None if new is None else places[new] for old, new in renamed.items()}
    names = list(dict.fromkeys([*expected, *(new for new in targets.values() if new is not None)]))
    outside = [renamed[old] for old, new in targets.items() if new is None]
    selection.check(names, [path for path in outside if path is not None])
    skipped = dict.fromkeys(path for path in names if path not in selection)
    targets = {old: new for old, new in targets.items() if new not in skipped}
    moved = {new: named[old] for old, new in targets.items() if new is not None}
    if report:
        report(
            Report.of(
                targets,
                moved if template is None else needed,
                skipped,
                is_rename_unused=rename is not None and all(o == n for o, n in renamed.items()),
            )
        )
    axes = transposition.axes_of(_transposable(moved, None if template is None else needed))
    if template is None:
        turned = moved | {new: moved[new].transpose(order) for new, order in axes.items()}
        if rename is not None:
            return _variables.nested(turned)
        leaves = [turned.get(old, value) for old, value in named.items()]
        return _variables.part(jax.tree.unflatten(jax.tree.structure(tree), leaves), turned)
    what = repr(str(source))
    if in_parts:
        moved = _read_in_parts(source, progress, targets, moved, needed, whole=axes)
    moved = moved | {new: moved[new].transpose(order) for new, order in axes.items()}
    _variables.refuse_other_level(needed, moved, what=what, owner="`like`", is_file=True)
    fitted = _variables.fitted_by_path(
        needed,
        {new: value for new, value in moved.items() if isinstance(value, _ARRAYS)},
        others={new: value for new, value in moved.items() if not isinstance(value, _ARRAYS)},
        what=what,
        advice=advice_on_mismatches(
            renamed,
            names_differ=bool(needed.keys() - moved and moved.keys() - needed),
            axes_differ=_axes_differ(_transposable(moved, needed), needed),
        ),
    )
    return template.merge(fitted) if selection.is_all else template.merge_part(fitted)


def write_variables(
    variables: keras.layers.Layer | Mapping[str, PyTree],
    file: str | os.PathLike[str],
    *,
    path: _paths.Patterns = None,
    skip: _paths.Patterns = None,
    metadata: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> None:
    """Write variables to a file that Flax, safetensors or Orbax can read.

    The file is written under a temporary name next to its path, and moved there once complete.

    Args:
        variables: A built `FlaxLayer`; a Keras model, whose Flax layers' variables are written
            below the layers' names; or a nested dict of arrays. Typed random keys are written as
            their data, and boxes of metadata (`nn.Partitioned`) as Flax writes them: as a dict of
            their fields, whose names are not part of a path.
        file: The name of the file. Its suffix determines the format: `.msgpack` (like
            `flax.serialization`), `.safetensors` (the names are the weights' paths; empty dicts and
            None are lost), or, with any other name, an Orbax checkpoint directory (which cannot
            hold arrays without elements). Only `.msgpack` keeps integers as names; in the other
            formats they become text.
        path: One or more patterns of paths (see `kerasflax._paths`). Only these variables are
            written, under their whole paths.
        skip: One or more patterns of paths. These variables are not written.
        metadata: Text by name, for `.safetensors`.
        progress: Called repeatedly with the number of bytes written so far and their total. Not
            called for an Orbax checkpoint, which Orbax writes in one call.

    Raises:
        ArgumentError: An argument is invalid, a pattern matches no path, `skip` excludes all that
            `path` selects, or the suffix is that of another format.
        FileError: The file cannot be written.
        NotBuiltError: The layer has no variables yet.
        PackageError: The format requires Orbax, which is not installed.
        StateError: Two weights have the same path.
        VariablesError: A value is not an array of numbers, or the format does not support its
            dtype. Nothing has been written.
    """
    target = _source.named(file, "file")
    selection = _paths.Selection(path, skip)
    try:
        # Not `Path.resolve()`, which raises for a link to itself.
        target = Path(os.path.realpath(target))
        write = _writer(target, metadata, progress)
        argument = _host.word("to write")
        chosen = _plain_within_limits(_tree_of(variables, argument), argument)
        if not selection.is_all:
            paths = list(_variables.named_leaves(chosen))
            selection.check(paths)
            chosen = _variables.part(chosen, selection)
        in_parts = write is _orbax.write and _processes.are_several()
        tree, arrays = _state_dict(chosen, in_parts=in_parts)
        _processes.replace_together(
            lambda: _replace.replacing(target),
            lambda new: write(tree, arrays, new),
            by_all=in_parts,
        )
    except KerasFlaxError:
        raise
    except RecursionError as error:
        raise VariablesError(
            f"{_host.word('to write')} nests deeper than Python can recurse."
        ) from error
    except OSError as error:
        raise FileError(f"{str(target)!r} cannot be written: {error.strerror or error}.") from error


# Files and formats --------------------------------------------------------------------------------


@contextlib.contextmanager
def _reading(source: Path) -> Iterator[None]:
    """Raise a FileError if the system cannot read a file, or Python cannot nest as deep."""
    try:
        yield
    except FileError:
        raise
    except OSError as error:
        raise FileError(f"{str(source)!r} cannot be read: {error.strerror or error}.") from error
    except RecursionError as error:
        raise FileError(f"{str(source)!r} nests deeper than Python can recurse.") from error


def _read(path: Path, progress: Progress | None, places: Places | None = None) -> PyTree:
    """Read a file or directory, which must be of the kind that its suffix says.

    With `places`, safetensors and Orbax read what they name, where they say.
    """
    suffix = path.suffix.lower()
    if not os.path.lexists(path):
        # A writer may have been killed while it replaced a folder.
        _replace.finish(Path(os.path.realpath(path)))
    if not path.exists():
        raise FileError(f"There is no file {str(path)!r}.")
    if path.is_dir():
        if suffix in _FILE_READERS:
            raise FileError(
                f"{str(path)!r} is a directory, but `{suffix}` is the suffix of a file.",
                advice=_READABLE,
            )
        return _orbax.read(path, progress, places)
    if not path.is_file():
        raise FileError(f"{str(path)!r} is neither a file nor a directory.")
    with _source.opened(path, progress) as source:
        kind = _source.kind_of(source)
        named = _source.SAFETENSORS if suffix == ".safetensors" else None
        read = _FILE_READERS.get(suffix)
        if read is None and suffix not in _FOREIGN and _msgpack.is_dict(source):
            # `flax.training.checkpoints` names its files `checkpoint_1`.
            read = _msgpack.read
        if read is None or kind not in (None, named):
            raise FileError(
                f"{str(path)!r} is {kind or 'a file of unknown kind'}.", advice=_READABLE
            )
        if read is not _safetensors.read:
            return read(source)
        return _variables.nested(_safetensors.read(source, places))


def _read_in_parts(
    source: Path,
    progress: Progress | None,
    targets: Mapping[str, str | None],
    moved: Mapping[str, Any],
    needed: Mapping[str, Any],
    *,
    whole: Container[str],
) -> dict[str, Any]:
    """Read the arrays of which only the specs are known, each process its parts.

    Args:
        source: The file.
        progress: As in `read_variables`.
        targets: The new path, or None, by the path in the file.
        moved: What the file has, by new path.
        needed: The variables by path.
        whole: New paths of arrays that each process reads as a whole.

    Returns:
        The arrays by new path, with the shardings of their variables if they fit these.

    Raises:
        FileError: The file has changed.
    """
    unread = {
        old: new
        for old, new in targets.items()
        if new is not None and isinstance(moved[new], jax.ShapeDtypeStruct)
    }
    if not unread:
        return dict(moved)
    places = {
        old: None
        if new in whole
        else _place(moved[new], needed.get(_variables.without_box(new, needed)))
        for old, new in unread.items()
    }
    with _reading(source):
        named = _named(_read(source, progress, places), source)
    read = {new: named.get(old) for old, new in unread.items()}
    if any(
        not isinstance(array, _ARRAYS)
        or (array.shape, array.dtype) != (moved[new].shape, moved[new].dtype)
        for new, array in read.items()
    ):
        raise FileError(f"{str(source)!r} was replaced while it was read.", advice="Read it again.")
    return {**moved, **read}


def _transposable(
    moved: Mapping[str, Any], needed: Mapping[str, Any] | None
) -> dict[str, tuple[str, Any]]:
    """The arrays that are used, by new path, each with its variable's path, which has no box."""
    paths = {new: new if needed is None else _variables.without_box(new, needed) for new in moved}
    return {
        new: (paths[new], value)
        for new, value in moved.items()
        if isinstance(value, (*_ARRAYS, jax.ShapeDtypeStruct))
        and (needed is None or paths[new] in needed)
    }


def _axes_differ(arrays: Mapping[str, tuple[str, Any]], needed: Mapping[str, Any]) -> bool:
    """Whether an array has the axes of its variable in another order."""
    shapes = [(array.shape, needed[path].shape) for path, array in arrays.values()]
    return any(here != there and sorted(here) == sorted(there) for here, there in shapes)


def _place(spec: jax.ShapeDtypeStruct, variable: Any) -> Any:
    """Where to read the parts of a variable that is split, if an array fits it as it is."""
    is_split = isinstance(variable, jax.Array) and not _processes.is_here(variable)
    fits = is_split and (variable.shape, variable.dtype) == (spec.shape, spec.dtype)
    return _processes.on_host(variable.sharding) if fits else None


def _named(tree: PyTree, path: Path) -> dict[str, Any]:
    """The contents of a file by path.

    Raises:
        FileError: They are too large, or two weights have the same path.
    """
    problem = _limits.problem_of_tree(tree)
    if problem:
        raise FileError(f"{str(path)!r} is too large: {problem}.")
    try:
        return _variables.named_leaves(tree)
    except StateError as error:
        raise FileError(
            f"{str(path)!r} has weights that cannot be told apart: "
            f"{_messages.printable(error.what)}"
        ) from error


def _writer(
    path: Path, metadata: Mapping[str, str] | None, progress: Progress | None
) -> Callable[[PyTree, Mapping[str, Array], Path], None]:
    """Choose the function that writes a file with such a name.

    Raises:
        ArgumentError: The suffix is that of another format, or `metadata` is invalid.
        FileError: Something at the path must not be replaced.
    """
    suffix = path.suffix.lower()
    if suffix in _FOREIGN:
        raise ArgumentError(
            f"kerasflax cannot write a file like {path.name!r}.",
            advice="Use the suffix `.msgpack` for Flax, `.safetensors` for most other programs, or"
            " another name for an Orbax checkpoint directory.",
        )
    if metadata is not None and suffix != ".safetensors":
        raise ArgumentError("Only `.safetensors` files have `metadata`.")
    if not all(isinstance(text, str) for item in (metadata or {}).items() for text in item):
        raise ArgumentError(f"`metadata` must be text by name, got {value_text(metadata)}.")
    is_file = suffix in _FILE_READERS
    if is_file and path.is_dir():
        raise FileError(
            f"{str(path)!r} is a directory, but `{suffix}` is the suffix of a file.",
            advice="Give the name of a file.",
        )
    if is_file and path.exists() and not path.is_file():
        raise FileError(
            f"{str(path)!r} exists and is not a regular file, so it cannot be replaced.",
            advice="Give another name.",
        )
    if (
        not is_file
        and path.exists()
        and not (path.is_dir() and (_orbax.is_checkpoint(path) or not any(path.iterdir())))
    ):
        raise FileError(
            f"{str(path)!r} exists and is not an Orbax checkpoint, so it cannot be replaced.",
            advice="Give another name.",
        )
    if suffix == ".msgpack":
        return lambda tree, arrays, new: _msgpack.write(
            tree, sum(array.nbytes for array in arrays.values()), new, progress
        )
    if suffix == ".safetensors":
        return lambda tree, arrays, new: _safetensors.write(
            _refuse_split_names(tree, arrays), new, metadata or {}, progress
        )
    return _orbax.write


# Trees --------------------------------------------------------------------------------------------


def _tree_of(value: Any, argument: str) -> Mapping[str, PyTree]:
    if isinstance(value, keras.layers.Layer):
        return _models.own_variables(value)
    if not isinstance(value, Mapping):
        raise ArgumentError(
            f"{argument} must be a layer, a model, or {_host.word('dict')} of variables,"
            f" got {value_text(value)}."
        )
    return value


def _levels(like: Any) -> int:
    """How many names come before a variable's path in the module: the collection, or two."""
    is_model = isinstance(like, keras.layers.Layer) and not isinstance(like, FlaxLayer)
    return 1 + is_model


def _plain_within_limits(tree: PyTree, argument: str) -> PyTree:
    """The tree as plain dicts and lists.

    Raises:
        VariablesError: It is larger than a file may be.
    """
    problem = _limits.problem_of_tree(tree)
    if problem:
        raise VariablesError(f"{argument} is too large for a file: {problem}.")
    return _variables.plain(tree)


def _template(tree: PyTree) -> tuple[_variables.Template, dict[str, Any]]:
    """Split a tree into its template, and the expected shapes and dtypes by path."""
    template, arrays = _variables.split(_plain_within_limits(tree, "`like`"))
    return template, {
        path: value if hasattr(value, "shape") else np.asarray(value)
        for path, value in arrays.items()
    }


def _state_dict(tree: PyTree, *, in_parts: bool) -> tuple[PyTree, dict[str, Any]]:
    """Convert a tree to nested dicts of NumPy arrays and Python numbers, the form Flax writes.

    Args:
        tree: The tree.
        in_parts: Whether arrays of several processes remain JAX's.

    Returns:
        The nested dicts, and the arrays by path.

    Raises:
        VariablesError: A leaf is not an array of numbers, or no file can hold a name.
    """
    problems: dict[str, str] = {}
    # To gather an array costs time and memory, so each is converted once. A leaf that is kept here
    # also keeps its id.
    known: dict[int, tuple[Any, Any]] = {}

    def number(leaf: Any) -> Any:
        if id(leaf) not in known:
            known[id(leaf)] = leaf, _number(leaf, in_parts)
        return known[id(leaf)][1]

    state_dict = _converted(tree, "", problems, number)
    if problems:
        raise VariablesError(
            "Only arrays of numbers, in nested dicts, can be written.", problems=problems
        )
    numbers = {path: number(leaf) for path, leaf in _variables.named_leaves(tree).items()}
    return state_dict, {
        path: value if isinstance(value, jax.Array) else np.asarray(value)
        for path, value in numbers.items()
    }


def _converted(
    tree: PyTree, path: str, problems: dict[str, str], number: Callable[[Any], Any]
) -> PyTree:
    """Convert every container to a dict, as `flax.serialization.to_state_dict` converts Flax's own.

    `number` converts the leaves. Problems are added to `problems`, by path.
    """

    def add(problem: object) -> None:
        place = _messages.printable(path) or "the top level"
        problems[place] = f"{problems[place]}; {problem}" if place in problems else f"{problem}"

    if tree is None:
        return None
    if isinstance(tree, Mapping):
        if not all(type(key) in (str, int) for key in tree) or len({type(key) for key in tree}) > 1:
            names = ", ".join(map(repr, tree))
            add(f"the names must be all text, or all integers, got {names}")
        for key in tree:
            problem = _limits.problem_of_name(key) if type(key) in (str, int) else None
            if problem:
                add(problem)
        prefix = path and path + SEPARATOR
        return {
            key: _converted(subtree, f"{prefix}{key}", problems, number)
            for key, subtree in tree.items()
        }
    if not isinstance(tree, (np.ndarray, jax.Array)):
        # Only one level, because JAX knows the children of any node, and their names.
        children = jax.tree_util.tree_flatten_with_path(
            tree, is_leaf=lambda node: node is not tree
        )[0]
        if [keys for keys, _ in children] != [()]:
            return _converted(
                {jax.tree_util.keystr(keys, simple=True): child for keys, child in children},
                path,
                problems,
                number,
            )
    try:
        return number(tree)
    except (TypeError, RuntimeError) as error:
        add(error)
        return None


def _refuse_split_names(tree: PyTree, arrays: Mapping[str, Array]) -> Mapping[str, Array]:
    """Check that a file whose names are paths keeps the names that contain a separator.

    Returns:
        The arrays.

    Raises:
        VariablesError: A weight would have other names when it is read.
    """
    if _paths.has_separator(tree):
        held = [
            names
            for names in _paths.names_of_leaves(tree)
            if any(SEPARATOR in name for name in names)
        ]
        kept = set(_paths.names_of_leaves(_variables.nested(arrays)))
        # The file does not name the field of a box, so `names` may be longer than the kept ones.
        lost = [
            names for names in held if not kept & {names[:end] for end in range(1, len(names) + 1)}
        ]
        if lost:
            raise VariablesError(
                f"The names in a `.safetensors` file are paths, so no name can contain"
                f" {SEPARATOR!r}.",
                problems={
                    _messages.printable(SEPARATOR.join(names)): (
                        f"the names are {' > '.join(map(repr, names))}"
                    )
                    for names in lost
                },
                advice="Write a `.msgpack` file.",
            )
    return arrays


def _number(leaf: Any, in_parts: bool) -> Any:
    """Convert a leaf to a NumPy array, or to a number if Flax writes one; a random key to its data.

    An array of several processes is gathered, unless it is to be written in parts.

    Raises:
        RuntimeError: The array has been deleted.
        TypeError: The leaf is not an array of numbers.
    """
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    if in_parts and not _processes.is_local(leaf):
        return leaf
    array = _processes.gathered(leaf)
    is_number = array.dtype.kind in "biufc" or jnp.issubdtype(array.dtype, jnp.number)
    if not is_number:
        raise TypeError(f"{type(leaf).__name__} is not an array of numbers")
    if isinstance(leaf, (bool, int, float, complex, np.generic)):
        return leaf
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
