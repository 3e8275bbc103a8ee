import pickle
import re

import kerasflax
from kerasflax import KerasFlaxError, _errors


def test_the_tree_in_the_docstring_lists_every_exception_with_its_base():
    drawn = re.findall(r"[├└]── (\w+) +\((\w+)\)", _errors.__doc__)
    assert drawn == [
        (cls.__name__, cls.__bases__[1].__name__) for cls in KerasFlaxError.__subclasses__()
    ]


def test_every_exception_is_public_and_has_a_unique_cause():
    classes = KerasFlaxError.__subclasses__()
    assert all(getattr(kerasflax, cls.__name__) is cls for cls in classes)
    assert len({cls.cause for cls in classes} | {KerasFlaxError.cause}) == len(classes) + 1


def test_public_names_belong_to_the_package():
    modules = {name: getattr(kerasflax, name).__module__ for name in kerasflax.__all__}
    assert modules == dict.fromkeys(kerasflax.__all__, "kerasflax")


def test_an_error_joins_what_is_wrong_with_each_place_and_the_advice():
    error = kerasflax.VariablesError("It does not fit:", problems={"a/b": "missing"}, advice="Do.")
    assert str(error) == "It does not fit:\n  a/b: missing\nDo."
    assert (error.what, error.problems, error.advice) == (
        "It does not fit:",
        {"a/b": "missing"},
        "Do.",
    )
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.problems) == (str(error), error.problems)
