"""The formats to try: how to create an input, and how to check what becomes of it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import sys
import tempfile
import traceback
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from random import Random
from typing import Any, ClassVar

import flax.serialization
import h5py
import jax
import jax.numpy as jnp
import keras
import ml_dtypes
import numpy as np
from flax import linen as nn
from flax import nnx
from mutations import TEXTS, mutated_bytes, mutated_json

import kerasflax
from kerasflax import FlaxLayer, LazyModule

DOCUMENTED = kerasflax.KerasFlaxError
PACKAGE = str(Path(kerasflax.__file__).parent)


class Different(Exception):
    """A result is not the expected one."""


CORPUS = Path(__file__).with_name("corpus")


def kept(name: str, corpus: Callable[[], Iterator[bytes]]) -> list[bytes]:
    """Read the small files of a format, which are the seeds of its mutations.

    They are kept in the repository, because other versions of a writer write other bytes. If a
    format has none in `corpus/`, its function creates them.
    """
    folder = CORPUS / name
    if not folder.exists():
        folder.mkdir(parents=True)
        for number, data in enumerate(corpus()):
            (folder / f"{number:02}").write_bytes(data)
    return [file.read_bytes() for file in sorted(folder.iterdir())]


class Target:
    """A format. `make` must be a pure function of its generator."""

    documented: ClassVar[Any] = DOCUMENTED

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="kerasflax-fuzz-"))

    def make(self, random: Random) -> Any:
        raise NotImplementedError

    def check(self, made: Any) -> None:
        raise NotImplementedError


def make_target(name: str) -> Target:
    return TARGETS[name]()


# Arrays -------------------------------------------------------------------------------------------

DTYPES = (
    "float32",
    "float16",
    "int8",
    "uint32",
    "bool",
    "complex64",
    "int64",
    ml_dtypes.bfloat16,
    ml_dtypes.float8_e4m3fn,
)


def array(random: Random) -> np.ndarray[Any, Any]:
    shape = tuple(random.choice((0, 1, 2, 3)) for _ in range(random.randrange(4)))
    numbers = np.array([random.randrange(100) for _ in range(int(np.prod(shape)))])
    return numbers.reshape(shape).astype(random.choice(DTYPES))


def tree(
    random: Random,
    names: tuple[Any, ...] = ("params", "a", "kernel", "bias", "Dense_0"),
    depth: int = 3,
) -> dict[Any, Any]:
    result: dict[Any, Any] = {}
    for _ in range(random.randrange(1, 4)):
        is_leaf = depth == 0 or random.random() < 0.5
        result[random.choice(names)] = array(random) if is_leaf else tree(random, names, depth - 1)
    return result


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yield the leaves of nested dicts and lists, by path. An empty container is a leaf."""
    items = (
        value.items()
        if isinstance(value, Mapping)
        else enumerate(value)
        if isinstance(value, (list, tuple))
        else None
    )
    if items is None or not value:
        yield path, value if items is None else type(value)()
    else:
        for key, item in items:
            yield from leaves(item, (*path, key))


def same(one: Any, other: Any) -> bool:
    if isinstance(one, (str, type(None), dict, list)) or isinstance(
        other, (str, type(None), dict, list)
    ):
        return type(one) is type(other) and one == other
    one, other = np.asarray(one), np.asarray(other)
    # Compare bytes, because NaN is not equal to itself.
    return (
        one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    )


def compare(got: Any, expected: Any) -> None:
    got, expected = dict(leaves(got)), dict(leaves(expected))
    if got.keys() != expected.keys():
        raise Different(f"paths {sorted(map(str, got.keys() ^ expected.keys()))[:5]}")
    for path, value in got.items():
        if not same(value, expected[path]):
            raise Different(f"{path}: {value!r:.100} for {expected[path]!r:.100}")


# Files of variables -------------------------------------------------------------------------------


