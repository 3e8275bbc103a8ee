import inspect

import pytest
from modules import MLP

from kerasflax import ModuleError
from kerasflax._adapter import ADAPTERS, Adapter, adapt


def wrapper(module, inputs):
    return module(inputs)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_an_adapter_has_the_signatures_of_the_protocol(adapter):
    for name, function in vars(Adapter).items():
        if inspect.isfunction(function) and (not name.startswith("_") or name == "__init__"):
            expected = list(inspect.signature(function).parameters.items())
            got = list(inspect.signature(getattr(adapter, name)).parameters.items())
            assert [(name, p.kind) for name, p in got] == [(name, p.kind) for name, p in expected], name


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (None, "got None"),
        (MLP, "got the class MLP, not an instance.\nMake one: `MLP(...)`"),
        (wrapper, "got the function wrapper"),
        (3, "got builtins.int: 3"),
    ],
)
def test_what_is_no_module_is_an_error(module, message):
    with pytest.raises(ModuleError) as error:
        adapt(module, None)
    assert message in str(error.value)
