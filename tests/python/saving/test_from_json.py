import base64
import contextlib
import importlib
import json
import marshal
import os
import pickle
import sys
import time
import zipfile
from typing import Any

import jax
import keras
import numpy as np
import pytest
from flax import linen as nn
from modules import MLP
from samples import SETTINGS_PACKAGE, Scale, Sum, Two, again, model_of

import kerasflax
from kerasflax import ConfigError, FlaxLayer, ModuleError
from kerasflax.bridge._forms import Form, split
from kerasflax.saving._from_json import from_config

# Hostile descriptions -----------------------------------------------------------------------------

HOSTILE = {
    "no description": None,
    "a number": 3,
    "an unknown key": {"python/object/apply": "os.system"},
    "two descriptions in one": {"object": "flax.linen:Dense", "function": "jax.nn:relu"},
    "a module of the system": {"object": "os:system", "fields": {}},
    "a class of the system": {"object": "subprocess:Popen", "fields": {"args": ["true"]}},
    "a package not imported": {"object": "antigravity:Net", "fields": {}},
    "a submodule of one": {"object": "test.support:Net", "fields": {}},
    "a Linen class as a maker of NNX modules": {
        "constructor": "flax.linen:Dense",
        "arguments": [1],
    },
    "a bridge to Linen as a maker of NNX modules": {
        "constructor": "flax.nnx.bridge.wrappers:ToLinen",
        "arguments": [1],
    },
    "a path to private attributes": {
        "object": "flax.linen:Dense.__init__.__globals__",
        "fields": {},
    },
    "a function as a class": {"object": "flax.linen:vmap", "fields": {}},
    "no such field": {"object": "flax.linen:Dense", "fields": {"features": 1, "evil": 2}},
    "a list of fields": {"object": "flax.linen:Dense", "fields": [1]},
    "a number as a name": {"object": 3, "fields": {}},
    "a function that reads": {"function": "jax.numpy:load"},
    "a function that writes": {"function": "jax.numpy:save"},
    "a function that calls a function": {"function": "jax.lax:map"},
    "a transformation": {"function": "flax.linen:jit"},
    "another namespace": {"function": "builtins:eval"},
    "a namespace below a listed one": {"function": "jax.numpy.linalg:inv"},
    "another factory": {"initializer": "builtins:open", "arguments": {"file": "x"}},
    "a partial of nothing": {"partial": {"tuple": []}},
    "a partial of open": {"partial": {"function": "builtins:open"}, "arguments": ["x"]},
    "a type": {"type": "builtins:type"},
    "an enum": {"enum": "flax.linen:Dense", "member": "x"},
    "an array of text": {"array": ["a"], "shape": [1], "dtype": "str"},
    "an array of objects": {"array": [1], "shape": [1], "dtype": "object"},
    "an array that is too large": {"array": [], "shape": [10**12], "dtype": "float32"},
    "an array whose sizes overflow": {
        "array": [],
        "shape": [2**62, 0],
        "dtype": "float32",
        "of": "jax",
    },
    "a function that takes a function": {"function": "jax.numpy:mask_indices"},
    "a wrong number": {"float": "__import__('os')"},
    "a set of lists": {"set": [[1]]},
    "another package's class, through Flax": {
        "object": "flax.training.checkpoints:ocp.CheckpointManagerOptions"
    },
    "another package's class, through a package": {
        "object": "kerasflax.saving._to_json:np.ndarray"
    },
    "a parent": {
        "object": "flax.linen:Dense",
        "fields": {"parent": {"object": "flax.linen:Dense", "fields": {"features": 1}}},
    },
    "a shaped dtype": {"dtype": "(1000000000,)f4"},
    "a dtype that is code": {"dtype": "(1,"},
    "an accessor": {
        "object": "flax.nnx.proxy_caller:DelayedAccessor",
        "fields": {"actions": {"tuple": []}},
    },
    "a dataclass of Flax": {"object": "flax.nnx.proxy_caller:GetAttr", "fields": {"name": "x"}},
    "a sequence of classes": {
        "object": "flax.linen:Sequential",
        "fields": {"layers": [{"type": "flax.linen:Dense"}]},
    },
    "a sequence of data": {"object": "flax.linen:Sequential", "fields": {"layers": ["x"]}},
    "a module as a class": {
        "object": "flax.linen:Dense",
        "fields": {
            "features": 1,
            "dot_general_cls": {"object": "flax.linen:Dense", "fields": {"features": 1}},
        },
    },
    "a partial of a module": {
        "partial": {"object": "flax.linen:Dense", "fields": {"features": 1}},
        "keywords": {"rngs": 1},
    },
    "a partial of a partial": {"partial": {"partial": {"function": "jax.nn:relu"}}},
    "a partial of a wrapper": {
        "partial": {"type": "flax.nnx.bridge.wrappers:ToLinen"},
        "keywords": {"skip_rng": True},
    },
    "a partial of a class, with a wrong field": {
        "partial": {"type": "flax.linen:Dense"},
        "keywords": {"evil": 1},
    },
    "a partial of a function, with a function": {
        "partial": {"function": "flax.linen:dot_product_attention"},
        "keywords": {"einsum": {"function": "jax.numpy:append"}},
    },
    "a set of modules": {"set": [{"object": "flax.linen:Dense", "fields": {"features": 1}}]},
    "a dict with modules as keys": {
        "dict": [[{"object": "flax.linen:Dense", "fields": {"features": 1}}, 1]]
    },
    "a private function": {"function": "jax.numpy:_einsum"},
    "a class of NumPy that is not a number type": {"type": "numpy:memmap"},
    "a lazy module of NumPy": {"type": "numpy:matlib"},
    "an unregistered name": {"registered": "nobody>thing"},
}
DEEP: Any = 1
for _ in range(500):
    DEEP = [DEEP]
