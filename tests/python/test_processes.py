"""Two processes of four devices each do what one process of eight does."""

import json
import re
import subprocess
import sys
import time

import jax
import keras
import killed
import numpy as np
import processes
import pytest
from support import cpu_devices, environment, free_port

import kerasflax

RUNS = [f"{kind}-{mesh}" for kind in ("linen", "nnx") for mesh in ("data", "model")]


def run_together(script, folder, count, *arguments, devices=8):
    """Run a script in several processes; return their exit codes and outputs."""
    folder.mkdir(exist_ok=True)
    address = f"127.0.0.1:{free_port()}"
    running = [
        subprocess.Popen(
            [sys.executable, script.__file__, address, str(count), str(number), folder, *arguments],
            env=environment(**cpu_devices(devices // count)),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(count)
    ]
    # A process that waits for others in vain would wait for ever.
    outputs = [each.communicate(timeout=300)[0] for each in running]
    return [each.returncode for each in running], outputs


def seen_by(folder, count):
    codes, outputs = run_together(processes, folder, count)
    assert codes == [0] * count, [output[-2000:] for output in outputs]
    return [json.loads((folder / f"{number}.json").read_text()) for number in range(count)]


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    [one] = seen_by(folder / "one", 1)
    return folder, one, seen_by(folder / "two", 2)


@pytest.mark.parametrize("run", RUNS)
def test_losses_and_values_equal_those_of_one_process(run, seen):
    _, one, two = seen
    for found in two:
        np.testing.assert_allclose(found[run]["losses"], one[run]["losses"], rtol=1e-5)
        np.testing.assert_allclose(found[run]["loss"], one[run]["loss"], rtol=1e-5)
        for value, expected in zip(found[run]["values"], one[run]["values"], strict=True):
            np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("run", RUNS)
def test_files_are_written_once_and_read_in_every_process(run, seen):
    folder, _, two = seen
    expected = kerasflax.read_variables(folder / "one" / run / "w.msgpack")
    for name in ("w.msgpack", "w.safetensors", "w"):
        for found in two:
            np.testing.assert_allclose(found[run]["read"][name], found[run]["loss"], rtol=1e-6)
        written = kerasflax.read_variables(folder / "two" / run / name)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), written, expected
        )
    assert not [path for path in (folder / "two" / run).iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_a_model_is_saved_once_if_every_process_holds_all_of_it(kind, seen):
    folder, _, two = seen
    assert [found[f"{kind}-data"]["save"] for found in two] == [None, None]
    file = folder / "two" / f"{kind}-data" / "model.keras"
    classes = {"Linen": processes.Linen, "Nnx": processes.Nnx}
    model = keras.saving.load_model(file, classes, compile=False)
    values = jax.tree.leaves(kerasflax._models.numpy_variables(model))
    assert [np.asarray(value).tolist() for value in values] == two[0][f"{kind}-data"]["values"]
    for found in two:
        assert "split over several processes" in found[f"{kind}-model"]["save"]
        assert "write_variables" in found[f"{kind}-model"]["save"]


@pytest.mark.parametrize("run", RUNS)
def test_an_error_in_the_writing_process_is_an_error_in_all(run, seen):
    _, _, two = seen
    assert "cannot be written: No such file" in two[0][run]["nowhere"]
    assert "process 0 failed" in two[1][run]["nowhere"]


@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_each_process_holds_and_reads_its_part_of_a_split_weight(kind, seen):
    _, one, two = seen
    whole = one[f"{kind}-model"]["parts"]
    # `auto` splits the kernel of 64 by 128, of which each process has half.
    own = whole - 4 * 64 * 128 // 2
    for found in two:
        assert found[f"{kind}-model"]["parts"] == own
        assert found[f"{kind}-model"]["bytes"] == {
            "w.msgpack": whole,
            "w.safetensors": own,
            "w": own,
        }


@pytest.mark.parametrize("run", RUNS)
def test_transposed_values_are_right_in_the_part_of_each_process(run, seen):
    _, one, two = seen
    for found in (one, *two):
        # The model's values as read, and as set; and a square array.
        assert found[run]["turned"] == {name: [True] * 3 for name in processes.FORMATS}


@pytest.mark.parametrize("run", RUNS)
def test_what_is_read_waits_in_the_hosts_memory(run, seen):
    part = 4 * 64 * 128 // 8
    for found in seen[2]:
        assert max(found[run]["more_on_a_device"].values()) < part


@pytest.mark.parametrize("run", RUNS)
def test_copies_of_variables_survive_the_next_step(run, seen):
    assert all(found[run]["copied"] for found in seen[2])


def epochs_of(output):
    """The loss of each epoch that a process has printed."""
    return {
        int(epoch): float(loss) for epoch, loss in re.findall(r"^epoch (\d) (.*)$", output, re.M)
    }


@pytest.mark.parametrize(
    "mesh",
    [
        "data",
        pytest.param(
            "model",
            marks=pytest.mark.skipif(
                not hasattr(keras.callbacks, "OrbaxCheckpoint"),
                reason="this Keras has no such file",
            ),
        ),
    ],
)
def test_a_run_resumes_on_fewer_devices_after_a_process_has_died(mesh, tmp_path):
    _, [whole] = run_together(killed, tmp_path / "whole", 1, mesh)
    codes, [survivor, dead] = run_together(killed, tmp_path / "two", 2, mesh)
    assert codes[0] != 0
    assert codes[1] == 7, dead
    [died] = re.findall(r"^died (.*)$", dead, re.M)
    assert time.time() - float(died) < 60
    [code], [resumed] = run_together(killed, tmp_path / "two", 1, mesh, devices=4)
    assert code == 0, resumed
    assert list(epochs_of(survivor)) == [0, 1, 2]
    assert list(epochs_of(resumed)) == [3, 4, 5]
    found = epochs_of(survivor) | epochs_of(resumed)
    np.testing.assert_allclose(list(found.values()), list(epochs_of(whole).values()), rtol=1e-5)