class Variables(Target):
    """Mutations of files of variables; `reference` is another reader of the same bytes."""

    suffix: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        self.path = self.folder / f"file{self.suffix}"
        self.seeds = kept(self.suffix[1:], self.corpus)

    def corpus(self) -> Iterator[bytes]:
        random = Random(0)
        for _ in range(12):
            # The format may not support a tree.
            with contextlib.suppress(DOCUMENTED):
                kerasflax.write_variables(tree(random), self.path)
                yield self.path.read_bytes()

    def make(self, random: Random) -> bytes:
        return mutated_bytes(random.choice(self.seeds), self.seeds, random)

    def check(self, made: bytes) -> None:
        self.path.write_bytes(made)
        got = kerasflax.read_variables(self.path)
        try:
            expected = self.reference(made)
        except Exception as error:
            raise Different(
                f"the reference reader refuses it: {type(error).__name__}: {error!s:.200}"
            ) from error
        self.compare(got, expected)

    def reference(self, made: bytes) -> Any:
        raise NotImplementedError

    def compare(self, got: Any, expected: Any) -> None:
        compare(got, expected)


class Msgpack(Variables):
    suffix = ".msgpack"

    def corpus(self) -> Iterator[bytes]:
        yield from super().corpus()
        size = flax.serialization.MAX_CHUNK_SIZE
        flax.serialization.MAX_CHUNK_SIZE = 16
        yield flax.serialization.to_bytes(
            {"params": {"kernel": np.arange(12.0, dtype=np.float32).reshape(3, 4)}}
        )
        flax.serialization.MAX_CHUNK_SIZE = size
        yield flax.serialization.to_bytes(
            {"a": [1, 2.5, True, None, 1 + 2j], "b": {"c": np.float32(3)}, "d": (), "e": {}}
        )

    def reference(self, made: bytes) -> Any:
        return flax.serialization.msgpack_restore(made)


class Safetensors(Variables):
    suffix = ".safetensors"

    def corpus(self) -> Iterator[bytes]:
        yield from super().corpus()
        shared = np.ones(3, np.float32)
        kerasflax.write_variables(
            {"params": {"a": shared, "b": shared}}, self.path, metadata={"note": "x"}
        )
        yield self.path.read_bytes()

    def make(self, random: Random) -> bytes:
        seed = random.choice(self.seeds)
        length = int.from_bytes(seed[:8], "little")
        if random.random() < 0.5:
            return mutated_bytes(seed, self.seeds, random)
        header, others = (
            json.loads(seed[8 : 8 + length]),
            [json.loads(s[8 : 8 + int.from_bytes(s[:8], "little")]) for s in self.seeds],
        )
        try:
            text = json.dumps(mutated_json(header, others, random)).encode("utf-8", "surrogatepass")
        except RecursionError:
            # It nests deeper than Python can recurse.
            text = b"[" * 10_000
        return len(text).to_bytes(8, "little") + text + seed[8 + length :]

    def reference(self, made: bytes) -> Any:
        import safetensors

        return dict(safetensors.deserialize(made))

    def compare(self, got: Any, expected: Any) -> None:
        got = {
            "/".join(map(str, path)): value
            for path, value in leaves(got)
            if not isinstance(value, dict)
        }
        missing = expected.keys() - got.keys()
        if missing:
            raise Different(f"not read: {sorted(missing)[:5]}")
        for name, entry in expected.items():
            value = got[name]
            if list(value.shape) != list(entry["shape"]) or value.tobytes() != bytes(entry["data"]):
                raise Different(f"{name}: {value!r:.100} for {entry!r:.100}")


