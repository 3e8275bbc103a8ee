"""A training run that saves itself after each epoch and that `test_processes.py` interrupts.

    python killed.py ADDRESS PROCESSES ID FOLDER

With a saved model in FOLDER, it goes on from there. If there are several processes, the last one
ends without a word after its third epoch.
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


def main(address, count, number, folder):
    if count > 1:
        # Keras's `initialize` cannot set the time after which a silent process counts as dead.
        jax.distributed.initialize(address, count, number, heartbeat_timeout_seconds=10)
    kerasflax.distribute({"batch": jax.device_count()})
    file = folder / "model.keras"
    if file.exists():
        model = keras.saving.load_model(file, {"Linen": processes.Linen})
    else:
        model = processes.model_of("linen")

    def save(epoch, logs):
        kerasflax.save_model(model, file)
        print("epoch", epoch, repr(logs["loss"]), flush=True)
        if count > 1 and number == count - 1 and epoch == 2:
            print("died", time.time(), flush=True)
            os._exit(7)

    model.fit(
        processes.rows_of(processes.INPUTS, count),
        processes.rows_of(processes.TARGETS, count),
        batch_size=processes.BATCH // count,
        epochs=EPOCHS,
        initial_epoch=int(model.optimizer.iterations.numpy()) // STEPS,
        shuffle=False,
        verbose=0,
        callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=save)],
    )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
