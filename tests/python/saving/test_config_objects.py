"""Objects in which other libraries keep settings, in the fields of modules."""

import argparse
import collections
import collections.abc
import dataclasses
import importlib
import importlib.util
import json
import sys
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from kerasflax import ConfigError
from kerasflax.saving._from_json import from_config
from kerasflax.saving._to_json import to_config

# Packages with classes of the same names and the same forms as those of the real packages.
PRETRAINED = """
import json
class PretrainedConfig:
    model_type = "base"
    def __init__(self, **values):
        self.transformers_version = values.pop("transformers_version", None)
        for name, value in values.items():
            setattr(self, name, value)
    def to_dict(self):
        parts = {name: getattr(value, "to_dict", lambda value=value: value)()
                 for name, value in vars(self).items()}
        return {**parts, "model_type": self.model_type, "transformers_version": "4.0"}
    @classmethod
    def from_dict(cls, values):
        made = cls(**values)
        json.dumps(made.to_dict())
        return made
    def __eq__(self, other):
        return type(self) is type(other) and vars(self) == vars(other)
class BertConfig(PretrainedConfig):
    model_type = "bert"
    def __init__(self, width=3, labels=None, part=None, **values):
        super().__init__(**values)
        self.width = width
        self.id2label = {int(key): label for key, label in (labels or {}).items()}
        if "id2label" in values:
            self.id2label = {int(key): label for key, label in values["id2label"].items()}
        self.part = BertConfig(**part) if isinstance(part, dict) else part
class EncoderDecoderConfig(PretrainedConfig):
    def __init__(self, **values):
        parts = {name: values.pop(name) for name in ("encoder", "decoder")}
        super().__init__(**values)
        for name, part in parts.items():
            {"base": PretrainedConfig, "bert": BertConfig}[part.pop("model_type")]
            setattr(self, name, BertConfig(**part))
"""
CONFIG_DICT = """
class ConfigDict:
    def __init__(self, values=None):
        self.is_locked = getattr(values, "is_locked", False)
        values = values.to_dict() if isinstance(values, ConfigDict) else values
        self.values = {key: type(self)(value) if isinstance(value, dict) else value
                       for key, value in dict(values or {}).items()}
    def lock(self):
        self.is_locked = True
        return self
    def __getattr__(self, name):
        if name == "values":
            raise AttributeError
        return self.values[name]
    def __getitem__(self, name):
        return self.values[name]
    def to_dict(self):
        return {key: value.to_dict() if isinstance(value, ConfigDict) else value
                for key, value in self.values.items()}
    def __eq__(self, other):
        return (type(self) is type(other) and self.values == other.values
                and self.is_locked == other.is_locked)
class FrozenConfigDict(ConfigDict):
    def as_configdict(self):
        return ConfigDict(self.to_dict())
"""
FROZEN_DICT = """
import collections
import collections.abc
class FrozenDict(collections.OrderedDict):
    pass
"""
PACKAGES = {
    "transformers.configuration_utils": PRETRAINED,
    "ml_collections.config_dict.config_dict": CONFIG_DICT,
    "diffusers.configuration_utils": FROZEN_DICT,
}


class Net(nn.Module):
    config: Any

    @nn.compact
    def __call__(self, inputs):
        config = self.config
        return nn.Dense(
            config["width"] if isinstance(config, collections.abc.Mapping) else config.width
        )(inputs)


class Declared(nn.Module):
    config: dict[str, Any]


@pytest.fixture
def package(monkeypatch):
    """Return a function that gives a package's module: the real one if it is installed."""

    def load(name):
        try:
            return importlib.import_module(name)
        except ImportError:
            made = types.ModuleType(name)
            # The code below is this file's own.
            exec(PACKAGES[name], made.__dict__)
            monkeypatch.setitem(sys.modules, name, made)
            return made

    return load


def again(value):
    return from_config(json.loads(json.dumps(to_config(value, "net"))), "net")


def objects(package):
    """Yield objects of each class of the table."""
    yield types.SimpleNamespace(width=3, more=[1, (2,)])
    yield argparse.Namespace(width=3, function=nn.relu)
    yield collections.OrderedDict(width=3, b=1, a=2)
    config_dict = package("ml_collections.config_dict.config_dict")
    values = {"width": 3, "part": {"act": nn.relu, "dtype": jnp.float32}, "sizes": [1, 2]}
    yield config_dict.ConfigDict(values)
    yield config_dict.ConfigDict(values).lock()
    yield config_dict.FrozenConfigDict(values | {"pair": (1, 2)})
    yield config_dict.FrozenConfigDict(config_dict.ConfigDict(values).lock())
    yield package("diffusers.configuration_utils").FrozenDict({"width": 3, "b": (1, 2)})


def test_an_object_of_each_class_is_created_again(package):
    x = np.ones((2, 4), np.float32)
    for value in objects(package):
        module = Net(value)
        loaded = again(module)
        assert type(loaded.config) is type(value)
        assert loaded.config == value
        key = jax.random.key(0)
        np.testing.assert_array_equal(
            loaded.init_with_output(key, x)[0], module.init_with_output(key, x)[0]
        )