def packed(parts: Mapping[str, bytes]) -> bytes:
    """Create a zip archive. Its dates are fixed, so it depends only on its contents."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as file:
        for name, data in parts.items():
            file.writestr(zipfile.ZipInfo(name), data)
    return made.getvalue()


def unpacked(data: bytes) -> dict[str, bytes]:
    """Read the contents of a zip archive, by name."""
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        return {name: file.read(name) for name in file.namelist()}


class Orbax(Target):
    """Mutations of the files of a checkpoint, some of which are removed or added."""

    def __init__(self) -> None:
        super().__init__()
        self.seeds = [unpacked(data) for data in kept("orbax", self.corpus)]

    def corpus(self) -> Iterator[bytes]:
        for number in range(4):
            path = self.folder / f"seed-{number}"
            with contextlib.suppress(DOCUMENTED):
                kerasflax.write_variables(tree(Random(number)), path)
                yield packed(
                    {
                        str(file.relative_to(path)): file.read_bytes()
                        for file in path.rglob("*")
                        if file.is_file()
                    }
                )

    def make(self, random: Random) -> dict[str, bytes]:
        files = dict(random.choice(self.seeds))
        name = random.choice(sorted(files))
        others = [data for seed in self.seeds for data in seed.values()]
        kind = random.randrange(10)
        if kind == 0:
            del files[name]
        elif kind == 1:
            files[random.choice(("x", f"{name}x", "d/x", "_METADATA", ".zarray"))] = random.choice(
                others
            )
        elif kind < 5 and files[name][:1] in (b"{", b"["):
            with contextlib.suppress(ValueError):
                value = json.loads(files[name])
                files[name] = json.dumps(mutated_json(value, [value], random)).encode(
                    "utf-8", "surrogatepass"
                )
        else:
            files[name] = mutated_bytes(files[name], others, random)
        return files

    def check(self, made: dict[str, bytes]) -> None:
        path = self.folder / "checkpoint"
        shutil.rmtree(path, ignore_errors=True)
        for name, data in made.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)
        kerasflax.read_variables(path)


class StableHlo(Target):
    """Mutations of an exported model. Any damage must be found before JAX reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.path = self.folder / "model.stablehlo"
        kerasflax.export_model(
            keras.Sequential([keras.Input((4,)), FlaxLayer(nn.Dense(3))]),
            self.path,
            platforms=["cpu"],
        )
        self.seeds = [self.path.read_bytes()]

    def make(self, random: Random) -> bytes:
        return mutated_bytes(self.seeds[0], self.seeds, random)

    def check(self, made: bytes) -> None:
        self.path.write_bytes(made)
        run = kerasflax.import_model(self.path)
        if made != self.seeds[0]:
            raise Different("a damaged file was accepted")
        run(np.ones((2, 4), np.float32))


# Models -------------------------------------------------------------------------------------------


class Net(nn.Module):
    features: int = 3
    activation: Callable[[jax.Array], jax.Array] = nn.relu
    kernel_init: Any = nn.initializers.normal(0.1)

    @nn.compact
    def __call__(self, inputs: jax.Array, training: bool = False) -> jax.Array:
        x = nn.BatchNorm(use_running_average=not training)(
            nn.Dense(self.features, kernel_init=self.kernel_init)(inputs)
        )
        return nn.Dropout(0.5)(self.activation(x), deterministic=not training)


class NnxNet(nnx.Module):
    def __init__(self, features: int, *, rngs: nnx.Rngs) -> None:
        self.linear = nnx.Linear(4, features, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, inputs: jax.Array) -> jax.Array:
        return self.dropout(self.linear(inputs))


def layers() -> list[FlaxLayer]:
    return [
        FlaxLayer(Net(), seed=1, regularizers={"**/kernel": keras.regularizers.L2(0.1)}),
        FlaxLayer(
            nn.Sequential(
                [nn.Dense(3), nn.LayerNorm(dtype=jnp.bfloat16), nn.Dense(2, precision="high")]
            )
        ),
        FlaxLayer(LazyModule(NnxNet, 3), seed=2, activity_regularizer="l2"),
        FlaxLayer(nn.Dense(2, bias_init=nn.with_partitioning(nn.initializers.ones, ("data",)))),
        FlaxLayer(nn.RNN(nn.LSTMCell(3), return_carry=False)),
    ]


FORBIDDEN = (
    "subprocess.",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "socket.",
    "pickle.",
    "shutil.rmtree",
    "marshal.",
)
_seen: list[str] | None = None


def _audit(event: str, arguments: Any) -> None:
    if _seen is not None and event.startswith(FORBIDDEN) and not _removes_its_own(event, arguments):
        _seen.append(f"{event} {arguments!r:.100}")


