"""Parts of variables to and from files: `path` and `skip`."""

import flax.serialization
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from checkpoints import ARRAY, SUFFIXES, assert_same
from flax import linen as nn
from flax import nnx
from support import run_code

from kerasflax import ArgumentError, FlaxLayer, VariablesError, read_variables, write_variables
from kerasflax.bridge._variables import named_leaves

X = np.linspace(-1, 1, 8 * 4, dtype=np.float32).reshape(8, 4)


class Encoder(nn.Module):
    @nn.compact
    def __call__(self, x):
        init = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "x"))
        x = nn.BatchNorm(use_running_average=True)(nn.Dense(3, kernel_init=init)(x))
        return nn.Dense(3)(x)


class Classifier(nn.Module):
    """An encoder below any name, and a head."""

    classes: int
    name_of_encoder: str = "encoder"

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.classes, name="head")(Encoder(name=self.name_of_encoder)(x))


class NnxEncoder(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(4, 3, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)])

    def __call__(self, x):
        for layer in (self.norm, *self.layers):
            x = layer(x)
        return x


class NnxClassifier(nnx.Module):
    def __init__(self, classes, name_of_encoder="encoder", *, rngs):
        self.head = nnx.Linear(3, classes, rngs=rngs)
        setattr(self, name_of_encoder, NnxEncoder(rngs))
        self.name_of_encoder = name_of_encoder

    def __call__(self, x):
        return self.head(getattr(self, self.name_of_encoder)(x))


SYSTEMS = {
    "linen": (Classifier, Encoder),
    "nnx": (
        lambda *args: NnxClassifier(*args, rngs=nnx.Rngs(args[0])),
        lambda: NnxEncoder(nnx.Rngs(7)),
    ),
}


def built(module, seed=1, name=None):
    layer = FlaxLayer(module, seed=seed, name=name)
    layer(X)
    return layer


def model_of(module, seed, name):
    return keras.Sequential([keras.Input((4,)), built(module, seed, name)])


def data(layer):
    """The values by path, as NumPy arrays."""
    return {path: np.asarray(value) for path, value in layer.variables_by_path.items()}


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("system", SYSTEMS)
def test_a_new_head_keeps_its_values_and_the_rest_comes_from_the_file(system, suffix, tmp_path):
    make, _ = SYSTEMS[system]
    saved, model = model_of(make(2), 1, "old"), model_of(make(5), 2, "new")
    write_variables(saved, tmp_path / f"w{suffix}")
    before, there = data(model.layers[0]), data(saved.layers[0])
    with pytest.raises(VariablesError, match=r"head/kernel: expected float32\(3, 5\), got shape"):
        read_variables(tmp_path / f"w{suffix}", like=model)
    reports = []
    read = read_variables(
        tmp_path / f"w{suffix}", like=model, skip="**/head/**", report=reports.append
    )
    assert not any("head" in path for path in named_leaves(read))
    (report,) = reports
    assert str(report).endswith("Skipped:\n  new/params/head/**")
    model.layers[0].flax_variables = read["new"]
    for path, value in data(model.layers[0]).items():
        expected = before if path.startswith("params/head/") else there
        np.testing.assert_array_equal(value, expected[path], err_msg=path)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("system", SYSTEMS)
def test_a_submodule_moves_to_another_model_and_place_through_a_file(system, suffix, tmp_path):
    make, make_encoder = SYSTEMS[system]
    saved = model_of(make(2), 1, "one")
    write_variables(saved, tmp_path / f"w{suffix}", path="**/encoder/**")
    there = {p: v for p, v in data(saved.layers[0]).items() if "/encoder/" in p}
    assert {
        path.removesuffix("/value")
        for path in named_leaves(read_variables(tmp_path / f"w{suffix}"))
    } == {f"one/{path}" for path in there}

    model = model_of(make(3, "backbone"), 2, "two")
    before = data(model.layers[0])
    read = read_variables(tmp_path / f"w{suffix}", like=model, path="**/backbone/**")
    model.layers[0].flax_variables = read["two"]
    for path, value in data(model.layers[0]).items():
        expected = there.get(path.replace("/backbone/", "/encoder/"), before[path])
        np.testing.assert_array_equal(value, expected, err_msg=path)

    encoder = built(make_encoder(), 3)
    encoder.flax_variables = read_variables(tmp_path / f"w{suffix}", like=encoder)
    for path, value in data(encoder).items():
        collection, _, rest = path.partition("/")
        np.testing.assert_array_equal(value, there[f"{collection}/encoder/{rest}"], err_msg=path)


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_submodule_of_a_whole_file_is_read_with_rename(system, tmp_path):
    make, make_encoder = SYSTEMS[system]
    saved, encoder = built(make(2)), built(make_encoder(), 3)
    write_variables(saved, tmp_path / "w.msgpack")
    read = read_variables(
        tmp_path / "w.msgpack",
        like=encoder,
        rename={r"(\w+)/encoder/(.*)": r"\1/\2", "params/head/.*": None},
    )
    encoder.flax_variables = read
    there = data(saved)
    for path, value in data(encoder).items():
        collection, _, rest = path.partition("/")
        np.testing.assert_array_equal(value, there[f"{collection}/encoder/{rest}"], err_msg=path)


