"""The contenders: kerasflax, Keras's own FlaxLayer, and plain Flax, alone or in Keras's `fit()`.

All have the same module, the same loss function and stochastic gradient descent. Plain Flax is
initialized with one row, as its users do it, and eagerly before training: if there are many
weights, jitted init compiles for minutes.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import keras
import optax
from flax import linen as nn
from keras.src.utils import jax_layer
from workloads import Workload, loss

import kerasflax

PyTree = Any
RATE = 0.001


class Needless:
    """Stand-in for TensorFlow in `keras.layers.FlaxLayer`.

    At build, FlaxLayer asks TensorFlow one question that is needless on JAX. Without TensorFlow
    the build fails; with it, the build costs seconds and 460 MB more. The stand-in spares FlaxLayer
    both.
    """

    inside_function = staticmethod(lambda: False)


jax_layer.tf = Needless


# Plain Flax ---------------------------------------------------------------------------------------


def init(module: nn.Module, inputs: Any, *, jit: bool) -> PyTree:
    function = jax.jit(module.init) if jit else module.init
    return function(jax.random.key(0), jnp.asarray(inputs[:1]))


def split(variables: PyTree) -> tuple[PyTree, PyTree]:
    return variables["params"], {name: tree for name, tree in variables.items() if name != "params"}


def gradient_step(
    module: nn.Module, optimizer: optax.GradientTransformation
) -> Callable[..., tuple[PyTree, ...]]:
    """The usual training step.

    It takes the params, the other collections, the optimizer's state and a batch, and returns the
    first three, updated, with the loss.
    """

    def total(
        params: PyTree, state: PyTree, x: jax.Array, y: jax.Array
    ) -> tuple[jax.Array, PyTree]:
        logits, state = module.apply(
            {"params": params, **state}, x, training=True, mutable=list(state)
        )
        return loss(y, logits).mean(), state

    def step(
        params: PyTree, state: PyTree, moments: PyTree, x: jax.Array, y: jax.Array
    ) -> tuple[PyTree, ...]:
        (value, state), gradients = jax.value_and_grad(total, has_aux=True)(params, state, x, y)
        updates, moments = optimizer.update(gradients, moments, params)
        return optax.apply_updates(params, updates), state, moments, value

    return step


class Loop:
    """A bare Python loop around `jit(step)` with donated state.

    It has the methods of a model that the worker calls.
    """

    def __init__(self, module: nn.Module, variables: PyTree) -> None:
        optimizer = optax.sgd(RATE)
        params, state = split(variables)
        self._state = (params, state, optimizer.init(params))
        self._step = jax.jit(gradient_step(module, optimizer), donate_argnums=(0, 1, 2))

    def train_on_batch(self, x: Any, y: Any) -> float:
        *self._state, value = self._step(*self._state, x, y)
        return float(value)

    def fit(self, x: Any, y: Any, *, batch_size: int, callbacks: list[Any], **_: Any) -> None:
        """Run one epoch, between the two calls of the callbacks that measure its time."""
        for callback in callbacks:
            callback.on_epoch_begin(0)
        for start in range(0, len(x), batch_size):
            *self._state, value = self._step(
                *self._state, x[start : start + batch_size], y[start : start + batch_size]
            )
        jax.block_until_ready((self._state, value))
        for callback in callbacks:
            callback.on_epoch_end(0)

    @property
    def variables(self) -> PyTree:
        params, state, _ = self._state
        return {"params": params, **state}


class OptaxModel(keras.Model):
    """The same step in Keras's `fit()`: it shows the cost of Keras's trainer without a layer."""

    def __init__(self, module: nn.Module, variables: PyTree) -> None:
        super().__init__()
        params, state = split(variables)
        self._nest = types.SimpleNamespace(
            params=jax.tree.structure(params), state=jax.tree.structure(state)
        )
        self._module = module
        self._params = [_weight(leaf, trainable=True) for leaf in jax.tree.leaves(params)]
        self._state = [_weight(leaf, trainable=False) for leaf in jax.tree.leaves(state)]
        self.built = True
        # Keras requires an optimizer; this one is not used.
        self.compile(optimizer=keras.optimizers.SGD(RATE))

    def train_step(
        self, state: tuple[Any, ...], data: tuple[Any, ...]
    ) -> tuple[dict[str, Any], tuple[Any, ...]]:
        params, others, optimizer_variables, metrics = state
        x, y = data[:2]
        optimizer = optax.sgd(RATE)
        step = gradient_step(self._module, optimizer)
        params = self._nest.params.unflatten(params)
        params, others, _, value = step(
            params, self._nest.state.unflatten(others), optimizer.init(params), x, y
        )
        return {"loss": value}, (
            jax.tree.leaves(params),
            jax.tree.leaves(others),
            optimizer_variables,
            metrics,
        )


# Layers -------------------------------------------------------------------------------------------


class ThinLayer(keras.layers.Layer):
    """The least that a layer around a jitted `module.apply` can do.

    What it costs more than Flax alone is Keras's cost.
    """

    def __init__(self, module: nn.Module, inputs: Any) -> None:
        super().__init__(autocast=False)
        variables = init(module, inputs, jit=False)
        self._apply = jax.jit(module.apply, static_argnames=("training", "mutable"), inline=True)
        self._nest = types.SimpleNamespace(of=jax.tree.structure(variables))
        flat = jax.tree_util.tree_flatten_with_path(variables)[0]
        self._leaves = [_weight(leaf, trainable=path[0].key == "params") for path, leaf in flat]
        self._collections = tuple(name for name in variables if name != "params")
        self.built = True

    def call(self, inputs: Any, training: bool = False) -> Any:
        variables = self._nest.of.unflatten([leaf.value for leaf in self._leaves])
        outputs, state = self._apply(
            variables, inputs, training=training, mutable=self._collections if training else ()
        )
        leaves = self._nest.of.unflatten(self._leaves)
        jax.tree.map(
            lambda leaf, value: leaf.assign(value), {name: leaves[name] for name in state}, state
        )
        return outputs


class EmptyLayer(keras.layers.Layer):
    """One weight and a product: what remains of a step is Keras's trainer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = self.add_weight(shape=(10,))

    def call(self, inputs: Any) -> Any:
        return inputs[:, :10] * self.scale


def _weight(value: jax.Array, *, trainable: bool) -> keras.Variable:
    return keras.Variable(value, dtype=value.dtype, trainable=trainable)


# Calls `call()`, not `layer()`: kerasflax's own share of an eager call, without what
# `keras.layers.Layer.__call__` adds.
BARE_CALL = "kerasflax_bare"
LAYERS: dict[str, Callable[[nn.Module, Any], keras.layers.Layer]] = {
    "kerasflax": lambda module, inputs: kerasflax.FlaxLayer(module, seed=0),
    BARE_CALL: lambda module, inputs: kerasflax.FlaxLayer(module, seed=0),
    "keras_flaxlayer": lambda module, inputs: keras.layers.FlaxLayer(module),
    "thin_layer": ThinLayer,
    "empty_layer": lambda module, inputs: EmptyLayer(),
}


def layer_model(workload: Workload, make_layer: Callable[[], keras.layers.Layer]) -> keras.Model:
    """Build the layer in a model with a batch of any size."""
    inputs = keras.Input(workload.shape, dtype="int32" if workload.tokens else "float32")
    return keras.Model(inputs, make_layer()(inputs))


def compiled(model: keras.Model) -> keras.Model:
    """Compile the model with its optimizer, which Flax users also create after `init`."""
    model.compile(optimizer=keras.optimizers.SGD(RATE), loss=loss)
    return model