def _removes_its_own(event: str, arguments: Any) -> bool:
    """Whether Keras is removing the folder next to an archive into which it has unpacked it."""
    return event == "shutil.rmtree" and Path(arguments[0]).parent.name.startswith("kerasflax-fuzz-")


@contextlib.contextmanager
def harmless() -> Iterator[None]:
    """Check that the block starts no process, opens no connection and reads no pickle.

    Raises:
        Different: It did, or it imported a new package.
    """
    global _seen
    _seen, before = [], set(sys.modules)
    try:
        yield
    finally:
        seen, _seen = _seen, None
        if seen:
            raise Different(f"it did {seen[:3]}")
        new = {name.partition(".")[0] for name in set(sys.modules) - before} - ALLOWED_IMPORTS
        if new:
            raise Different(f"it imported {sorted(new)[:5]}")


# Packages that the loaded ones import lazily.
ALLOWED_IMPORTS = {
    "jax",
    "jaxlib",
    "flax",
    "keras",
    "numpy",
    "scipy",
    "ml_dtypes",
    "h5py",
    "kerasflax",
    "optree",
    "encodings",
}


def is_documented(error: BaseException | None) -> bool:
    """Whether an error is acceptable.

    It is if it is one of ours, or has one of ours as its cause or context (Keras replaces errors),
    or if its traceback has no frame of our code. Frames of Flax are accepted, too: the description
    of a module may be valid, and the module may then fail when it runs.
    """
    chain = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    if any(isinstance(link, DOCUMENTED) for link in chain):
        return True
    for link in chain:
        frames = [frame.filename for frame in traceback.extract_tb(link.__traceback__)]
        if any(name.startswith(PACKAGE) for name in frames) and not any(
            f"{os.sep}flax{os.sep}" in name for name in frames
        ):
            return False
    return True


@contextlib.contextmanager
def keras_errors() -> Iterator[None]:
    """Accept errors that Keras itself raises, and hold ours to the documented classes."""
    try:
        yield
    except Exception as error:
        if isinstance(error, Different) or not is_documented(error):
            raise


class Config(Target):
    """Mutations of layers' configs. An accepted one must survive a round trip."""

    def __init__(self) -> None:
        super().__init__()
        sys.addaudithook(_audit)
        self.seeds = [json.loads(json.dumps(layer.get_config())) for layer in layers()]

    def make(self, random: Random) -> Any:
        return mutated_json(random.choice(self.seeds), self.seeds, random)

    def check(self, made: Any) -> None:
        with harmless(), keras_errors():
            config = FlaxLayer.from_config(json.loads(json.dumps(made))).get_config()
            again = FlaxLayer.from_config(json.loads(json.dumps(config))).get_config()
            if json.dumps(config, sort_keys=True) != json.dumps(again, sort_keys=True):
                raise Different(f"{json.dumps(config):.200} and then {json.dumps(again):.200}")


class Archive(Target):
    """Mutations of `.keras` files: of the archive, its config or its weights."""

    def __init__(self) -> None:
        super().__init__()
        sys.addaudithook(_audit)
        self.path = self.folder / "model.keras"
        self.seeds = kept("keras", self.corpus)
        for seed in self.seeds:
            # Load it once, so that lazy imports happen now.
            self.path.write_bytes(seed)
            keras.saving.load_model(self.path)

    def corpus(self) -> Iterator[bytes]:
        for layer in layers()[:4]:
            model = keras.Sequential([keras.Input((4,)), layer])
            model.compile("sgd", "mse")
            model.save(self.path)
            yield self.path.read_bytes()

    def make(self, random: Random) -> bytes:
        seed, kind = random.choice(self.seeds), random.randrange(4)
        if kind == 0:
            return mutated_bytes(seed, self.seeds, random)
        parts = unpacked(seed)
        if kind == 1:
            parts["model.weights.h5"] = mutated_weights(parts["model.weights.h5"], random)
        else:
            config = json.loads(parts["config.json"])
            layer = config["config"]["layers"][-1]
            text = json.dumps(mutated_json(layer["config"], [layer], random))
            layer["config"] = "mutated"
            # Replace large numbers, because a file may describe a model that does not fit into
            # memory; see SECURITY.md.
            text = json.dumps(config).replace('"mutated"', re.sub("[0-9]{5,}", "4096", text))
            parts["config.json"] = text.encode("utf-8", "surrogatepass")
        return packed(parts)

    def check(self, made: bytes) -> None:
        self.path.write_bytes(made)
        keras.utils.clear_session(free_memory=False)
        with harmless(), keras_errors():
            keras.saving.load_model(self.path)


