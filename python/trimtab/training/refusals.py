# SPDX-License-Identifier: MIT
"""What a training refuses before anything is computed: a network, gradient or weights that do not fit the solver."""

from __future__ import annotations

from trimtab.config.experiment import Experiment
from trimtab.core.errors import ConfigError
from trimtab.core.loss import field_weights
from trimtab.core.solver import Solver
from trimtab.core.spec import SolverSpec
from trimtab.corrections.factory import build_correction
from trimtab.corrections.slots import AnyCorrection
from trimtab.gradient import Gradient, get_gradient
from trimtab.parallel.world import World


def check_fit(experiment: Experiment, solver: Solver, spec: SolverSpec, whole: SolverSpec,
              world: World | None = None) -> tuple[AnyCorrection, Gradient]:
    """Refuse an experiment that its solver cannot be trained with.

    Args:
        experiment: whose sections [network], [correction], [offline] and [training] are looked at.
        solver: its solver, open.
        spec: of what of the solver is on this rank.
        whole: of the undivided solver.
        world: the ranks that train together; None for this one alone.

    Returns:
        The untrained correction, and the gradient variant.

    Raises:
        ConfigError: a network that does not exist or does not fit; training.start_from with an offline phase; an unknown
            gradient, options that it does not take, or a solver that lacks what it needs; weights of unknown fields.
    """
    correction = build_correction(experiment, spec)
    if experiment.training.start_from and experiment.offline.steps:
        raise ConfigError("training.start_from takes the place of an offline phase: set offline.steps = 0, or leave it out.")
    gradient = get_gradient(experiment.training.gradient, **experiment.training.gradient_options)
    if world is not None:
        gradient.join(world.cohort, world.holders)
    gradient.check(solver)
    field_weights(whole, experiment.training.weights)
    return correction, gradient
