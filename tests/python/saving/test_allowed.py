import dataclasses
import inspect
import json
import os
import subprocess
import sys

import hostile
import pytest

from kerasflax.saving import _allowed


@pytest.mark.parametrize("part", ["functions", "classes"])
def test_no_listed_object_calls_a_value_looks_up_an_attribute_or_touches_a_file(part):
    done = subprocess.run(
        [sys.executable, hostile.__file__, part],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["found"] == []
    if part == "functions":
        assert result["counts"]["functions"] > 500
    else:
        # Only a list of modules cannot be called.
        assert result["counts"]["not run"] == ["flax.nnx:List"]
        assert result["counts"]["accepted"] > 1000


def test_every_entry_is_an_object_of_flax_jax_numpy_or_python():
    for table in (
        _allowed.FUNCTIONS,
        _allowed.FACTORIES,
        _allowed.MODULES,
        _allowed.HOLDERS,
        _allowed.ENUMS,
    ):
        for name, value in _allowed.entries(table):
            namespace, _, attribute = name.partition(":")
            assert vars(sys.modules[namespace])[attribute] is value
            root = (getattr(value, "__module__", None) or type(value).__module__).partition(".")[0]
            assert root in ("flax", "jax", "builtins", "numpy"), name
    assert len(set(_allowed.NUMBER_TYPES["builtins"].split())) == 4


def test_every_field_of_flax_that_takes_a_function_has_a_role():
    for name, kind in _allowed.entries(_allowed.MODULES):
        if dataclasses.is_dataclass(kind):
            declared = {field: str(f.type) for field, f in kind.__dataclass_fields__.items()}
        else:
            declared = {
                key: str(p.annotation)
                for key, p in inspect.signature(kind.__init__).parameters.items()
            }
        for field, text in declared.items():
            calls = any(
                word in text
                for word in (
                    "Callable[...",
                    "Initializer",
                    "DotGeneralT",
                    "EinsumT",
                    "PromoteDtypeFn",
                )
            )
            if calls:
                assert field in _allowed.ROLES, (name, field)
