"""Pytrees in a form that Keras handles.

Keras nests lists, tuples, named tuples and dicts. It treats anything else as a tensor, and refuses
None among outputs. JAX nests every registered type (dataclasses, Flax's structs, the outputs of
Hugging Face's models) and skips None. A `Form` converts between the two.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any

import jax
import keras
from jax.tree_util import GetAttrKey

from .. import _keras
from .._errors import ConfigError
from ..saving import _from_json, _to_json
from ..saving._in_memory import InMemory
from ..saving._plan import MODULE, Plan

PyTree = Any


@keras.saving.register_keras_serializable(package="kerasflax")
@dataclasses.dataclass(frozen=True, eq=False)
class Form:
    """How to turn a simplified tree back into the original.

    Attributes:
        skeleton: The original tree, whose leaves are replaced by the numbers 0, 1, and so on.
        positions: For each leaf of the original, its position among the leaves of the simplified
            tree.
    """

    skeleton: PyTree
    positions: tuple[int, ...]

    @functools.cached_property
    def is_plain(self) -> bool:
        """Whether the simplified tree is the original, to JAX and to Keras, with dicts in order."""
        return _is_plain(self.skeleton)

    @functools.cached_property
    def _key(self) -> Hashable:
        return jax.tree.structure(self.skeleton), self.positions, _dict_order(self.skeleton)

    def __eq__(self, other: object) -> bool:
        """Compare the types, static fields and dict order of the trees that the forms merge."""
        return isinstance(other, Form) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def get_config(self) -> dict[str, Any]:
        """Describe the form in JSON. A model saves it with each call that it repeats."""
        model = (
            InMemory(self.skeleton)
            if _keras.is_cloning()
            else _to_json.to_config(self.skeleton, "The input")
        )
        return {"model": model, "positions": list(self.positions)}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Form:
        """Create a form from the description that `get_config` returned.

        Raises:
            ConfigError: The description is invalid.
        """
        config = _from_json.require_type(config, Mapping, "The input's form")
        plan = _from_json.plan_description(config.get("model"), "The input")
        positions = _from_json.require_list(config.get("positions"), "The input's form")
        try:
            if _has_no_modules(plan) and all(type(each) is int for each in positions):
                model = plan.make()
                leaves = jax.tree.leaves(model)
                are_numbers = all(type(each) is int for each in leaves)
                if are_numbers and sorted(leaves) == sorted(positions) == list(range(len(leaves))):
                    return cls(model, tuple(positions))
        except (TypeError, ValueError) as error:
            # JAX sorts the keys of dicts.
            raise ConfigError(
                f"The input's form has an invalid description: {error!s:.200}."
            ) from error
        raise _from_json.invalid_description("The input's form", plan.node)

    @functools.cached_property
    def _simplified(self) -> PyTree:
        return _simplified(self.skeleton)

    def for_keras(self, leaves: Sequence[Any]) -> PyTree:
        """Return Keras's tree with the given leaves, which are in the order of the original."""
        return leaves[0] if self is _LEAF_FORM else map_leaves(leaves.__getitem__, self._simplified)

    def merge(self, tree: PyTree) -> PyTree:
        """Return the original tree, with its dicts in order, from the leaves of Keras's tree.

        A leaf may be None: a model calls its layers on None for an optional input that is missing.
        """
        if self is _LEAF_FORM:
            return tree
        leaves = jax.tree.leaves(tree, is_leaf=lambda node: node is None)
        treedef = jax.tree.structure(self.skeleton)
        return ordered_like(
            jax.tree.unflatten(treedef, [leaves[position] for position in self.positions]),
            self.skeleton,
        )


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True, eq=False)
class Formed:
    """A tree as its leaves and its form, for a trace, which would not keep the order of dicts.

    Attributes:
        leaves: The leaves, in their order in the tree.
        form: The form of the tree.
    """

    leaves: tuple[Any, ...]
    form: Form

    @classmethod
    def of(cls, tree: PyTree) -> Formed:
        """Split a tree into leaves and form."""
        leaves, treedef = jax.tree.flatten(tree)
        return cls(tuple(leaves), _form_of(tree, treedef))

    def for_keras(self) -> PyTree:
        """Return the tree in the form that Keras handles."""
        return self.form.for_keras(self.leaves)

    def tree_flatten(self) -> tuple[tuple[Any, ...], Form]:
        """Return the leaves, and the form as the static part of the pytree node."""
        return self.leaves, self.form

    @classmethod
    def tree_unflatten(cls, form: Form, leaves: tuple[Any, ...]) -> Formed:
        """Return a tree of the same form with other leaves."""
        return cls(leaves, form)


def _has_no_modules(plan: Plan) -> bool:
    """Whether a form contains no modules."""
    return plan.tag != MODULE and all(map(_has_no_modules, plan.items))


def split(tree: PyTree) -> tuple[Form, PyTree]:
    """Split a tree into its form and a tree that Keras handles. `Form.merge` reverses it.

    Nodes that Keras does not know become dicts by field, or lists if their children have no names.
    None is removed, together with its key.

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
# Most calls have a single array, which needs no form.
_LEAF_FORM = Form(0, (0,))


def map_leaves(function: Callable[[Any], Any], tree: PyTree) -> PyTree:
    """Apply a function to each leaf. Keeps the order of dicts, unlike `jax.tree.map`."""
    return ordered_like(jax.tree.map(function, tree), tree)


def ordered_like(tree: PyTree, model: PyTree) -> PyTree:
    """Put the dicts of a tree into the order of the dicts in `model`, a tree of the same shape."""
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


def _dict_order(model: PyTree) -> Hashable:
    """Return the order of all dicts in a tree, which its treedef does not hold."""
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