def test_a_part_survives_in_a_new_process(tmp_path):
    write_variables(built(Classifier(2)), tmp_path / "w.msgpack", skip="**/head/**")
    shapes = run_code(f"""
        import flax.serialization
        with open({str(tmp_path / "w.msgpack")!r}, "rb") as file:
            tree = flax.serialization.msgpack_restore(file.read())
        encoder = tree["params"].pop("encoder")
        print(sorted(tree), sorted(tree["params"]), encoder["Dense_1"]["bias"].shape)
    """)
    assert shapes.strip() == "['batch_stats', 'params'] [] (3,)"


TREE = {
    "params": {
        "layers": {0: {"w": ARRAY}, 1: {"w": ARRAY + 1}},
        "boxed": nn.Partitioned(ARRAY, ("x", None)),
        "list": [ARRAY, ARRAY + 1],
    },
    "state": {"key": jax.random.key(3), "none": None, "empty": {}},
}


def test_a_part_keeps_integers_boxes_and_random_keys(tmp_path):
    path = tmp_path / "w.msgpack"
    write_variables(TREE, path, path=["**/1/*", "**/boxed", "state/**"])
    written = {
        "params": {"boxed": {"value": ARRAY}, "layers": {1: {"w": ARRAY + 1}}},
        "state": {"key": np.asarray(jax.random.key_data(TREE["state"]["key"]))},
    }
    # Some versions of Flax do not restore integers as names.
    assert path.read_bytes() == flax.serialization.msgpack_serialize(written)
    read = read_variables(path, like=TREE, path=["**/1/*", "**/boxed", "state/**"])
    assert read["state"]["key"] == TREE["state"]["key"]
    assert isinstance(read["params"]["boxed"], nn.Partitioned)
    assert list(read["params"]["layers"]) == [1]
    assert_same({"layers": {1: {"w": ARRAY + 1}}}, read_variables(path, path="**/w")["params"])
    write_variables(TREE, path, path="params/list/1")
    assert_same({"params": {"list": {"1": ARRAY + 1}}}, read_variables(path))
    read = read_variables(path, like=TREE, path="params/list/1")
    assert_same({"params": {"list": {"1": ARRAY + 1}}}, read)


def test_path_and_skip_select_by_the_new_names_and_rename_by_those_of_the_file(tmp_path):
    path = tmp_path / "w.safetensors"
    write_variables({"a": {"w": ARRAY, "b": ARRAY[0]}, "c": {"w": ARRAY + 1}}, path)
    read = read_variables(path, rename={"a/(.*)": r"x/\1"}, path="x/**", skip="**/b")
    assert_same({"x": {"w": ARRAY}}, read)
    # What only the file has can be skipped, too.
    read = read_variables(path, like={"a": {"w": ARRAY}}, skip=["a/b", "c/**"])
    assert_same({"a": {"w": ARRAY}}, read)


WRONG = [
    ({"path": "**/krnel"}, r"No weight has a path that matches '\*\*/krnel'\.\n.*params/a/kernel"),
    ({"skip": "params/a"}, r"No weight .* 'params/a'\.\n.*nearest of 3 are params/a/\*\*"),
    ({"skip": ["**/bias", "**/x"]}, r"No weight .* matches '\*\*/x'"),
    (
        {"path": "params/a/**", "skip": "params/b/*"},
        r"No weight of `path` has a path that matches 'params/b/\*'",
    ),
    (
        {"path": "params/a/*", "skip": "params/**"},
        r"`skip` excludes every weight that `path` selects\.\nExclude fewer weights",
    ),
    ({"skip": "**"}, r"`skip` excludes every weight\.\nExclude fewer weights"),
    ({"path": 3}, "`path` must be a pattern of paths, or a list of patterns, got 3"),
    ({"skip": []}, r"`skip` must be a pattern of paths, or a list of patterns, got \[\]"),
    ({"skip": ["a", None]}, "`skip` must be a pattern of paths"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_an_error_about_patterns_says_what_is_near_and_nothing_is_written(
    arguments, message, tmp_path
):
    tree = {"params": {"a": {"kernel": ARRAY, "bias": ARRAY[0]}, "b": {"kernel": ARRAY}}}
    write_variables(tree, tmp_path / "w.msgpack")
    for like in (None, tree):
        with pytest.raises(ArgumentError, match=message):
            read_variables(tmp_path / "w.msgpack", like=like, **arguments)
    with pytest.raises(ArgumentError, match=message):
        write_variables(tree, tmp_path / "new.msgpack", **arguments)
    assert [each.name for each in tmp_path.iterdir()] == ["w.msgpack"]


def test_a_part_that_does_not_fit_is_an_error_and_sets_nothing(tmp_path):
    layer = built(Classifier(2))
    before = data(layer)
    part = {"params": {"head": {"bias": np.ones(2), "kernel": np.ones((2, 3))}}}
    with pytest.raises(VariablesError) as error:
        layer.flax_variables = part
    assert error.value.problems == {
        "params/head/kernel": "expected float32(3, 2), got shape (2, 3)"
    }
    write_variables(part, tmp_path / "w.msgpack")
    with pytest.raises(VariablesError) as error:
        read_variables(tmp_path / "w.msgpack", like=layer, path="**/head/**")
    assert error.value.problems == {
        "params/head/kernel": "expected float32(3, 2), got shape (2, 3)"
    }
    assert str(error.value).endswith("To read the others alone, list these weights in `skip`.")
    for path, value in data(layer).items():
        np.testing.assert_array_equal(value, before[path])
    layer.flax_variables = {"params": {"head": {"bias": jnp.ones(2)}}}
    assert {
        path for path, value in data(layer).items() if not np.array_equal(value, before[path])
    } == {"params/head/bias"}
