# SPDX-License-Identifier: MIT
"""The sections of an experiment as frozen dataclasses; each refuses values out of range when it is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trimtab.core.errors import ConfigError

Options = Mapping[str, Any]
FILTERS = ("none", "gaussian", "sharp")
GRADIENTS = ("static", "none", "euler", "tangent", "discrete", "ensemble", "exact")  # of trimtab.gradient, which needs torch
OPTIMISERS = ("adam", "adamw", "sgd")
CLOSURES = ("none", "smagorinsky", "offline", "online")
NOISE_UNITS = ("field", "climate")
REGIONS = ("all", "left", "right")
STARTS = ("truth", "observed")


def _at_least(section: str, values: Any, minimum: float, *keys: str) -> None:
    for key in keys:
        if not getattr(values, key) >= minimum:
            raise ConfigError(f"{section}.{key} = {getattr(values, key)} must be at least {minimum:g}.")


def _positive(section: str, values: Any, *keys: str) -> None:
    for key in keys:
        if not getattr(values, key) > 0:
            raise ConfigError(f"{section}.{key} = {getattr(values, key)} must be positive.")


def _one_of(section: str, values: Any, key: str, allowed: tuple[str, ...]) -> None:
    if getattr(values, key) not in allowed:
        raise ConfigError(f"{section}.{key} = {getattr(values, key)!r} must be one of {', '.join(allowed)}.")


@dataclass(frozen=True)
class NetworkConfig:
    """[network]: `name` of a shipped network or "package.module:Class"; every other key is its argument."""

    name: str = "MLP"
    options: Options = field(default_factory=dict)


@dataclass(frozen=True)
class SolverConfig:
    """[solver]: `name`, and every other key as `trimtab.open_solver` takes it."""

    name: str = ""
    options: Options = field(default_factory=dict)


@dataclass(frozen=True)
class CorrectionConfig:
    """[correction]: what the network sees and in which precision.

    Args:
        features: channels given to a network on a grid, of "q", "psi", "u", "v", "strain"; the name of its one field for one
            on a line; empty for a system without a grid.
        dtype: "float32" or "float64", the network's precision; the solver stays in float64.
        input_mean, input_scale, output_scale: fixed normalisation, one value a channel (or component) or one for all;
            when all three are empty it is fitted to the training data.
        compiled: whether the solver calls it without Python, see `Correction`; takes a C++ compiler, once a structure.
    """

    features: tuple[str, ...] = ()
    dtype: str = "float32"
    input_mean: tuple[float, ...] = ()
    input_scale: tuple[float, ...] = ()
    output_scale: tuple[float, ...] = ()
    compiled: bool = False

    def __post_init__(self) -> None:
        _one_of("correction", self, "dtype", ("float32", "float64"))
        given = [bool(one) for one in (self.input_mean, self.input_scale, self.output_scale)]
        if any(given) and not all(given):
            raise ConfigError("Give all of correction.input_mean, input_scale and output_scale, or none, to have them "
                              "fitted.")


@dataclass(frozen=True)
class ReferenceConfig:
    """[reference]: the truth that trains and scores; made by a finer or complete solver, or read from `file`.

    Args:
        file: a netCDF or Zarr of the solver's fields with dimensions (run, time, ...); empty to make it.
        hidden: hidden field -> what stands for it, where the truth does not know it: the name of a field of its shape, whose
            values it takes (an old time level), or a number (a counter, a flag). With these a solver must start cold from
            visible fields alone; `trimtab couple check` says how well it does.
        solver: what the truth's solver changes of [solver] (resolution, dt, the missing term); with a `name` it stands
            alone, and the truth is read from its fields of the same names.
        interval: time between snapshots; 0 for the outer step h. A divisor or a multiple of h: leads between the
            snapshots of sparse targets do not enter the loss.
        snapshots: snapshots a run, the first included.
        spin_up: time discarded with the truth's solver before the first snapshot.
        coarse: changes of [solver] for a cheaper spin-up before that, with a key `spin_up`; empty for none.
        initial: initial state of a system without a grid; empty for a random vorticity field on a grid, a random field of
            large waves on a line. One number stands for all.
        perturbation: standard deviation of what is added to `initial`: to every run but the first, or to every run when
            `initial` is one number.
        filter: "none", "gaussian" or "sharp", from the truth's grid to the solver's.
        filter_width: width of the Gaussian filter in grid lengths of [solver].
        training_runs, validation_runs, test_runs: runs for each purpose; no run serves two.
        validation_windows: with validation_runs = 0, this many of the last windows of each training run validate.
        seed: random initial states.
    """

    file: str = ""
    hidden: Options = field(default_factory=dict)
    solver: Options = field(default_factory=dict)
    interval: float = 0.0
    snapshots: int = 600
    spin_up: float = 0.0
    coarse: Options = field(default_factory=dict)
    initial: tuple[float, ...] = ()
    perturbation: float = 0.0
    filter: str = "none"
    filter_width: float = 2.0
    training_runs: int = 8
    validation_runs: int = 1
    test_runs: int = 2
    validation_windows: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        _at_least("reference", self, 0, "interval", "spin_up", "perturbation", "test_runs", "validation_runs",
                  "validation_windows", "seed")
        _at_least("reference", self, 1, "training_runs")
        _at_least("reference", self, 2, "snapshots")
        _positive("reference", self, "filter_width")
        _one_of("reference", self, "filter", FILTERS)
        if bool(self.validation_runs) == bool(self.validation_windows):
            raise ConfigError("Give either reference.validation_runs or reference.validation_windows, and not both: "
                              "something has to judge the network while it trains.")


@dataclass(frozen=True)
class ObservationConfig:
    """[observation]: what training gets to see of the truth, y = H u + noise; without the section, all of it.

    It holds for the loss, for the labels of the offline phase and for the windows that validate; scores compare with the truth
    itself. Targets that are sparse in time come from reference.interval, a multiple of the outer step.

    Args:
        noise: standard deviation of the noise, one number a field or one for all; empty for none. Independent normal numbers
            that depend on nothing but seed, run and snapshot.
        noise_unit: "field" (the field's own unit) or "climate" (standard deviations of the field over the training runs).
        fields: names of the fields that are observed; empty for all.
        components: numbers, from 0, of the observed components of the flat state; empty for all.
        every: of each field every k-th point along each of its dimensions.
        region: "all", or the "left" or "right" half of each field's last dimension.
        fraction: share of the points left by all of these, drawn once with the seed.
        start: initial states of the windows: "truth", the full state without noise (what a reanalysis would give at best); or
            "observed", the best linear estimate from the first observation and the climate of the training runs, see
            `observation.Estimate`.
        climate_states: states that the climate is taken from, evenly spread over the training runs.
        seed: noise, and the points of `fraction`.
    """

    noise: tuple[float, ...] = ()
    noise_unit: str = "field"
    fields: tuple[str, ...] = ()
    components: tuple[int, ...] = ()
    every: int = 1
    region: str = "all"
    fraction: float = 1.0
    start: str = "truth"
    climate_states: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        _at_least("observation", self, 1, "every")
        _at_least("observation", self, 2, "climate_states")
        _at_least("observation", self, 0, "seed")
        _positive("observation", self, "fraction")
        _one_of("observation", self, "noise_unit", NOISE_UNITS)
        _one_of("observation", self, "region", REGIONS)
        _one_of("observation", self, "start", STARTS)
        if self.fraction > 1:
            raise ConfigError(f"observation.fraction = {self.fraction} is a share of the points: give a number up to 1.")
        if any(not one >= 0 for one in self.noise):
            raise ConfigError(f"observation.noise = {list(self.noise)} holds standard deviations, which are not negative.")


@dataclass(frozen=True)
class OfflineConfig:
    """[offline]: the a priori phase: baseline, and warm start of the online phase; steps = 0 leaves it out.

    The label is the subgrid tendency seen from the solver: (truth(t + h) - one solver step from truth(t)) / h; with an
    [observation] the observed components alone get one, from observed values.

    Args:
        steps: optimiser steps.
        batch: states a step.
        microbatch: states computed at once, see [training]; 0 chooses.
        rate, rate_end: learning rate of Adam, and where its cosine decay ends.
    """

    steps: int = 0
    batch: int = 64
    microbatch: int = 0
    rate: float = 1e-3
    rate_end: float = 0.0

    def __post_init__(self) -> None:
        _at_least("offline", self, 0, "steps", "microbatch", "rate_end")
        _at_least("offline", self, 1, "batch")
        _positive("offline", self, "rate")


@dataclass(frozen=True)
class TrainingConfig:
    """[training]: the online phase.

    Args:
        gradient: name of a gradient variant.
        gradient_options: its arguments.
        window: outer steps n of a window.
        stride: inner steps an outer step.
        batch: windows a step.
        microbatch: windows computed at once. Every batch is cut so, on one rank as on a thousand; the ranks share the
            microbatches. The bits depend on it, and not on the number of ranks. 0 chooses by the size of the state: the whole
            batch of a small system, for which a call costs the same for one window as for hundreds, so that ranks could save
            nothing; single windows of a large one.
        epochs: passes over the training windows.
        steps_per_epoch: steps a pass; 0 for all windows.
        optimiser: "adam", "adamw" or "sgd".
        rate, rate_end: learning rate, and where its cosine decay ends; equal for a constant rate.
        rate_drop_every: epochs after which the rate is divided by 10, again and again, in place of the cosine; 0 for
            never.
        clip: largest 2-norm of the gradient of the loss, which has no unit; 0 for none.
        weights: field -> factor of its squared differences in the loss, each of which is divided by the field's standard
            deviation first (`loss.field_scale`): a number; a list, one per index of the field's first dimension, as netCDF
            lists them; or {dimension = list}. 1 where nothing is given, 0 leaves out. The offline phase takes those of the
            fields that the network's outputs are named after.
        loss_at: lead times in outer steps that enter the loss; empty for every one.
        curriculum: (epoch, window) pairs: from that epoch on (the first is 0), windows of that length; validation
            always uses `window`.
        warm_start: begin from the offline-trained network; else from a fresh one.
        start_from: a checkpoint (offline.pt or best.pt of another run, of the same network and features) whose weights and
            normalisation the online phase begins with, in place of an offline phase; empty for none.
        early_stop: epochs without a better validation loss after which to stop; 0 for never.
        validate_windows: validation windows an epoch; 0 for all.
        checkpoint_every: steps between checkpoints; 0 for once an epoch.
        on_blow_up: "drop" the window and count it, or "stop".
        seed: weights, order of windows, everything random in training.
    """

    gradient: str = "static"
    gradient_options: Options = field(default_factory=dict)
    window: int = 10
    stride: int = 1
    batch: int = 16
    microbatch: int = 0
    epochs: int = 10
    steps_per_epoch: int = 0
    optimiser: str = "adam"
    rate: float = 1e-3
    rate_end: float = 0.0
    rate_drop_every: int = 0
    clip: float = 0.0
    weights: Options = field(default_factory=dict)
    loss_at: tuple[int, ...] = ()
    curriculum: tuple[tuple[int, int], ...] = ()
    warm_start: bool = True
    start_from: str = ""
    early_stop: int = 0
    validate_windows: int = 256
    checkpoint_every: int = 0
    on_blow_up: str = "drop"
    seed: int = 0

    def __post_init__(self) -> None:
        _at_least("training", self, 1, "window", "stride", "batch")
        _at_least("training", self, 0, "microbatch", "epochs", "steps_per_epoch", "rate_end", "rate_drop_every", "clip",
                  "early_stop", "validate_windows", "checkpoint_every", "seed")
        _positive("training", self, "rate")
        _one_of("training", self, "gradient", GRADIENTS)
        _one_of("training", self, "optimiser", OPTIMISERS)
        _one_of("training", self, "on_blow_up", ("drop", "stop"))
        if any(not 1 <= lead <= self.window for lead in self.loss_at):
            raise ConfigError(f"training.loss_at = {list(self.loss_at)} must hold lead times from 1 to training.window "
                              f"= {self.window}.")
        epochs = [epoch for epoch, _ in self.curriculum]
        if epochs != sorted(set(epochs)) or any(e < 0 or not 1 <= n <= self.window for e, n in self.curriculum):
            raise ConfigError(f"training.curriculum = {[list(one) for one in self.curriculum]} must hold (epoch, "
                              "window) pairs with rising epochs and windows from 1 to training.window = "
                              f"{self.window}.")

    def window_at(self, epoch: int) -> int:
        """Length of the windows of an epoch, from the curriculum."""
        return next((n for start, n in reversed(self.curriculum) if epoch >= start), self.window)


@dataclass(frozen=True)
class ParallelConfig:
    """[parallel]: how the ranks of an MPI job work together.

    Args:
        domain: ranks that share one solver, which gets their communicator as `comm`; 1 for a solver that knows no MPI.
        members: so many ranks (times domain) share the members of each window's ensemble, with gradient = "ensemble"; 1 for
            whole windows a rank.
        timeout: seconds after which a job ends because a rank hangs; 0 for half a minute and twenty times the longest step, and
            outside of training for an hour without a heartbeat.
    """

    domain: int = 1
    members: int = 1
    timeout: float = 0.0

    def __post_init__(self) -> None:
        _at_least("parallel", self, 1, "domain", "members")
        _at_least("parallel", self, 0, "timeout")


@dataclass(frozen=True)
class ScoreConfig:
    """[score]: how the held-out runs judge.

    Args:
        leads: lead times in outer steps.
        starts: initial states a test run.
        long_steps: outer steps of the long run for spectra, PDF and stability.
        closures: of "none", "smagorinsky", "offline", "online".
        max_wavenumber: largest annulus of the spectrum errors; 0 for all the solver resolves.
        valid_threshold: error, over the climatological standard deviation, up to which a forecast is valid.
        lyapunov_time: in the solver's unit of time, to express valid times in; 0 when not known.
        smagorinsky: constants to try; the best on the training runs is scored.
    """

    leads: tuple[int, ...] = (1, 5, 10, 20)
    starts: int = 4
    long_steps: int = 1000
    closures: tuple[str, ...] = ("none", "offline", "online")
    max_wavenumber: int = 0
    valid_threshold: float = 0.4
    lyapunov_time: float = 0.0
    smagorinsky: tuple[float, ...] = (0.05, 0.1, 0.15, 0.2, 0.25)

    def __post_init__(self) -> None:
        _at_least("score", self, 1, "starts", "long_steps")
        _at_least("score", self, 0, "max_wavenumber", "lyapunov_time")
        _positive("score", self, "valid_threshold")
        for one in self.closures:
            if one not in CLOSURES:
                raise ConfigError(f"score.closures holds {one!r}; known are {', '.join(CLOSURES)}.")