def mutated_weights(data: bytes, random: Random) -> bytes:
    """Change the data, the names or the types in an HDF5 file."""
    file = io.BytesIO(data)
    with h5py.File(file, "a") as root:
        found: list[str] = []
        root.visit(found.append)
        # Only Keras reads the data of the optimizer.
        datasets = [
            name
            for name in found
            if isinstance(root[name], h5py.Dataset) and not name.startswith("optimizer")
        ]
        name = random.choice(datasets)
        kind = random.randrange(9)
        old = root[name][()]
        if name.endswith("index.json") and kind < 6:
            index = json.loads(old.tobytes())
            text = json.dumps(mutated_json(index, [index], random)).encode("utf-8", "surrogatepass")
            del root[name]
            root[name] = np.frombuffer(text, np.uint8)
            return _closed(root, file)
        del root[name]
        if kind == 0:
            root[name] = h5py.Empty("float32")
        elif kind == 1:
            root[name] = random.choice(TEXTS).replace("\0", "").encode("utf-8", "replace")
        elif kind == 2:
            root[name] = np.zeros(3, [("a", "f4"), ("b", "i4")])
        elif kind == 3:
            root.create_dataset(name, shape=(2,), dtype=h5py.ref_dtype)
        elif kind == 4:
            root.create_dataset(
                name, shape=(2**28,), dtype="f4", chunks=(2**22,), compression="gzip"
            )
        elif kind == 5:
            root[name] = h5py.SoftLink(random.choice(("/", "/x", random.choice(datasets))))
        elif kind == 6:
            root[name] = old.astype(random.choice(("f2", "f8", "i4", "u1", "S3", "?")))
        elif kind == 7:
            root[name] = np.resize(old, random.choice(((), (1,), (2, 3), (0,), (3, 3, 3))))
        return _closed(root, file)


def _closed(root: h5py.File, file: io.BytesIO) -> bytes:
    root.close()
    return file.getvalue()


class Weights(Target):
    """Mutations of `.weights.h5` files. Either all weights of a model are replaced, or none."""

    def __init__(self) -> None:
        super().__init__()
        self.path = self.folder / "model.weights.h5"
        self.model = keras.Sequential([keras.Input((4,)), layers()[0]])
        self.seeds = kept("weights.h5", self.corpus)
        self.layer = self.model.layers[-1]

    def corpus(self) -> Iterator[bytes]:
        self.model.save_weights(self.path)
        yield self.path.read_bytes()

    def make(self, random: Random) -> bytes:
        if random.random() < 0.3:
            return mutated_bytes(self.seeds[0], self.seeds, random)
        return mutated_weights(self.seeds[0], random)

    def check(self, made: bytes) -> None:
        self.path.write_bytes(made)
        before = {
            path: np.array(variable.value)
            for path, variable in self.layer.variables_by_path.items()
        }
        try:
            self.model.load_weights(self.path)
        except Exception as error:
            after = {
                path: np.array(variable.value)
                for path, variable in self.layer.variables_by_path.items()
            }
            if any(not same(before[path], after[path]) for path in before):
                raise Different(f"it failed ({error!s:.100}), but replaced weights") from error
            if not is_documented(error):
                raise


# Patterns and writers -----------------------------------------------------------------------------


