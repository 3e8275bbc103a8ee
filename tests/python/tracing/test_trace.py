import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kerasflax.tracing._trace import Spec, TraceAgainError, trace, until_learned


def result(function, *shapes):
    return trace(function, *(Spec(shape, "float32") for shape in shapes)).result


def test_unknown_sizes_stay_unknown_and_known_sizes_stay_known():
    assert result(lambda x: {"a": x @ jnp.ones((3, 5)), "b": x.T}, (None, 3)) == {
        "a": Spec((None, 5), "float32"),
        "b": Spec((3, None), "float32"),
    }


def test_the_batch_of_several_inputs_is_one_size():
    assert result(lambda x, y: x + y, (None, 3), (None, 3)) == Spec((None, 3), "float32")


def test_code_that_branches_on_an_unknown_size_is_traced_with_numbers():
    def branches(x):
        return jnp.concatenate([x, x]) if int(x.shape[0]) < 5 else x

    assert result(branches, (None, 3)) == Spec((None, 3), "float32")
    assert result(lambda x: jnp.ones(4 if int(x.shape[0]) > 1 else 5), (None, 3)) == Spec(
        (4,), "float32"
    )


def test_an_error_of_the_code_has_the_error_of_the_symbolic_trace_as_its_cause():
    def fails(x):
        raise LookupError(f"no {x.shape[1]}")

    with pytest.raises(LookupError, match="no 3"):
        result(fails, (None, 3))


def test_wanted_results_are_computed_without_the_rest():
    calls = []

    def function(data, x):
        weights = jax.random.normal(jax.random.wrap_key_data(data), (3, 2))
        return jax.pure_callback(calls.append, jax.ShapeDtypeStruct((), "float32"), x), weights

    traced = trace(function, Spec((2,), "uint32"), Spec((None, 3), "float32"))
    (weights,) = traced.evaluate([False, True], jax.random.key_data(jax.random.key(1)))
    np.testing.assert_allclose(weights, jax.random.normal(jax.random.key(1), (3, 2)), rtol=1e-6)
    assert calls == []


def test_results_that_depend_on_an_argument_without_values_are_computed_with_ones():
    traced = trace(
        lambda data, x, y: (x.mean(0) + data[0], y),
        Spec((2,), "float32"),
        *[Spec((None, 3), "float32")] * 2,
    )
    (mean,) = traced.evaluate([True, False], np.array([5, 6], np.float32))
    np.testing.assert_array_equal(mean, [6, 6, 6])


def test_values_are_computed_at_once_inside_another_trace():
    traced = trace(lambda x: x * 2, Spec((2,), "float32"))
    seen = []

    @jax.jit
    def outer(x):
        seen.append(traced.evaluate([True], np.ones(2, np.float32))[0])
        return x

    outer(1.0)
    assert not isinstance(seen[0], jax.core.Tracer)
    np.testing.assert_array_equal(seen[0], [2, 2])


def test_a_trace_that_learns_something_starts_again():
    attempts = []

    def function(x):
        attempts.append(x)
        if len(attempts) < 3:
            raise TraceAgainError
        return x

    assert result(function, (2,)) == Spec((2,), "float32")
    assert len(attempts) == 3
    assert until_learned(lambda: 5) == 5


def test_code_with_a_small_maximal_size_is_traced_with_small_numbers():
    def short(x):
        assert int(x.shape[1]) <= 10
        return x

    assert result(short, (None, None)) == Spec((None, None), "float32")


def test_a_constant_of_the_code_is_copied():
    constant = jnp.arange(3.0)
    traced = trace(lambda x: (constant, constant), Spec((2,), "float32"))
    first, second = traced.evaluate([True, True], np.ones(2, np.float32))
    assert len({array.unsafe_buffer_pointer() for array in (constant, first, second)}) == 3


def test_traces_with_unknown_sizes_leave_nothing_in_jaxs_caches():
    def count_after(number):
        for _ in range(number):
            trace(
                lambda x: jnp.tanh(jnp.add(x, 1.0)) * jnp.subtract(x, 2.0),
                Spec((None, 3), "float32"),
            )
        gc.collect()
        return len(gc.get_objects())

    before = count_after(3)
    assert count_after(10) - before < 50
