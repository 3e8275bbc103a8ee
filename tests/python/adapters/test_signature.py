import functools
import inspect

import pytest

from kerasflax import MethodError, _host
from kerasflax.adapters._signature import MODE_ARGUMENTS, call_arguments, signature_of


def filled(method, inputs="x", training=True, mask=None, fields=None):
    return signature_of(method, "`f`", fields).fill(inputs, training=training, mask=mask)


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (lambda self, inputs: 0, (("x",), {})),
        (lambda self, tokens: 0, (("x",), {})),
        (lambda self, inputs, training: 0, (("x",), {"training": True})),
        (lambda self, inputs, training=False, scale=1: 0, (("x",), {"training": True})),
        (lambda self, scale=1, inputs=None: 0, ((), {"inputs": "x"})),
        (lambda self, train, x: 0, ((), {"train": True, "x": "x"})),
        (lambda self, train, x, /: 0, ((True, "x"), {})),
        (lambda self, *, x, train: 0, ((), {"x": "x", "train": True})),
        (lambda self, x, enable_dropout: 0, (("x",), {"enable_dropout": True})),
        (lambda self, x, *, is_training: 0, (("x",), {"is_training": True})),
        (lambda self, x, deterministic=None: 0, (("x",), {"deterministic": False})),
        (lambda self, x, use_running_average=None: 0, (("x",), {"use_running_average": False})),
        (lambda self, x, mask=None: 0, (("x",), {})),
        (lambda self, x, mask: 0, (("x", None), {})),
        (lambda self, *args, **kwargs: 0, (("x",), {})),
        (lambda *args, **kwargs: 0, (("x",), {})),
    ],
)
def test_arguments_are_filled_by_name(method, expected):
    assert filled(method) == expected


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("name", "sense"), MODE_ARGUMENTS.items())
def test_a_mode_argument_is_true_in_the_mode_that_it_names(name, sense, training):
    scope = {}
    exec(f"def f(self, x, {name}): pass", scope)
    assert filled(scope["f"], training=training)[1] == {name: training if sense else not training}


def test_a_dict_is_spread_over_the_arguments_that_it_names():
    both = {"a": 1, "b": 2}
    assert filled(lambda self, a, b, training: 0, both) == ((1, 2), {"training": True})
    assert filled(lambda self, a, c=0, b=0: 0, both) == ((1,), {"b": 2})
    assert filled(lambda self, a, *, b: 0, both) == ((1,), {"b": 2})
    assert filled(lambda self, inputs, a=0, b=0: 0, both) == ((both,), {})
    assert filled(lambda self, a, c=0: 0, both) == ((both,), {})
    named = {"inputs": 1, "mask": 2}
    assert filled(lambda self, inputs, mask=None, train=0: 0, named, mask="keras") == (
        (1, 2),
        {"train": True},
    )


def test_a_list_is_spread_over_several_arguments_without_a_default():
    assert filled(lambda self, a, b, training, c=0: 0, [1, 2]) == ((1, 2), {"training": True})
    assert filled(lambda self, a, b=0: 0, [1, 2]) == (([1, 2],), {})
    with pytest.raises(
        MethodError, match=r"Nothing fills `b`, `c` of `f`.*; the input is a list of 2"
    ):
        filled(lambda self, a, b, c: 0, [1, 2])


def test_a_mode_argument_that_a_field_sets_is_not_passed():
    assert filled(lambda self, x, deterministic=None: 0, fields={"deterministic": True}) == (
        ("x",),
        {},
    )


def test_a_mode_argument_without_a_default_is_filled_even_if_a_field_is_set():
    assert filled(lambda self, x, training: 0, fields={"training": False}) == (
        ("x",),
        {"training": True},
    )


def test_mode_fields_that_are_none_are_set_for_the_call_if_no_argument_is_a_mode():
    fields = {"train": None, "deterministic": None, "is_training": False, "rate": None}
    signature = signature_of(lambda self, x: 0, "`f`", fields)
    assert signature.fields(training=True) == {"train": True, "deterministic": False}
    assert signature.fill("x", training=True) == (("x",), {})
    signature = signature_of(lambda self, x, deterministic=None: 0, "`f`", fields)
    assert signature.fields(training=True) == {}
    assert signature.fill("x", training=True) == (("x",), {"deterministic": False})