def pretrained(package):
    """The module with the config classes of `transformers`, or of the package above."""
    base = package("transformers.configuration_utils")
    return base if hasattr(base, "BertConfig") else importlib.import_module("transformers")


def test_a_pretrained_config_is_created_again_with_its_parts(package):
    transformers = pretrained(package)
    if hasattr(transformers, "CLIPConfig"):
        bert = transformers.BertConfig(hidden_size=16, num_labels=1000)
        configs = [
            transformers.CLIPConfig(),
            transformers.T5Config(d_model=8),
            transformers.ResNetConfig(depths=[1, 2]),
            transformers.EncoderDecoderConfig.from_encoder_decoder_configs(bert, bert),
        ]
    else:
        bert = transformers.BertConfig(2, dict.fromkeys(range(1000), "x"), extra=[1])
        part = dict(bert.to_dict())
        configs = [
            transformers.BertConfig(2, {1: "x"}, transformers.BertConfig(5), extra=[1]),
            transformers.EncoderDecoderConfig(encoder=part, decoder=dict(part)),
        ]
    bert.sizes = (1, 2)
    # With PyTorch, it is PyTorch's dtype.
    if importlib.util.find_spec("torch") is None:
        bert.dtype = "bfloat16"
    for config in [bert, *configs]:
        loaded = again(Net(config)).config
        assert type(loaded) is type(config)
        assert loaded.to_dict() == config.to_dict()
        assert hasattr(config, "encoder") or loaded == config


def test_a_pretrained_config_with_a_value_that_its_class_cannot_write_is_an_error(package):
    config = pretrained(package).BertConfig()
    config.kind = jnp.bfloat16
    with pytest.raises(ConfigError, match=r"Net\.config, of class .*BertConfig, cannot be saved"):
        to_config(Net(config), "Net")


def test_a_pretrained_config_of_the_users_may_be_a_dataclass(package, monkeypatch):
    kind = pretrained(package).BertConfig

    class Mine(kind):
        def __init__(self, depth=2, **values):
            super().__init__(**values)
            self.depth = depth

    Mine.__qualname__ = "Mine"
    # The newest `transformers` makes a dataclass of each config class.
    if not dataclasses.is_dataclass(Mine):
        Mine = dataclasses.dataclass(init=False, eq=False)(Mine)
    monkeypatch.setitem(globals(), "Mine", Mine)
    assert again(Net(Mine(depth=3))).config == Mine(depth=3)
    node = {"object": f"{__name__}:Mine", "fields": {}}
    with pytest.raises(ConfigError):
        from_config(node, "it")


def test_a_dtype_of_a_pretrained_config_must_be_a_dtype(package):
    package("transformers.configuration_utils")
    name = "transformers.configuration_utils:PretrainedConfig"
    for values in ({"dtype": "load"}, {"part": {"torch_dtype": "hub"}}, {"a": [{"dtype": "x"}]}):
        node = {"config_object": name, "values": {"dict": json.loads(json.dumps(values))}}
        described = json.loads(json.dumps(to_config(values, "values")))
        with pytest.raises(ConfigError, match="not a numeric dtype"):
            from_config(node | {"values": described}, "it")


def test_a_mapping_matches_a_field_declared_as_a_dict(package):
    for value in objects(package):
        if not isinstance(value, (types.SimpleNamespace, argparse.Namespace)):
            assert again(Declared(value)).config == value


@pytest.mark.parametrize(
    "node",
    [
        {"config_object": "os:system", "values": {"dict": {}}},
        {"config_object": "collections:Counter", "values": {"dict": {}}},
        {"config_object": "types:SimpleNamespace", "values": [1]},
        {"config_object": "types:SimpleNamespace", "values": {"dict": [[1, 2]]}},
        {"config_object": "types:SimpleNamespace"},
        {"config_object": "types:FunctionType", "values": {"dict": {}}},
        {"config_object": "flax.linen:Dense", "values": {"dict": {"features": 1}}},
        {"config_object": "argparse:Namespace", "values": {"dict": {"__class__": 1}}},
        {"config_object": "notapackage.config:Config", "values": {"dict": {}}},
        {"config_object": 3, "values": {"dict": {}}},
        {"config_object": "types:SimpleNamespace", "values": {"dict": {}}, "locked": True},
        {"config_object": "types:SimpleNamespace", "values": {"dict": {}}, "locked": 1},
    ],
)
def test_a_file_may_name_only_classes_of_the_table(node):
    with pytest.raises(ConfigError):
        from_config(node, "it")


def test_a_subclass_of_a_dict_of_settings_is_not_created():
    class Settings(collections.OrderedDict):
        pass

    globals()["Settings"] = Settings
    Settings.__qualname__ = "Settings"
    with pytest.raises(ConfigError, match=r"Net\.config cannot be saved.*Settings"):
        to_config(Net(Settings(width=3)), "Net")
    node = {"config_object": f"{__name__}:Settings", "values": {"dict": {}}}
    with pytest.raises(ConfigError, match="of another kind"):
        from_config(node, "it")
