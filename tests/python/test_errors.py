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