HOSTILE["deeply nested"] = {"tuple": DEEP}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_description_raises_an_error_and_imports_nothing(name):
    config = FlaxLayer(nn.Dense(1)).get_config() | {"module": HOSTILE[name]}
    # A file may name Flax's own modules, and NNX imports further packages.
    from_config({"constructor": "flax.nnx:Linear", "arguments": [1, 1]}, "it")
    before = set(sys.modules)
    with pytest.raises(
        (ConfigError, TypeError),
        match=r"description|described|may not name|registered|not imported|does not have"
        r"|Flax module|module class|initializer factory",
    ) as caught:
        FlaxLayer.from_config(config)
    assert type(caught.value).__module__ == "kerasflax"
    assert {name.partition(".")[0] for name in set(sys.modules) - before} <= {"jax", "flax"}


def damaged(path, change):
    """Change the description of the layer in a file, in place."""
    with zipfile.ZipFile(path) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    config = json.loads(parts["config.json"])
    change(config["config"]["layers"][-1])
    with zipfile.ZipFile(path, "w") as file:
        for name, data in parts.items():
            file.writestr(name, json.dumps(config) if name == "config.json" else data)


def walk_to_exec(mark):
    """Return two steps that run a command: look up attributes by name until `exec`, and call it."""
    accessor = "flax.nnx.proxy_caller"
    actions = [
        *(
            {"object": f"{accessor}:GetAttr", "fields": {"name": name}}
            for name in ("__wrapped__", "__globals__")
        ),
        *(
            {"object": f"{accessor}:GetItem", "fields": {"key": key}}
            for key in ("__builtins__", "exec")
        ),
    ]
    return {
        "partial": {
            "object": f"{accessor}:DelayedAccessor",
            "fields": {"actions": {"tuple": actions}},
        },
        "arguments": [{"function": "jax.numpy:append"}],
    }, {
        "partial": {"type": "flax.nnx.bridge.wrappers:ToLinen"},
        "keywords": {
            "args": {"tuple": [f"__import__('os').mkdir({str(mark)!r})"]},
            "skip_rng": True,
        },
    }


def dense(**fields):
    return {"object": "flax.linen:Dense", "fields": {"features": 3, **fields}}


def sequence(*layers):
    return {"object": "flax.linen:Sequential", "fields": {"layers": list(layers)}}


def through_dot_general(mark):
    return dense(dot_general_cls=sequence(*walk_to_exec(mark)))