class Patterns(Target):
    """Patterns and paths. The matches must be those of a simple, slow definition."""

    def make(self, random: Random) -> tuple[str, list[str]]:
        names = ("a", "b", "ab", "Dense_0", "kernel", "x" * 40)
        parts = (*names, "*", "**", "**", "?", "a*", "[ab]", "[!a]", "[", "*a*a*a*b", "")
        pattern = "/".join(random.choice(parts) for _ in range(random.choice((1, 2, 3, 5, 30))))
        paths = [
            "/".join(random.choice(names) for _ in range(random.choice((1, 2, 4, 8, 60))))
            for _ in range(20)
        ]
        return pattern, paths

    def check(self, made: tuple[str, list[str]]) -> None:
        import fnmatch

        from kerasflax import _paths

        def matches(names: list[str], patterns: list[str]) -> bool:
            # The positions in `patterns` that can be reached with the names so far.
            state = {0}
            for name in [*names, None]:
                for position in sorted(state):
                    while position < len(patterns) and patterns[position] == "**":
                        position += 1
                        state.add(position)
                if name is not None:
                    state = {p for p in state if p < len(patterns) and patterns[p] == "**"} | {
                        p + 1
                        for p in state
                        if p < len(patterns)
                        and patterns[p] != "**"
                        and fnmatch.fnmatchcase(name, patterns[p])
                    }
            return len(patterns) in state

        pattern, paths = made
        expected = [path for path in paths if matches(path.split("/"), pattern.split("/"))]
        try:
            got = _paths.matched(pattern, paths)
        except DOCUMENTED:
            got = []
        if got != expected:
            raise Different(f"{got[:3]} for {expected[:3]}")


class RoundTrips(Target):
    """Trees of arrays with odd names.

    A writer must either refuse one without writing anything, or write a file that returns it.
    """

    names = (
        *(text for text in TEXTS if len(text) < 200),
        "a",
        "b",
        "A",
        "a.b",
        "flax",
        "__msgpack_chunked_array__",
        "format",
    )
    keys = (*names, 0, 1, -1, 2**40)

    def make(self, random: Random) -> tuple[str, dict[Any, Any]]:
        suffix = random.choice((".msgpack", ".msgpack", ".safetensors", ".safetensors", ""))
        made = tree(random, random.choice((self.names, self.keys)), depth=random.choice((1, 2, 3)))
        if random.random() < 0.02:
            for _ in range(random.choice((50, 99, 100, 101, 3000))):
                made = {"a": made}
        if random.random() < 0.2:
            made["tied"] = made["also tied"] = np.ones(2, np.float32)
        return suffix, made

    def check(self, made: tuple[str, dict[Any, Any]]) -> None:
        suffix, written = made
        path = self.folder / f"round-trip{suffix}"
        # Usually a file of an earlier input is at the path, and is replaced.
        try:
            kerasflax.write_variables(written, path)
        except DOCUMENTED:
            left = [name for name in os.listdir(self.folder) if not name.startswith("round-trip")]
            if left:
                raise Different(f"a refused write left {left[:3]} behind") from None
            raise
        got = kerasflax.read_variables(path)
        if suffix == ".safetensors":
            # Its names are paths.
            got, written = joined(got), joined(written)
        elif not suffix:
            # Orbax turns all names into text.
            written = in_text(written)
        compare(got, written)


def in_text(value: Any) -> Any:
    """Turn the names in nested dicts into text."""
    if not isinstance(value, dict):
        return value
    result = {str(name): in_text(item) for name, item in value.items()}
    if len(result) < len(value):
        raise Different(f"two names have the same text: {sorted(map(repr, value))[:5]}")
    return result


def joined(value: Any) -> dict[str, Any]:
    """The arrays of a tree by path. Empty dicts are left out."""
    result: dict[str, Any] = {}
    for path, leaf in leaves(value):
        name = "/".join(map(str, path))
        if name in result:
            raise Different(f"{name!r} stands for two weights")
        if not isinstance(leaf, dict):
            result[name] = leaf
    return result


TARGETS: Mapping[str, type[Target]] = {
    **{"msgpack": Msgpack, "safetensors": Safetensors, "orbax": Orbax, "stablehlo": StableHlo},
    **{
        "config": Config,
        "keras": Archive,
        "weights.h5": Weights,
        "patterns": Patterns,
        "round-trips": RoundTrips,
    },
}
