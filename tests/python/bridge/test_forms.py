import collections

import flax.core
import jax
import keras
from flax import struct
from hypothesis import given
from hypothesis import strategies as st

from kerasflax.bridge._forms import split

Pair = collections.namedtuple("Pair", "left right")


@struct.dataclass
class Output:
    last: object
    hidden: object = None
    tag: str = struct.field(pytree_node=False, default="t")


def test_a_node_that_keras_does_not_know_becomes_a_dict_of_its_fields_other_than_none():
    tree = {
        "o": Output(1, hidden=(2, None)),
        "p": Pair(3, None),
        "q": Pair(4, 5),
        "f": flax.core.freeze({"x": 6}),
        "n": None,
    }
    form, simple = split(tree)
    assert simple == {
        "o": {"last": 1, "hidden": (2,)},
        "p": {"left": 3},
        "q": Pair(4, 5),
        "f": {"x": 6},
    }
    assert form.merge(simple) == tree


class Unnamed:
    def __init__(self, *children):
        self.children = children


jax.tree_util.register_pytree_node(
    Unnamed, lambda node: (node.children, None), lambda _, children: Unnamed(*children)
)


def test_a_node_whose_children_have_no_names_becomes_a_list():
    form, simple = split(Unnamed("a", "b"))
    assert simple == ["a", "b"]
    assert form.merge(simple).children == ("a", "b")


leaves = st.integers() | st.none()
trees = st.recursive(
    leaves,
    lambda inner: (
        st.dictionaries(st.sampled_from("cba"), inner, max_size=3)
        | st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.builds(Pair, inner, inner)
        | st.builds(Output, inner, inner)
    ),
    max_leaves=10,
)


@given(trees)
def test_merging_a_simplified_tree_restores_the_original(tree):
    form, simple = split(tree)
    assert form.merge(simple) == tree
    assert repr(form.merge(simple)) == repr(tree)
    if tree is not None:
        assert None not in keras.tree.flatten(simple)
        assert sorted(keras.tree.flatten(simple)) == sorted(jax.tree.leaves(tree))