class Payload:
    """Creates a folder when its pickle is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def payload(path):
    return base64.b64encode(pickle.dumps(Payload(str(path)))).decode()


def lambda_that_makes(path):
    code = marshal.dumps(compile(f"__import__('os').mkdir({str(path)!r})", "file", "eval"))
    value = base64.b64encode(code).decode()
    return {
        "class_name": "__lambda__",
        "config": {"value": value},
        "registered_name": "kerasflax>FlaxLayer",
    }


# Ways in which foreign files have run code in Keras.
ATTACKS = {
    # CVE-2025-1550: names of modules and functions in config.json.
    "a function of the system": lambda layer, mark: layer["config"].update(
        module={"object": "os:mkdir", "fields": {"path": str(mark)}}
    ),
    "a partial of a system function": lambda layer, mark: layer["config"].update(
        module={"partial": {"function": "os:mkdir"}, "arguments": [str(mark)]}
    ),
    "a registered function": lambda layer, mark: layer["config"].update(
        module={"registered": "tests>make_folder", "config": {"dict": {"path": str(mark)}}}
    ),
    "a registered function as a method": lambda layer, mark: layer["config"].update(
        method={"registered": "tests>make_folder", "config": {"dict": {"path": str(mark)}}}
    ),
    "an object in Keras's format": lambda layer, mark: layer["config"].update(
        module={
            "module": "os",
            "class_name": "mkdir",
            "config": {"path": str(mark)},
            "registered_name": "mkdir",
        }
    ),
    "a lambda in Keras's format": lambda layer, mark: layer["config"].update(
        method={"class_name": "__lambda__", "config": {"value": payload(mark)}}
    ),
    # With a registered name, Keras deserializes a lambda where its caller expects a regularizer.
    "a lambda as a regularizer": lambda layer, mark: layer["config"].update(
        regularizers={"**": lambda_that_makes(mark)}
    ),
    "a lambda as a constraint": lambda layer, mark: layer["config"].update(
        constraints={"**": lambda_that_makes(mark)}
    ),
    "a lambda as a policy": lambda layer, mark: layer["config"].update(
        dtype=lambda_that_makes(mark)
    ),
    "the layer's own class": lambda layer, mark: layer.update(
        module="os", class_name="mkdir", registered_name="mkdir"
    ),
    # CVE-2025-49655: a pickle instead of a module.
    "a pickle": lambda layer, mark: layer["config"].update(module=payload(mark)),
    "a pickle as bytes": lambda layer, mark: layer["config"].update(
        module={"class_name": "__bytes__", "config": {"value": payload(mark)}}
    ),
    # CVE-2026-1462: a path in the config to a file that is loaded and run.
    "a path": lambda layer, mark: layer["config"].update(filepath=str(mark)),
    "variables": lambda layer, mark: layer["config"].update(variables={"params": payload(mark)}),
    "attributes by name, to exec": lambda layer, mark: layer["config"].update(
        module=through_dot_general(mark)
    ),
    "the same in a sequence": lambda layer, mark: layer["config"].update(
        module=sequence(*walk_to_exec(mark))
    ),
    "the same in NNX": lambda layer, mark: layer["config"].update(
        module={"constructor": "flax.nnx:Sequential", "arguments": [*walk_to_exec(mark)]}
    ),
    "the same in an initializer": lambda layer, mark: layer["config"].update(
        module=dense(kernel_init=sequence(*walk_to_exec(mark)))
    ),
    "the same in metadata": lambda layer, mark: layer["config"].update(
        module={
            "constructor": "flax.nnx:Linear",
            "arguments": [1, 3],
            "keywords": {"kernel_metadata": {"dict": {"on_get_value": walk_to_exec(mark)[0]}}},
        }
    ),
    "the same in a regularizer": lambda layer, mark: layer["config"].update(
        activity_regularizer=flax_layer(through_dot_general(mark))
    ),
    "the same in regularizers": lambda layer, mark: layer["config"].update(
        regularizers={"**": flax_layer(through_dot_general(mark))}
    ),
    "the same in constraints": lambda layer, mark: layer["config"].update(
        constraints={"**": flax_layer(through_dot_general(mark))}
    ),
    "the same as a dtype": lambda layer, mark: layer["config"].update(
        dtype=flax_layer(through_dot_general(mark))
    ),
    "the same in a registered layer": lambda layer, mark: layer["config"].update(
        module={
            "registered": "kerasflax>FlaxLayer",
            "config": {"dict": {"module": {"dict": through_dot_general(mark)}}},
        }
    ),
    "a class of the bridge": lambda layer, mark: layer["config"].update(
        module={
            "object": "flax.nnx.bridge.wrappers:Functional",
            "fields": {
                "module_type": {"registered": "tests>make_folder"},
                "graphdef": None,
                "args": [str(mark)],
            },
        }
    ),
}


@pytest.mark.parametrize("safe_mode", [True, False])
@pytest.mark.parametrize("name", ATTACKS)
def test_no_file_runs_code(name, safe_mode, tmp_path):
    path, mark = tmp_path / "m.keras", tmp_path / "mark"
    model_of(MLP()).save(path)
    damaged(path, lambda layer: ATTACKS[name](layer, mark))
    with pytest.raises((ConfigError, ModuleError, TypeError, ValueError)):
        keras.models.load_model(path, safe_mode=safe_mode)
    assert not mark.exists()


# Checks of each part ------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [None, 0, 2, "1", [1], True, 1.0])
def test_any_other_format_version_is_refused(version):
    config = FlaxLayer(nn.Dense(1)).get_config() | {"format_version": version}
    with pytest.raises(ConfigError, match="version"):
        FlaxLayer.from_config(config)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("frozen", {"params": 1}),
        ("frozen", [1]),
        ("given", [1]),
        ("given", {"a": [[-1], "x"]}),
        ("given", {"a": [[-1], "float32"]}),
        ("given", {"a": [[2**62, 0], "float32"]}),
        ("given", {"a": 3}),
        ("method", {"a": 1}),
        ("method", {"registered": "tests>Scale"}),
        ("autocast", "x"),
        ("name", 5),
        ("trainable", "x"),
        ("regularizer", {"**": {"class_name": "L3", "config": {}}}),
        ("constraint", {"**": {"class_name": "NonNeg", "config": 3}}),
        ("variable_dtype", {"class_name": "TFSMLayer", "config": {}}),
    ],
)
def test_every_part_of_a_config_is_checked(key, value):
    part = {
        "regularizer": "regularizers",
        "constraint": "constraints",
        "variable_dtype": "dtype",
    }.get(key, key)
    with pytest.raises(ConfigError, match=key):
        FlaxLayer.from_config(FlaxLayer(nn.Dense(1)).get_config() | {part: value})


@pytest.mark.parametrize(
    "config",
    [
        {"input_shape": [1]},
        {"input_shape": [-3], "input_dtype": "int32"},
        {"input_dtype": ["int8"]},
    ],
)
def test_a_build_config_is_checked(config):
    with pytest.raises(ConfigError, match="The input"):
        FlaxLayer(nn.Dense(1)).build_from_config(config)


def test_a_field_must_match_its_declared_type(tmp_path, monkeypatch):
    (tmp_path / "settingspackage2.py").write_text(SETTINGS_PACKAGE)
    monkeypatch.syspath_prepend(tmp_path)
    package = importlib.import_module("settingspackage2")
    plain = {"object": "settingspackage2:Plain", "fields": {"width": 3}}

    def net(**fields):
        return {"object": "settingspackage2:Net", "fields": fields}

    assert from_config(net(plain=[plain]), "it") == package.Net([package.Plain(3)])
    assert from_config(net(unknown=[plain]), "it").unknown == [package.Plain(3)]
    for wrong in (
        net(plain=["text"]),
        net(plain=[{"function": "jax.nn:relu"}]),
        net(plain=[{"object": "settingspackage2:Plain", "fields": {"width": "text"}}]),
        net(plain=[{"object": "settingspackage2:Plain", "fields": {"width": net()}}]),
        net(node={"dict": {"a": plain}}),
        net(level={"enum": "settingspackage2:Kind", "member": "WIDE"}),
        {"object": "flax.linen:Dense", "fields": {"features": {"function": "jax.nn:relu"}}},
        {"object": "flax.linen:Dense", "fields": {"features": 1, "use_bias": "yes"}},
        {"object": "flax.linen:Dense", "fields": {"features": 2.5}},
        {
            "object": "flax.linen:RNN",
            "fields": {"cell": {"object": "flax.linen:Dense", "fields": {"features": 1}}},
        },
        {"constructor": "flax.nnx:Linear", "arguments": [2], "keywords": {"out_features": "x"}},
    ):
        with pytest.raises(
            ConfigError,
            match=r"cannot be created as described: .*declared type|is not (data|a module)",
        ):
            from_config(wrong, "it")
    # Flax accepts these too.
    for right in (
        {"features": 2.0},
        {"features": {"number": 2, "dtype": "int32"}},
        {"features": 2, "dtype": "float32"},
    ):
        from_config({"object": "flax.linen:Dense", "fields": right}, "it")


def test_nothing_is_created_if_any_part_of_a_description_is_invalid():
    made = []

    class Recorder(nn.Module):
        value: Any = None

        def __post_init__(self):
            made.append("module")
            super().__post_init__()

    class Configured:
        def __init__(self, value=None):
            made.append("registered")

        def get_config(self):
            return {}

        @classmethod
        def from_config(cls, config):
            made.append("registered")
            return cls()

        def __hash__(self):
            made.append("hash")
            return 0

    keras.saving.register_keras_serializable("tests", "Configured")(Configured)
    right = [
        {"object": f"{__name__}:{Recorder.__qualname__}", "fields": {}},
        {"registered": "tests>Configured", "config": {"dict": {}}},
    ]
    from_config(right, "it")
    assert "module" in made
    assert "registered" in made
    made.clear()
    for wrong in (
        {"function": "os:system"},
        {"set": [right[1]]},
        {"dict": [[right[1], 1]]},
        *({"partial": node} for node in right),
    ):
        with pytest.raises(ConfigError):
            from_config([*right, wrong], "it")
    config = FlaxLayer(nn.Dense(1)).get_config() | {"module": right[0]}
    for key, value in (
        ("activity_regularizer", {"class_name": "Evil"}),
        ("constraints", {"**": {"class_name": "Evil"}}),
        ("given", 3),
        ("frozen", 3),
        ("dtype", 3),
        ("unknown", 3),
    ):
        with pytest.raises(ConfigError):
            FlaxLayer.from_config(config | {key: value})
    assert made == []


WRAPPED = {
    "a function": {"function": "jax.numpy:append"},
    "a module": {"object": "flax.linen:Dense", "fields": {"features": 1}},
    "a partial": {"partial": {"function": "jax.numpy:append"}},
    "another class": {"type": "flax.nnx.bridge.wrappers:Functional"},
}


@pytest.mark.parametrize("name", WRAPPED)
def test_a_wrapper_of_nnx_accepts_only_listed_modules(name):
    wrapper = "flax.nnx.bridge.wrappers:ToLinen"
    with pytest.raises(ConfigError):
        from_config(
            {"object": wrapper, "fields": {"nnx_class": WRAPPED[name], "skip_rng": True}}, "it"
        )
    right = {"nnx_class": {"type": "flax.nnx:Linear"}, "args": {"tuple": [4, 3]}}
    assert from_config({"object": wrapper, "fields": right}, "it").nnx_class.__name__ == "Linear"
    for wrong in (
        {"args": {"tuple": [4, "x"]}},
        {"kwargs": {"dict": {"dot_general": {"type": "flax.linen:Dense"}}}},
    ):
        with pytest.raises(ConfigError):
            from_config({"object": wrapper, "fields": right | wrong}, "it")


def test_a_wrapper_of_an_nnx_module_survives_saving():
    bridge = importlib.import_module("flax.nnx").bridge
    module = bridge.ToLinen(importlib.import_module("flax.nnx").Linear, args=(4, 3))
    x = np.ones((2, 4), np.float32)
    expected = module.init_with_output(jax.random.key(0), x)[0]
    np.testing.assert_array_equal(again(module).init_with_output(jax.random.key(0), x)[0], expected)


METHODS = [
    "__init__",
    "__reduce__",
    "__class__",
    "__setattr__",
    "apply",
    "init",
    "tabulate",
    "clone",
    "features",
    "nope",
    "bind",
]


@pytest.mark.parametrize("method", METHODS)
def test_a_method_of_flaxs_own_base_classes_is_refused(method):
    config = FlaxLayer(nn.Dense(1)).get_config() | {"method": method}
    if method == "features":
        with pytest.raises(kerasflax.KerasFlaxError):
            FlaxLayer.from_config(config)
    else:
        with pytest.raises(ConfigError, match="no method"):
            FlaxLayer.from_config(config)


class Printed(nn.Module):
    features: int = 1

    def __repr__(self):
        raise AssertionError("printed with the file's values")


def test_no_error_prints_an_object_created_from_the_file():
    node = {"constructor": f"{__name__}:Printed", "keywords": {"features": 12345}}
    with pytest.raises(ConfigError, match="is not an NNX module class"):
        FlaxLayer.from_config(FlaxLayer(nn.Dense(1)).get_config() | {"module": node})


@pytest.mark.parametrize(
    "policy",
    [
        "int8_from_float32",
        "int4/32_from_float32",
        "float8_from_float32",
        "gptq/4/128_from_float32",
        "mixed_",
        "",
        "x" * 99,
    ],
)
def test_an_unlisted_dtype_policy_is_refused(policy):
    with pytest.raises(ConfigError, match="which is not a dtype policy of a Flax layer"):
        FlaxLayer.from_config(FlaxLayer(nn.Dense(1)).get_config() | {"dtype": policy})


@pytest.mark.parametrize(
    "wrong",
    [
        *({"positions": positions} for positions in (None, [0], [0, 0], [0, "1"], [1, 2])),
        *({"model": {"tuple": leaves}} for leaves in ([0, "a"], [0, 0.5], [0, {"set": [1]}])),
    ],
)
def test_an_invalid_form_is_refused(wrong):
    config = split(Two(1, 2))[0].get_config()
    with pytest.raises(ConfigError, match="form"):
        Form.from_config(config | wrong)


def test_a_hostile_form_is_refused():
    layer = FlaxLayer(Sum())
    inputs = keras.Input((4,)), keras.Input((3,))
    for form in ("text", Scale(1.0), nn.Dense(1), {"model": 0}):
        with pytest.raises(ConfigError, match="form"):
            layer(inputs, form=form)
    for model in (
        {"object": "flax.linen:Dense", "fields": {"features": 0}},
        {"constructor": "flax.nnx:Linear"},
        {"custom": "a:b"},
    ):
        with pytest.raises(ConfigError):
            Form.from_config({"model": [model, 0], "positions": [0]})


@pytest.mark.parametrize(
    "model",
    [
        {"dict": [[1, 0], ["a", 1]]},
        {"set": [0, 1]},
        {"tuple": [0, 0.5]},
        3,
        [0, {"dict": {"a": "b"}}],
    ],
)
def test_a_form_of_a_tree_that_jax_cannot_split_is_refused(model):
    for config in (
        {"model": model, "positions": [0, 1]},
        [model],
        "text",
        {"model": model},
        {"model": [0, 1], "positions": ["a", 1]},
    ):
        with pytest.raises(ConfigError, match="form"):
            Form.from_config(config)


# Keras's objects ----------------------------------------------------------------------------------


def keras_object(name, config, module="keras.regularizers", registered=None):
    return {"module": module, "class_name": name, "config": config, "registered_name": registered}


class Doubled(keras.regularizers.Regularizer):
    def __call__(self, x):
        return 2 * keras.ops.sum(x)

    def get_config(self):
        return {}


def test_keras_objects_and_custom_objects_survive_saving():
    x = np.ones((2, 3), np.float32)
    arguments = {
        "activity_regularizer": keras.regularizers.L1L2(0.25, 0.5),
        "regularizers": {
            "**/kernel": keras.regularizers.OrthogonalRegularizer(0.1),
            "bias": keras.regularizers.L1(0.5),
        },
        "constraints": {
            "**/kernel": keras.constraints.MinMaxNorm(0.5, 1.5),
            "bias": keras.constraints.UnitNorm(axis=[0]),
        },
        "dtype": "mixed_bfloat16",
    }
    arguments["regularizers"] = {
        f"params/{key}": value for key, value in arguments["regularizers"].items()
    }
    arguments["constraints"] = {
        f"params/{key}": value for key, value in arguments["constraints"].items()
    }
    layer = FlaxLayer(nn.Dense(2), **arguments)
    config = json.loads(json.dumps(layer.get_config()))
    loaded = FlaxLayer.from_config(config)
    assert json.loads(json.dumps(loaded.get_config())) == config
    assert loaded.dtype_policy.name == "mixed_bfloat16"
    plain = FlaxLayer.from_config(
        FlaxLayer(nn.Dense(2), activity_regularizer="l2").get_config()
        | {"activity_regularizer": "l1"}
    )
    plain(x)
    assert len(plain.losses) == 1
    own = json.loads(
        json.dumps(FlaxLayer(nn.Dense(2), activity_regularizer=Doubled()).get_config())
    )
    with pytest.raises(ConfigError, match=r"custom_objects=\{'Doubled': Doubled\}"):
        FlaxLayer.from_config(own)
    with keras.saving.custom_object_scope({"Doubled": Doubled}):
        given = FlaxLayer.from_config(own)
    outputs = given(x)
    # Some versions of Keras divide the loss by the number of examples.
    plain = keras.layers.Identity(activity_regularizer=Doubled())
    plain(outputs)
    np.testing.assert_allclose(given.losses[0], plain.losses[0], rtol=1e-6)


def flax_layer(module):
    config = FlaxLayer(nn.Dense(1)).get_config() | {"module": module}
    return keras_object("FlaxLayer", config, "kerasflax._layer", "kerasflax>FlaxLayer")


LAYERS = {
    "a layer of kerasflax": flax_layer({"object": "flax.linen:Dense", "fields": {"features": 1}}),
    "a form": keras_object(
        "Form", {"model": 0, "positions": [0]}, "kerasflax.bridge._forms", "kerasflax>Form"
    ),
    "a layer of Keras": keras_object("Dense", {"units": 1}, "keras.layers"),
    "a lambda layer": keras_object("Lambda", {"function": "x"}, "keras.layers"),
    "a saved model": keras_object("TFSMLayer", {"filepath": "x"}, "keras.layers"),
    "a registered object": keras_object("Scale", {"by": 1.0}, __name__, "tests>Scale"),
    "a class as a function": keras_object("function", "tests>Scale", "builtins", "tests>Scale"),
    "a function of the system": keras_object("function", "system", "os", "system"),
    "a nested object": keras_object("L2", {"l2": keras_object("Lambda", {}, "keras.layers")}),
    "unknown parts": keras_object("L2", {}) | {"build_config": {"input_shape": [1]}},
    "no class": {"class_name": ["L2"], "config": {}},
    "another argument": keras_object("L2", {"filepath": "x"}),
    "a number": 3,
    "a text": "os.system",
}


@pytest.mark.parametrize("place", ["activity_regularizer", "regularizers", "constraints", "dtype"])
@pytest.mark.parametrize("name", LAYERS)
def test_only_a_regularizer_constraint_or_policy_is_created_where_one_belongs(name, place):
    value = {"**": LAYERS[name]} if place in ("regularizers", "constraints") else LAYERS[name]
    with pytest.raises(ConfigError):
        FlaxLayer.from_config(FlaxLayer(nn.Dense(1)).get_config() | {place: value})


def test_the_number_and_length_of_patterns_in_a_file_are_limited():
    config = FlaxLayer(nn.Dense(1)).get_config()
    node = keras_object("L2", {"l2": 0.1})
    for patterns in ({f"**/{i}*": node for i in range(300)}, {"**/" * 10_000: node}):
        for key in ("regularizers", "constraints"):
            with pytest.raises(ConfigError, match="too many patterns, or too long"):
                FlaxLayer.from_config(config | {key: patterns})
    paths = {f"params/kernel{i}": node for i in range(1000)}
    assert len(FlaxLayer.from_config(config | {"regularizers": paths}).regularizers) == 1000


# Messages and costs -------------------------------------------------------------------------------


def test_errors_escape_terminal_control_characters():
    evil = "\x1b]0;x\x07\ud800\n"
    for node in (
        {"object": f"{evil}:{evil}"},
        {"object": "flax.linen:Dense", "fields": {evil: [{"function": evil}]}},
        {"custom": f"a:{evil}"},
        {"constructor": "flax.nnx:Linear", "keywords": {evil: {"dtype": evil}}},
        {"initializer": "jax.nn.initializers:normal", "arguments": {evil: 1}},
    ):
        with pytest.raises(ConfigError) as error:
            from_config(node, "it")
        assert not {"\x1b", "\ud800"} & set(str(error.value))


def test_a_config_that_is_not_a_dict_is_refused():
    for config in (None, [], "text", [["module", 1]]):
        with pytest.raises(ConfigError):
            FlaxLayer.from_config(config)
        with pytest.raises(ConfigError):
            FlaxLayer(nn.Dense(1)).build_from_config(config)


def test_many_modules_of_one_class_are_read_quickly():
    class Small(nn.Module):
        value: int = 0

    nodes = [
        {"object": f"{__name__}:{Small.__qualname__}", "fields": {"value": i}} for i in range(3000)
    ]
    begin = time.process_time()
    assert [module.value for module in from_config(nodes, "it")] == list(range(3000))
    assert time.process_time() - begin < 10


def test_an_error_is_short_even_if_the_file_holds_long_text():
    long = "x" * 10**6
    nodes = [
        *(
            {key: long}
            for key in (
                "object",
                "type",
                "function",
                "initializer",
                "constructor",
                "custom",
                "registered",
                "dtype",
            )
        ),
        {"object": f"{long}:{long}", "fields": {}},
        {"object": "flax.linen:Dense", "fields": {long: 1}},
        {"object": "flax.linen:Dense", "fields": {"features": long}},
        {"object": "flax.linen:Dense", "fields": {"features": [long] * 10}},
        {"enum": "jax.lax:Precision", "member": long},
        {"array": [1], "shape": [10**4000], "dtype": "float32"},
        {"array": [1] * 10**5, "shape": [3], "dtype": long},
        {long: 1},
        {"float": long},
        {"partial": {"function": "jax.nn:relu"}, "keywords": {"x": [[{"function": long}]]}},
        {"number": long, "dtype": "int8"},
    ]
    for node in nodes:
        with pytest.raises(ConfigError) as error:
            from_config(node, "it")
        assert len(str(error.value)) < 2000
    base = FlaxLayer(nn.Dense(1)).get_config()
    parts = [
        *(
            {key: long}
            for key in ("format_version", "method", "module", "given", "activity_regularizer")
        ),
        *(
            {key: {long: long}}
            for key in ("regularizers", "constraints", "given", "method", "dtype", "frozen")
        ),
        {long: 1},
        {"name": [long]},
        {"frozen": [[long]]},
    ]
    for part in parts:
        with pytest.raises(ConfigError) as error:
            FlaxLayer.from_config(base | part)
        assert len(str(error.value)) < 3000, part.keys()


def test_the_time_to_read_a_description_is_bounded():
    def seconds(node):
        begin = time.process_time()
        with contextlib.suppress(ConfigError):
            from_config(node, "it")
        return time.process_time() - begin

    deep = 1
    for _ in range(90):
        deep = {"tuple": [deep]}
    nested = {"dict": {}}
    for _ in range(90):
        nested = {"dict": {"k" * 60: nested}}
    # All of these numbers have the same hash.
    collisions = {"set": [i * (2**61 - 1) for i in range(50_000)]}
    tuples = {"set": [{"tuple": [7] * 60 + [i * (2**61 - 1)]} for i in range(4096)]}
    for node in (
        [deep] * 300,
        [nested] * 300,
        [{"array": [1] * 50_000, "shape": [50_000], "dtype": "int8"}],
        collisions,
        tuples,
    ):
        assert seconds(node) < 10


@pytest.mark.parametrize(
    ("given", "match"),
    [
        (
            {"params/kernel": [[7], "int4"]},
            "'params/kernel' has the dtype 'int4', which no Keras variable can have",
        ),
        ({"a/" * 300: [[7], "float32"]}, "it nests deeper than 256 levels"),
    ],
)
def test_specs_that_no_layer_can_have_are_refused(given, match):
    with pytest.raises(ConfigError, match=match):
        FlaxLayer.from_config(FlaxLayer(nn.Dense(1)).get_config() | {"given": given})
