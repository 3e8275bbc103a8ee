"""Pytrees in a form that Keras handles.

Keras nests lists, tuples, named tuples and dicts, takes anything else for a tensor, and refuses None among outputs. JAX nests
whatever has been registered (dataclasses, Flax's structs, the outputs of Hugging Face's models) and skips None. A `Form` leads
from one to the other and back.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any

import jax
import keras
from jax.tree_util import GetAttrKey

from .._errors import ConfigError
from ..saving import _to_json
from ..saving._plan import MODULE, Plan, shown

PyTree = Any


@keras.saving.register_keras_serializable(package="kerasflax")
@dataclasses.dataclass(frozen=True, eq=False)
class Form:
    """How a simplified tree is made what it was.

    Attributes:
        skeleton: The original, with the numbers from 0 instead of its leaves.
        positions: For each leaf of the original, its position among the leaves of the simplified tree.
    """

    skeleton: PyTree
    positions: tuple[int, ...]

    @functools.cached_property
    def is_plain(self) -> bool:
        """Whether the tree needs no form: simplified it is what it was, to JAX and to Keras, in the order of its dicts too."""
        return _is_plain(self.skeleton)

    @functools.cached_property
    def _key(self) -> Hashable:
        return jax.tree.structure(self.skeleton), self.positions, _order(self.skeleton)

    def __eq__(self, other: object) -> bool:
        """Forms are equal if the trees that they merge have the same types, static fields and order."""
        return isinstance(other, Form) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def get_config(self) -> dict[str, Any]:
        """The form in JSON: models keep it with the call that they repeat."""
        return {
            "model": _to_json.to_config(self.skeleton, "The input"),
            "positions": list(self.positions),
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Form:
        """Make a form as `get_config` describes it.

        Raises:
            ConfigError: It is no such description.
        """
        config = _to_json.checked(config, Mapping, "The input's form")
        plan = _to_json.planned(config.get("model"), "The input")
        positions = _to_json.listed(config.get("positions"), "The input's form")
        try:
            if _holds_alone(plan) and all(type(each) is int for each in positions):
                model = plan.make()
                leaves = jax.tree.leaves(model)
                are_numbers = all(type(each) is int for each in leaves)
                if are_numbers and sorted(leaves) == sorted(positions) == list(range(len(leaves))):
                    return cls(model, tuple(positions))
        except (TypeError, ValueError) as error:
            # JAX sorts the keys of dicts.
            raise ConfigError(f"The input's form is described wrongly: {error!s:.200}.") from error
        raise ConfigError(f"The input's form is described wrongly: {shown(plan.node)}.")

    @functools.cached_property
    def _simplified(self) -> PyTree:
        return _simplified(self.skeleton)

    def for_keras(self, leaves: Sequence[Any]) -> PyTree:
        """Keras's tree with the leaves of an original, in their order there."""
        return leaves[0] if self is _LEAF_FORM else map_leaves(leaves.__getitem__, self._simplified)

    def merge(self, tree: PyTree) -> PyTree:
        """The original structure, its dicts in their order, with the leaves of Keras's tree."""
        if self is _LEAF_FORM:
            return tree
        leaves = jax.tree.leaves(tree)
        treedef = jax.tree.structure(self.skeleton)
        return ordered_like(
            jax.tree.unflatten(treedef, [leaves[position] for position in self.positions]),
            self.skeleton,
        )


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True, eq=False)
class Formed:
    """A tree by its leaves and its form. A trace hands on both: of dicts in a tree itself it would lose the order.

    Attributes:
        leaves: The leaves, in their order in the tree.
        form: The form.
    """

    leaves: tuple[Any, ...]
    form: Form

    @classmethod
    def of(cls, tree: PyTree) -> Formed:
        """Take a tree apart."""
        leaves, treedef = jax.tree.flatten(tree)
        return cls(tuple(leaves), _form_of(tree, treedef))

    def for_keras(self) -> PyTree:
        """The tree as Keras handles it."""
        return self.form.for_keras(self.leaves)

    def tree_flatten(self) -> tuple[tuple[Any, ...], Form]:
        """The leaves, and what a trace is told of them."""
        return self.leaves, self.form

    @classmethod
    def tree_unflatten(cls, form: Form, leaves: tuple[Any, ...]) -> Formed:
        """The tree of a form with other leaves."""
        return cls(leaves, form)


