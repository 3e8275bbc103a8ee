"""Setting the variables of a built layer: what a device holds, and what is left of a failure."""

import textwrap

from support import cpu_devices, run_code

LAYER = """
    import jax, keras, numpy as np, pytest
    from flax import linen as nn
    from support import most_on_a_device
    import kerasflax

    NUMBER = 64
    kerasflax.distribute({"batch": 1, "model": 2}, auto=True)
    layer = kerasflax.FlaxLayer(
        nn.Sequential([nn.Dense(128, use_bias=False) for _ in range(NUMBER)]), seed=1
    )
    layer(keras.Input((128,)))
    variables = list(layer.variables_by_path.values())
    SHARE = NUMBER * 4 * 128 * 128 / 2
    assign = keras.Variable.assign
"""


def run_on_two_devices(code):
    run_code(textwrap.dedent(LAYER) + textwrap.dedent(code), **cpu_devices(2))


def test_a_device_holds_its_share_once_while_a_file_is_read_into_a_layer(tmp_path):
    run_on_two_devices(f"""
        peaks = []

        def noting_assign(variable, value):
            peaks.append(most_on_a_device())
            return assign(variable, value)

        for name in ("w.msgpack", "w.safetensors", "w"):
            file = {str(tmp_path)!r} + "/" + name
            kerasflax.write_variables(layer, file)
            expected = [np.array(variable.value) for variable in variables]
            layer.flax_variables = jax.tree.map(np.zeros_like, kerasflax.read_variables(file))
            peaks.clear()
            keras.Variable.assign = noting_assign
            layer.flax_variables = kerasflax.read_variables(file, like=layer)
            keras.Variable.assign = assign
            assert len(peaks) == NUMBER
            assert max(peaks) < 1.05 * SHARE, (name, max(peaks) / SHARE)
            for variable, value in zip(variables, expected, strict=True):
                np.testing.assert_array_equal(variable.value, value)
    """)


def test_a_failure_puts_each_value_back_where_it_was():
    run_on_two_devices("""
        before = [(np.array(each.value), each.value.sharding) for each in variables]

        def failing_assign(variable, value):
            if variable is variables[-1]:
                raise RuntimeError("no memory is left")
            return assign(variable, value)

        zeros = jax.tree.map(np.zeros_like, layer.flax_variables)
        keras.Variable.assign = failing_assign
        with pytest.raises(kerasflax.VariablesError, match="no memory is left"):
            layer.flax_variables = zeros
        for variable, (value, sharding) in zip(variables, before, strict=True):
            np.testing.assert_array_equal(variable.value, value)
            assert variable.value.sharding == sharding
            assert value.any()
    """)


def test_values_can_be_exchanged_between_variables():
    run_on_two_devices("""
        kernel = lambda i: layer.variables_by_path[f"params/layers_{i}/kernel"].value
        first, second = np.array(kernel(0)), np.array(kernel(1))
        layer.flax_variables = {
            "params": {"layers_0": {"kernel": kernel(1)}, "layers_1": {"kernel": kernel(0)}}
        }
        np.testing.assert_array_equal(kernel(0), second)
        np.testing.assert_array_equal(kernel(1), first)
    """)


FAILURE = """
    before = [np.array(each.value) for each in variables]
    zeros = jax.tree.map(np.zeros_like, layer.flax_variables)
    made, calls = jax.make_array_from_callback, []

    def failing_assign(variable, value):
        if variable is variables[-1]:
            raise RuntimeError("no memory is left")
        return assign(variable, value)

    keras.Variable.assign = failing_assign
"""


def test_an_interrupt_waits_until_all_values_are_back():
    run_on_two_devices(
        textwrap.dedent(FAILURE)
        + textwrap.dedent("""
        def interrupted(*args):
            calls.append(1)
            if len(calls) in (2, 3, 7):
                raise KeyboardInterrupt
            return made(*args)

        jax.make_array_from_callback = interrupted
        with pytest.raises(kerasflax.VariablesError, match="no memory is left"):
            layer.flax_variables = zeros
        assert len(calls) > 7
        for variable, value in zip(variables, before, strict=True):
            np.testing.assert_array_equal(variable.value, value)
    """)
    )


def test_a_variable_without_memory_for_its_old_value_does_not_keep_the_new_one():
    run_on_two_devices(
        textwrap.dedent(FAILURE)
        + textwrap.dedent("""
        def fails_once(*args):
            calls.append(1)
            if len(calls) == 2:
                raise RuntimeError("RESOURCE_EXHAUSTED")
            return made(*args)

        jax.make_array_from_callback = fails_once
        with pytest.raises(kerasflax.VariablesError, match="no memory is left"):
            layer.flax_variables = zeros
        lost = [variable for variable in variables if variable._value is None]
        assert len(lost) == 1
        for variable, value in zip(variables, before, strict=True):
            if variable is not lost[0]:
                np.testing.assert_array_equal(variable.value, value)
        with pytest.raises(kerasflax.StateError, match="have no values now"):
            layer.flax_variables
    """)
    )


def test_an_interrupt_leaves_the_old_value_readable():
    run_on_two_devices("""
        import sys

        kernel = layer.variables_by_path["params/layers_0/kernel"]
        value = np.array(kernel.value)
        is_inside, calls = False, 0

        def interrupt(frame, event, _):
            global is_inside, calls
            if frame.f_code.co_name == "kept_on_host" and event in ("call", "return"):
                is_inside = event == "call"
            elif is_inside and event == "call":
                calls += 1
                if calls == last:
                    is_inside = False
                    raise KeyboardInterrupt

        def set_kernel(value):
            layer.flax_variables = {"params": {"layers_0": {"kernel": value}}}

        # At the first function that is called while the old value is kept, at the second, ...
        for last in range(1, 1000):
            # An array of whose parts nobody has asked yet.
            set_kernel(value)
            calls = 0
            sys.setprofile(interrupt)
            try:
                set_kernel(np.zeros_like(value))
            except KeyboardInterrupt:
                is_done = False
            else:
                is_done = True
            sys.setprofile(None)
            if is_done:
                break
            np.testing.assert_array_equal(kernel.value, value)
        assert 10 < last < 999
    """)