def test_an_argument_that_nothing_fills_is_an_error_that_names_it():
    with pytest.raises(
        MethodError, match=r"Nothing fills `b`, `c` of `f`, whose arguments are `a`, `b`, `c`, `d`;"
    ):
        filled(lambda self, a, b, c, d=1: 0)


@pytest.mark.parametrize("method", [lambda self: 0, lambda self, training: 0])
def test_a_method_without_an_input_is_an_error(method):
    with pytest.raises(MethodError, match="has no argument for the layer's input"):
        filled(method)


def test_a_function_without_arguments_is_an_error():
    with pytest.raises(MethodError, match="takes no arguments"):
        filled(lambda: 0)


def test_another_language_can_describe_the_arguments_of_its_functions():
    def foreign(*args, **kwargs):
        return 0

    def wrapper(*args, **kwargs):
        return foreign(*args, **kwargs)

    wrapper.__wrapped__ = foreign
    formals = {"self": False, "inputs": False, "training": True, "...": False}
    _host.register(formals=lambda function: formals if function is foreign else None)
    try:
        assert filled(wrapper) == (("x",), {"training": True})
        assert filled(lambda self, tokens: 0) == (("x",), {})
    finally:
        _host.register()
    assert str(inspect.signature(foreign)) == "(*args, **kwargs)"
    assert filled(wrapper) == (("x",), {})


def test_the_dots_of_an_r_function_take_parts_by_name_and_what_follows_needs_its_name():
    def foreign(*args, **kwargs):
        return 0

    formals = {"module": False, "q": False, "...": False, "scale": False, "training": True}
    _host.register(formals=lambda function: formals if function is foreign else None)
    try:
        parts = {"kv": 1, "q": 2, "scale": 3}
        assert filled(foreign, parts) == ((2,), {"kv": 1, "scale": 3, "training": True})
        assert call_arguments(foreign, (2,), {"kv": 1, "scale": 3})["named_dots"] == {"kv": 1}
    finally:
        _host.register()


def test_an_argument_whose_name_is_invalid_in_python_gets_its_default_or_is_filled_by_position():
    def foreign(*args, **kwargs):
        return 0

    formals = {"module": False, ".x": False, "na.rm": True, "lambda": True, "training": False}
    _host.register(formals=lambda function: formals if function is foreign else None)
    try:
        assert filled(foreign) == (("x",), {"training": True})
    finally:
        _host.register()


def test_arguments_that_a_partial_sets_are_left_alone():
    method = functools.partial(lambda self, x, deterministic, scale: 0, deterministic=True, scale=2)
    assert filled(method) == (("x",), {})


def test_a_part_of_the_input_with_the_name_of_the_mode_is_an_error():
    with pytest.raises(
        MethodError, match="The input has a part named `training`, but that is the name of the mode"
    ):
        filled(lambda self, a, training: 0, {"a": 1, "training": 2})


def test_a_method_with_keyword_arguments_only_gets_the_parts_of_a_dict_by_name():
    def method(self, **inputs):
        return 0

    assert filled(method, {"a": 1, "b": 2}) == ((), {"a": 1, "b": 2})
    for inputs in ("x", ["x", "y"], {1: "x"}):
        with pytest.raises(MethodError, match="`f` takes its input by name only"):
            filled(method, inputs)


def test_keyword_arguments_take_the_parts_of_a_dict_that_are_not_arguments():
    both = {"a": 1, "b": 2}
    assert filled(lambda self, a, **more: 0, both) == ((1,), {"b": 2})
    assert filled(lambda self, a, training, c=3, **more: 0, both) == (
        (1,),
        {"b": 2, "training": True},
    )
    # The dict does not name the argument, or is not one of names.
    assert filled(lambda self, x, **more: 0, both) == ((both,), {})
    assert filled(lambda self, inputs, **more: 0, both) == ((both,), {})
    assert filled(lambda self, a, **more: 0, {"a": 1, 2: 3}) == (({"a": 1, 2: 3},), {})


@pytest.mark.parametrize("name", MODE_ARGUMENTS)
def test_a_method_that_takes_the_mode_owns_the_mode_fields(name):
    fields = {"deterministic": None, "use_running_average": None}
    scope = {}
    exec(f"def f(self, x, {name}): pass\ndef g(self, x): pass", scope)
    assert signature_of(scope["f"], "`f`", fields).fields(training=True) == {}
    assert signature_of(scope["g"], "`g`", fields).fields(training=True) == {
        "deterministic": False,
        "use_running_average": False,
    }
