# SPDX-License-Identifier: MIT
"""What a run tells while it trains: metrics.csv, event files for TensorBoard, log.txt.

metrics.csv has one row an epoch, the first (epoch 0, step 0) before any step. Columns:

    phase              offline or online
    epoch, step        epochs and optimiser steps of this phase done so far
    window             outer steps of a window in this epoch
    rate               learning rate of its last step
    loss               mean over its steps of the training loss (offline: in units of the output scale, 1 is no skill;
                       online: mean square of differences over the field's standard deviation, 1 is about the error of the
                       truth's time mean; neither has a unit); empty where there is none
    validation         the loss on held-out windows
    gradient_norm      mean 2-norm of the gradient before clipping
    dropped            training windows that blew up and were left out
    skipped            steps not taken because loss or gradient was not finite
    validation_dropped held-out windows that blew up
    seconds            wall time of the epoch; from here on, columns that are not the same when a run is repeated or resumed
    solver, network, backward, exchange, wait
                       seconds a rank spent on average in the solver, in the network within the rollout, in the sweep, on the sum
                       of the gradients, and waiting for other ranks
    idle               share of the time of all ranks that they waited for the slowest one
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from trimtab.core.atomic_files import replacing, writing
from trimtab.core.errors import OutputError
from trimtab.core.log import log

RECORDED = ("solver", "network", "backward", "exchange", "wait", "idle")
COLUMNS = ("phase", "epoch", "step", "window", "rate", "loss", "validation", "gradient_norm", "dropped", "skipped",
           "validation_dropped", "seconds", *RECORDED)
CURVES = ("rate", "loss", "validation", "gradient_norm", "dropped", "skipped")


class Records:
    """The files of a run folder that grow with it.

    Args:
        folder: the run folder.
        history: the rows of `COLUMNS` so far; metrics.csv is written anew from them, so that rows of epochs that a
            resumed run does again are not there twice. The list is appended to.
        offline_steps: optimiser steps of the offline phase, so that TensorBoard shows one phase after the other.
    """

    def __init__(self, folder: Path, history: list[list[Any]], offline_steps: int):
        for row in history:  # of a trimtab that kept fewer columns
            row += [math.nan] * (len(COLUMNS) - len(row))
        self.history, self.offline_steps = history, offline_steps
        self.path = folder / "metrics.csv"
        with replacing(self.path) as partial:
            partial.write_text("".join(map(_line, [COLUMNS, *history])), encoding="utf-8")
        self._failed = False
        with self._writing():
            self._metrics = open(self.path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115  open as long as the run
            (folder / "tensorboard").mkdir(exist_ok=True)
            # Not its SummaryWriter, whose thread would hide that the disk is full.
            self._events = EventsWriter(str(folder / "tensorboard" / "events"))
            purge = self._at(history[-1]) + 1 if history else 0
            self._events.write_event(Event(step=purge, file_version="brain.Event:2"))
            self._events.write_event(Event(step=purge, session_log=SessionLog(status=SessionLog.START)))

    def add(self, row: Sequence[Any]) -> None:
        """Append one row of `COLUMNS`.

        Raises:
            OutputError: the disk is full.
        """
        self.history.append(list(row))
        values = dict(zip(COLUMNS, row, strict=True))
        with self._writing():
            self._metrics.write(_line(row))
            for name in CURVES:
                if values[name] == values[name]:  # not NaN
                    self._events.write_event(Event(wall_time=time.time(), step=self._at(row),
                                                   summary=scalar(f"{values['phase']}/{name}", values[name])))
            self._events.flush()
        loss = "–" if math.isnan(values["loss"]) else f"{values['loss']:.4g}"  # before any step there is none
        told = ("validation", "dropped", "skipped", "seconds")
        log.info("%s epoch %d, step %d: loss %s, validation %.4g, %d dropped, %d skipped, %.1f s (solver %.3g, network %.3g, "
                 "backward %.3g, exchange %.3g, wait %.3g; idle %.1f %%)",
                 values["phase"], values["epoch"], values["step"], loss, *(values[name] for name in told),
                 *(values[name] for name in RECORDED[:-1]), 100 * values["idle"])

    def close(self) -> None:
        """Flush and close."""
        for file in (self._metrics, self._events):
            with contextlib.suppress(OSError) if self._failed else self._writing():
                file.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            with writing(self.path):
                yield
        except OutputError:
            self._failed = True
            raise

    def _at(self, row: Sequence[Any]) -> int:
        values = dict(zip(COLUMNS, row, strict=True))
        return int(values["step"]) + (self.offline_steps + 1) * (values["phase"] == "online")


def _line(row: Sequence[Any]) -> str:
    return ",".join("" if value != value else str(value) for value in row) + "\n"
