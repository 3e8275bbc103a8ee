"""What is in force while a module runs on several devices."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import keras

from .._errors import StateError
from ..adapters._context import current_logical_rules, logical_rules
from ._mesh_arguments import Axis


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is in force while a module runs: that of the distribution when its layer was built.

    Attributes:
        mesh: JAX's mesh, or None without a distribution.
        rules: Pairs of a logical axis and a mesh axis, or None for those that Flax has when the
            module runs.
    """

    mesh: Any = None
    rules: tuple[tuple[str, Axis], ...] | None = None

    @classmethod
    def now(cls) -> Setting:
        """The setting of Keras's distribution, with the rules that place weights under it."""
        distribution = keras.distribution.distribution()
        if distribution is None:
            return cls()
        rules = getattr(distribution, "rules", None)
        if rules is None:
            rules = current_logical_rules() or None
        return cls(distribution.device_mesh.backend_mesh, rules)

    @contextlib.contextmanager
    def in_force(self) -> Iterator[None]:
        """Let constraints on activations inside a module take effect.

        They need the names of the axes only: inside a trace, JAX takes the devices from the
        arguments.
        """
        with contextlib.ExitStack() as stack:
            if self.mesh is not None:
                stack.enter_context(jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh))
            if self.rules is not None:
                stack.enter_context(logical_rules(self.rules))
            yield

    def check(self, name: str) -> None:
        """Check that a layer was built under the distribution that is set now, or that none is.

        Raises:
            StateError: The meshes differ.
        """
        distribution = keras.distribution.distribution()
        now = None if distribution is None else distribution.device_mesh.backend_mesh
        if now is not None and now != self.mesh:
            built = (
                "without a distribution"
                if self.mesh is None
                else f"on the mesh {_mesh_text(self.mesh)}"
            )
            raise StateError(
                f"The layer {name!r} was built {built}, but the distribution now has the mesh "
                f"{_mesh_text(now)}.",
                advice="Set the distribution first, then create the model, and load its weights.",
            )


def _mesh_text(mesh: Any) -> str:
    return " x ".join(f"{name}={size}" for name, size in mesh.shape.items())
