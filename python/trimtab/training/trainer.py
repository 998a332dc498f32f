# SPDX-License-Identifier: MIT
"""The training loop: offline, then online; every step can be the last, and the next run goes on from there."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trimtab.bridge.opener import open_solver as opener_by_name
from trimtab.config.experiment import Experiment, dump_experiment, load_experiment
from trimtab.config.input_files import input_digests
from trimtab.core.atomic_files import only_writer, replacing, writing
from trimtab.core.errors import CheckpointError, ConfigError, SolverError
from trimtab.core.log import log, logged, unlogged
from trimtab.core.progress import silent
from trimtab.core.provenance import provenance
from trimtab.core.signals import Interrupted, StopSignal
from trimtab.core.spec import SolverSpec, visible_size
from trimtab.corrections.factory import build_correction
from trimtab.corrections.slot_weights import SlotWeight
from trimtab.data.reference import Progress, make_reference
from trimtab.data.reference_run import Opener
from trimtab.data.windows import Targets
from trimtab.parallel.mpi import get_world
from trimtab.parallel.world import LONGEST, PATIENCE, World
from trimtab.training import checkpoint
from trimtab.training.layout import check_fields
from trimtab.training.metrics import RECORDED, Records
from trimtab.training.microbatches import TIMES, Crew
from trimtab.training.offline import Offline, fit_normalisation
from trimtab.training.online import Online
from trimtab.training.optimiser import Movement, copied, make_optimiser
from trimtab.training.phase import Phase
from trimtab.training.refusals import check_fit
from trimtab.training.session import deterministic
from trimtab.training.state import Position, Result

OUTPUTS = ("last.pt", "best.pt", "offline.pt", "metrics.csv")
PROGRESS_SECONDS, LOG_SECONDS = 0.1, 10.0  # between two signs of life: for a bar, and in the log


class Trainer:
    """Trains the correction of an experiment in a run folder.

    The folder gets experiment.toml, log.txt, metrics.csv, tensorboard/, offline.pt (best of the offline phase), best.pt
    and last.pt. A run killed at any moment and resumed ends with the same bits as one that was not, on the same machine
    with the same number of threads. SIGTERM, SIGUSR1 and SIGINT save and end, at once, without the step that is being computed
    (at the end of that step where ranks compute it together); a second SIGINT does not even save.
    Under mpirun every rank makes the same Trainer and calls `fit`; the ranks share the work, and rank 0 alone writes.

    Args:
        experiment: the experiment, or a shipped name or TOML file.
        out: run folder; `runs/NAME` by default.
        resume: go on with what is in the folder, if anything; without it a folder that holds a training is refused.
        progress: told how far the present stage is.
        open_solver: opens solvers by name and keywords.
        world: the ranks; those of the job by default.

    Attributes:
        solver, targets, correction: what `fit` works with; at its end the correction has the best weights.
        at, best: where it is, and the best weights so far.

    Raises:
        ConfigError: see `load_experiment`.
    """

    def __init__(self, experiment: Experiment | str | Path, out: str | Path | None = None, *, resume: bool = False,
                 progress: Progress = silent, open_solver: Opener | None = None, world: World | None = None):
        self.experiment = experiment if isinstance(experiment, Experiment) else load_experiment(experiment)
        self.folder = Path(out or Path("runs") / (self.experiment.name or self.experiment.solver.name))
        self.resume, self.progress, self._opener = resume, progress, open_solver
        self.world = (world or get_world()).place(self.experiment.parallel.domain, self.experiment.parallel.members)
        self.world.patience = self.experiment.parallel.timeout or LONGEST
        self._writes = self.world.rank == 0

    def fit(self) -> Result:
        """Train, from the beginning or from where the folder's last checkpoint is.

        Returns:
            How it ended.

        Raises:
            CheckpointError: the folder holds a training and resume is False; or its checkpoint is damaged or of another
                experiment.
            DataError: another process trains in the folder, or the reference run is not fit for use.
            SolverError: an epoch without a single step, because every window blew up; or a BlowUpError or SolverStopped when
                training.on_blow_up is "stop". The folder's checkpoint then is of the step before (under MPI, the last one due).
            OutputError: the disk is full, or the folder cannot be written to.
        """
        status: Any = "finished"
        self.at = Position()
        self.best: dict[str, Any] | None = None
        self._signal, self._told, self._begun, self._logged = StopSignal(), 0.0, False, time.monotonic()
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.world.working("the run folder"))
            stack.enter_context(self._signal.watching())
            try:
                saved = self.world.broadcast(self._open_folder(stack) if self._writes else stack.enter_context(unlogged()))
                with self._signal.interrupting():
                    self._open_data()
                self.records: Records | None = None
                if self._writes:
                    self.records = Records(self.folder, saved["history"] if saved else [], self.experiment.offline.steps)
                    stack.callback(self.records.close)
                stack.enter_context(deterministic())
                self._begin(saved)
                self._begun = True
                if self.at.phase == "offline":
                    self._train(self._offline())
                    self._turn_online()
                finished = self._train(self._online())
                status = "finished" if finished else "stopped early"
                self.correction.load_state_dict(self.best or self.correction.state_dict())
                self.correction.eval()
                self._tell_verdict()
            except Interrupted as stop:
                if self.world.size > 1 and not stop.agreed:
                    raise  # the others wait for this rank: the job ends
                if self._begun:
                    self._save()
                status = "interrupted" if stop.number == signal.SIGINT else "terminated"
            except SolverError as error:  # nothing trained is lost: it came before the step that it spoiled was taken
                if self._begun and self.world.size == 1:
                    self._save()
                log.error("ended at %s epoch %d, step %d: %s", self.at.phase, self.at.epoch, self.at.step, error)
                raise
            log.info("%s at %s epoch %d; best is epoch %d", status, self.at.phase, self.at.epoch, self.at.best_epoch)
            self.world.wait()
        at = self.at
        return Result(status, self.folder, at.best_epoch, at.best_validation, at.dropped_in_all, at.skipped_in_all,
                      at.verdict(at.phase))

    def _train(self, phase: Phase) -> bool:
        """Run a phase from `self.at` to its end; False when it stopped early."""
        at, config = self.at, self.experiment.training
        with self._signal.interrupting():
            phase.prepare(self.world)
        self.crew.begin(phase)
        if not at.entered:
            self._close_epoch(phase)
        while at.epoch < phase.epochs:
            if phase.name == "online" and config.early_stop and at.epoch - at.best_epoch >= config.early_stop:
                return False
            order, steps = phase.order(at.epoch), phase.steps(at.epoch)
            self.correction.train(phase.name == "offline")  # online, rollout and sweep must see one function: no dropout
            while at.step < steps:
                began = time.perf_counter()
                self._step(phase, order[at.step * phase.batch : (at.step + 1) * phase.batch])
                at.step += 1
                at.seconds += time.perf_counter() - began
                self._tell(phase, steps)
                if config.checkpoint_every and at.step % config.checkpoint_every == 0:
                    self._save()
                self._boundary()
            self._close_epoch(phase)
        return True

    def _step(self, phase: Phase, indices: np.ndarray) -> None:
        """One optimiser step; not taken, and counted, when loss or gradient is not finite."""
        at, clip = self.at, self.experiment.training.clip if phase.name == "online" else 0.0
        for group in self.optimiser.param_groups:
            group["lr"] = phase.rate(at.epoch, at.step)
        self.optimiser.zero_grad(set_to_none=True)
        value, dropped = self.crew.step(phase, indices, at.epoch, at.step)
        norm = math.nan
        if math.isfinite(value):
            norm = torch.nn.utils.clip_grad_norm_(self.correction.parameters(), clip or math.inf).item()
        at.dropped += dropped
        if math.isfinite(norm):
            self.optimiser.step()
            at.losses += value
            at.norms += norm
        else:
            at.skipped += 1

    def _close_epoch(self, phase: Phase) -> None:
        """Validate, keep the best, write a row and a checkpoint. Changes `self.at` only after the validation."""
        at, began = self.at, time.perf_counter()
        self.correction.eval()
        validation, lost = self.crew.validate(phase, self._boundary)
        self.crew.check_weights()
        steps = at.step
        if steps and at.skipped == steps:
            raise SolverError(f"Not one step of {phase.name} epoch {at.epoch + 1} had a finite loss and gradient "
                              f"({at.dropped} windows blew up): lower training.rate, set training.clip, or shorten "
                              "training.window.")
        rate = phase.rate(at.epoch, max(0, steps - 1))
        window = phase.window(at.epoch)
        taken = steps - at.skipped
        means = (at.losses / taken, at.norms / taken) if taken else (math.nan, math.nan)
        at.epoch += at.entered
        if at.validated(validation, lost) or self.best is None:
            self.best = copied(self.correction.state_dict())
            if phase.name == "online":
                self._export("best.pt")
        self.movement.close_epoch(phase.name, at)
        seconds = round(at.seconds + time.perf_counter() - began, 3)
        self._take_times()
        if self.records is not None:
            self.records.add((phase.name, at.epoch, phase.steps_before(at.epoch), window, rate, means[0], validation, means[1],
                              at.dropped, at.skipped, lost, seconds, *(round(at.times[name], 3) for name in RECORDED)))
        at.dropped_in_all += at.dropped
        at.skipped_in_all += at.skipped
        at.entered, at.step, at.losses, at.norms, at.dropped, at.skipped, at.seconds = True, 0, 0.0, 0.0, 0, 0, 0.0
        at.times = {}
        self._save()

    def _boundary(self) -> None:
        """Between steps: a place where a signal may end the run."""
        if number := self.crew.asked_to_stop():
            raise Interrupted(number, agreed=True)

    def _take_times(self) -> None:
        """Add the seconds of the ranks to those of this epoch."""
        times = self.crew.take_times()
        self.at.times = {name: self.at.times.get(name, 0.0) + times[name] for name in TIMES}
        span, busy = self.at.times["span"], self.at.times["busy"]
        self.at.times["idle"] = max(0.0, 1 - busy / span) if span else 0.0

    def _tell(self, phase: Phase, steps: int) -> None:
        """For whoever watches: how far, how fast, how much time is left."""
        at, now = self.at, time.monotonic()
        epochs = at.epoch + at.step / steps
        if self._writes and (now - self._told > PROGRESS_SECONDS or epochs >= phase.epochs):
            self._told = now
            pace = at.step * phase.batch / at.seconds if at.seconds else 0.0
            text = f"epoch {math.ceil(epochs)} of {phase.epochs}, validation {at.best_validation:.3g}, {pace:.3g} windows/s"
            self.progress(epochs / phase.epochs, f"{phase.name}: {text}")
            if now - self._logged > LOG_SECONDS:
                self._logged = now
                left = at.seconds / at.step * steps * (phase.epochs - epochs)
                log.info("%s step %d of %d: %s, about %.0f s left", phase.name, at.step, steps, text, left)

    def _open_folder(self, stack: contextlib.ExitStack) -> dict[str, Any] | None:
        """Take the run folder; the last checkpoint's content when there is one to go on with."""
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        stack.enter_context(only_writer(self.folder, patience=2.0 if self.resume else 0.0))
        held = [name for name in OUTPUTS if (self.folder / name).exists()]
        if held and not self.resume:
            raise CheckpointError(f"{self.folder} holds a training already ({', '.join(held)}): resume it, or train "
                                  "into another folder.")
        saved = None
        if (self.folder / "last.pt").exists():
            saved = checkpoint.read_checkpoint(self.folder / "last.pt")
            checkpoint.check_same_experiment(saved, self.experiment, self.folder / "last.pt")
        with replacing(self.folder / "experiment.toml") as partial:
            partial.write_text(dump_experiment(self.experiment), encoding="utf-8")
        stack.enter_context(logged(self.folder / "log.txt"))
        return saved

    def _open_data(self) -> None:
        """Open the solver, and the reference run, which is made first when it is not there."""
        experiment, opener = self.experiment, self._opener or opener_by_name
        self.world.doing = "opening the solver"
        shared = {} if self.world.domain is None else {"comm": self.world.domain}
        self.solver = opener(experiment.solver.name, **experiment.solver.options, **shared)
        self._files = input_digests(experiment) if self._writes else {}
        self.whole: SolverSpec = getattr(self.solver, "whole", self.solver.spec)
        if shared and self.whole is self.solver.spec:
            raise ConfigError(f"parallel.domain = {self.world.blocks} needs a solver that says which block it holds, with "
                              "trimtab_block in an adapter or as `trimtab.core.solver` tells.")
        if shared and not (experiment.correction.input_mean or hasattr(self.solver, "undivided")):
            raise ConfigError(f"parallel.domain = {self.world.blocks} with a solver of yours needs a normalisation given in "
                              "[correction], the same for all blocks.")
        if shared and hasattr(self.solver, "surroundings"):  # it may end the job, with a word that would be missed otherwise
            log.info("the code prints on each rank into a trimtab.log of its own, here %s", self.solver.surroundings.log)
        gradient = check_fit(experiment, self.solver, self.solver.spec, self.whole, self.world)[1]  # now, not after hours
        self._check_weight(gradient.steady)
        path = make_reference(experiment, self.whole, open_solver=self._opener, progress=self.progress, world=self.world)
        h = experiment.training.stride * self.solver.spec.dt
        self.targets = Targets(path, self.whole, experiment.reference, h, experiment.observation,
                               block=getattr(self.solver, "block", None))
        log.info("%s: %d runs of %d snapshots, %g apart; h = %g", path, *self.targets.shape[:2], self.targets.interval, h)

    def _check_weight(self, steady: bool) -> None:
        """Refuse a solver.weight of another stride before anything is computed; with the truth in a file, its opening tells."""
        experiment, weight = self.experiment, getattr(self.solver, "weight", None)
        training, reference = experiment.training, experiment.reference
        if not isinstance(weight, SlotWeight):
            return
        if not steady:
            weight.check(training.stride)
        if (experiment.offline.steps or not (experiment.correction.input_mean or training.start_from)) and not reference.file:
            weight.check(max(training.stride, round(reference.interval / self.solver.spec.dt)))

    def _begin(self, saved: dict[str, Any] | None) -> None:
        """Weights, optimiser, random states and position: fresh, or as the checkpoint has them."""
        experiment, seed = self.experiment, self.experiment.training.seed
        self._provenance = provenance() if self._writes else {}
        if saved is None:
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002  a user's network may draw from the global generator
        self.correction = build_correction(experiment, self.solver.spec)
        if saved is None:
            if experiment.training.start_from:
                checkpoint.take_weights(self.correction, experiment.training.start_from, self.solver.spec)
            elif not experiment.correction.input_mean:
                with self._signal.interrupting():
                    fit_normalisation(self.correction, self.solver, self.targets, experiment.training)
            self.correction.load_state_dict(self.world.broadcast(self.correction.state_dict()))
            self.at.phase = "offline" if experiment.offline.steps else "online"
            self.optimiser = self._new_optimiser()
            log.info("begin with %s", self._provenance)
        else:
            check_fields(saved, dataclasses.replace(self.whole, slots=self.solver.spec.slots), self.folder / "last.pt")
            self.at, self.best = Position(**saved["progress"]), saved["best"]
            self.optimiser = self._new_optimiser()
            self.correction.load_state_dict(saved["correction"])
            self.optimiser.load_state_dict(saved["optimiser"])
            checkpoint.restore_random_states(saved["random"])
            log.info("resume at %s epoch %d, step %d", self.at.phase, self.at.epoch, self.at.step)
            for key, value in self._provenance.items():
                if saved[key] != value:
                    log.warning("%s changed from %s to %s: the bits may differ from those of one uninterrupted run", key,
                                saved[key], value)
            if self.at.phase == "online" and self.best is not None:
                self._export("best.pt")  # in case that the folder lost it, or has one of an epoch that is done again
        self.movement = Movement(self.correction)
        self.crew = Crew(self.world, self.correction, seed=seed, timeout=experiment.parallel.timeout,
                         share=visible_size(self.solver.spec) / visible_size(self.whole), signal=self._signal)

    def _offline(self) -> Offline:
        experiment = self.experiment
        return Offline(experiment.offline, experiment.training, self.solver, self.correction, self.targets)

    def _online(self) -> Online:
        return Online(self.experiment.training, self.solver, self.correction, self.targets, self.world)

    def _turn_online(self) -> None:
        """Keep the best of the offline phase, and begin the online phase from it or from a fresh network."""
        verdict = self._tell_verdict()
        self.correction.load_state_dict(self.best or self.correction.state_dict())
        self._export("offline.pt")
        if not self.experiment.training.warm_start:
            torch.manual_seed(self.experiment.training.seed)
            fresh = build_correction(self.experiment, self.solver.spec)
            self.correction.network.load_state_dict(fresh.network.state_dict())
        self.at = Position("online", dropped_in_all=self.at.dropped_in_all, skipped_in_all=self.at.skipped_in_all,
                           before=verdict)
        self.best, self.movement = None, Movement(self.correction)
        self.optimiser = self._new_optimiser()

    def _new_optimiser(self) -> torch.optim.Optimizer:
        name = "adam" if self.at.phase == "offline" else self.experiment.training.optimiser
        return make_optimiser(name, self.correction, self.experiment.training.rate)

    def _tell_verdict(self) -> str:
        if verdict := self.at.verdict(self.at.phase):
            log.warning("%s", verdict)
        return verdict

    def _save(self) -> None:
        """last.pt: everything the next step depends on."""
        def content() -> dict[str, Any]:
            return {**self._content(self.correction.state_dict()), "best": self.best,
                    "optimiser": self.optimiser.state_dict(), "random": checkpoint.random_states()}

        self._take_times()
        self._write("last.pt", content)

    def _export(self, name: str) -> None:
        """best.pt or offline.pt: the best weights so far, to be used and not to be gone on with."""
        def content() -> dict[str, Any]:
            held = self._content(self.best or self.correction.state_dict())
            held["progress"] = {key: held["progress"][key] for key in ("phase", "best_epoch", "best_validation")}
            return {**held, "best": None, "optimiser": None, "random": None, "history": []}

        self._write(name, content)

    def _write(self, name: str, content: Callable[[], dict[str, Any]]) -> None:
        """A checkpoint, by rank 0; the others wait, for a disk may be slow."""
        limit, self.world.limit = self.world.limit, max(self.world.limit, PATIENCE)
        if self._writes:
            checkpoint.save_checkpoint(self.folder / name, content())
        self.world.wait(self.world.limit)
        self.world.limit = limit

    def _content(self, weights: dict[str, Any]) -> dict[str, Any]:
        return {"experiment": dump_experiment(self.experiment), **checkpoint.layout_of(self.whole, self.solver.spec),
                "correction": weights, "progress": dataclasses.asdict(self.at), "files": self._files,
                "history": self.records.history if self.records else [], "folder": str(Path.cwd()), **self._provenance}