def _holds_alone(plan: Plan) -> bool:
    """Whether a form has no modules in it."""
    return plan.tag != MODULE and all(map(_holds_alone, plan.items))


def split(tree: PyTree) -> tuple[Form, PyTree]:
    """Split a tree into its form and a tree that Keras handles. `Form.merge` puts them together.

    Nodes that Keras does not know become dicts by field (or lists, where their children have no names), and None is left
    out, with its key.

    Returns:
        The form and Keras's tree.
    """
    leaves, treedef = jax.tree.flatten(tree)
    form = _form_of(tree, treedef)
    return form, form.for_keras(leaves)


def _form_of(tree: PyTree, treedef: Any) -> Form:
    if treedef == _LEAF:
        return _LEAF_FORM
    model = ordered_like(jax.tree.unflatten(treedef, range(treedef.num_leaves)), tree)
    order = jax.tree.leaves(_simplified(model))
    return Form(model, tuple(sorted(range(len(order)), key=order.__getitem__)))


_LEAF: Any = jax.tree.structure(0)
# Most calls have one array, and need not be taken apart.
_LEAF_FORM = Form(0, (0,))


def map_leaves(function: Callable[[Any], Any], tree: PyTree) -> PyTree:
    """Apply a function to each leaf, as `jax.tree.map` does, but leave dicts in their order, which JAX sorts by key."""
    return ordered_like(jax.tree.map(function, tree), tree)


def ordered_like(tree: PyTree, model: PyTree) -> PyTree:
    """Put the dicts of a tree into the order of those in a tree of the same structure."""
    if type(model) is dict:
        return {name: ordered_like(tree[name], child) for name, child in model.items()}
    treedef: Any
    children, treedef = jax.tree.flatten(model, is_leaf=lambda node: node is not model)
    if len(children) == 1 and children[0] is model:
        return tree
    return jax.tree.unflatten(
        treedef, list(map(ordered_like, treedef.flatten_up_to(tree), children))
    )


def _nodes(model: PyTree) -> Iterator[PyTree]:
    yield model
    for child in jax.tree.leaves(model, is_leaf=lambda node: node is not model):
        if child is not model:
            yield from _nodes(child)


def _order(model: PyTree) -> Hashable:
    """The order of dicts, of which JAX knows nothing."""
    return tuple(tuple(map(str, node)) for node in _nodes(model) if isinstance(node, dict))


def _is_plain(model: PyTree) -> bool:
    return all(
        type(node) in (int, list, tuple) or (type(node) is dict and list(node) == sorted(node))
        for node in _nodes(model)
    ) and None not in jax.tree.leaves(model, is_leaf=lambda node: node is None)


def _simplified(tree: PyTree) -> PyTree:
    if isinstance(tree, int):
        return tree
    if type(tree) in (list, tuple):
        return type(tree)(_simplified(child) for child in tree if child is not None)
    if isinstance(tree, tuple) and hasattr(tree, "_fields") and None not in tree:
        return type(tree)(*map(_simplified, tree))
    if isinstance(tree, Mapping) and not dataclasses.is_dataclass(tree):
        return {name: _simplified(child) for name, child in tree.items() if child is not None}
    flat = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda node: node is not tree)[0]
    children = [(keys[0], child) for keys, child in flat if child is not None]
    named = {key.name: _simplified(child) for key, child in children if isinstance(key, GetAttrKey)}
    return named if len(named) == len(children) else [_simplified(child) for _, child in children]
