"""A training run that saves itself after each epoch and that `test_processes.py` interrupts.

    python killed.py ADDRESS PROCESSES ID FOLDER MESH

It resumes from what is in FOLDER. If there are several processes, the last one ends without a word
after its third epoch. With MESH `data`, every process holds the whole model, which is saved as a
Keras file; with `model`, each holds its parts, which Keras's callback for Orbax writes.
"""

import os
import sys
import time
from pathlib import Path

import jax
import keras
import processes

import kerasflax

EPOCHS, STEPS = 6, processes.ROWS // processes.BATCH


def started(mesh, folder):
    """The model, resumed if there is something to resume, and the callback that saves it."""
    if mesh == "model":
        kerasflax.distribute({"batch": 1, "model": jax.device_count()}, auto=True)
        model = processes.model_of("nnx")
        if (folder / "checkpoints").exists():
            # Only variables that exist are loaded.
            model.optimizer.build(model.trainable_variables)
            model.load_weights(folder / "checkpoints")
        return model, keras.callbacks.OrbaxCheckpoint(
            str(folder / "checkpoints"), save_on_background=False
        )
    kerasflax.distribute({"batch": jax.device_count()})
    file = folder / "model.keras"
    if file.exists():
        model = keras.saving.load_model(file, {"Linen": processes.Linen})
    else:
        model = processes.model_of("linen")
    return model, keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: kerasflax.save_model(model, file)
    )


def main(address, count, number, folder, mesh):
    if count > 1:
        # Keras's `initialize` cannot set the time after which a silent process counts as dead.
        jax.distributed.initialize(address, count, number, heartbeat_timeout_seconds=10)
    model, saving = started(mesh, folder)

    def print_loss(epoch, logs):
        print("epoch", epoch, repr(logs["loss"]), flush=True)
        if count > 1 and number == count - 1 and epoch == 2:
            print("died", time.time(), flush=True)
            os._exit(7)

    parts = count if mesh == "data" else 1
    model.fit(
        processes.rows_of(processes.INPUTS, parts),
        processes.rows_of(processes.TARGETS, parts),
        batch_size=processes.BATCH // parts,
        epochs=EPOCHS,
        initial_epoch=int(model.optimizer.iterations.numpy()) // STEPS,
        shuffle=False,
        verbose=0,
        callbacks=[saving, keras.callbacks.LambdaCallback(on_epoch_end=print_loss)],
    )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]), sys.argv[5])
