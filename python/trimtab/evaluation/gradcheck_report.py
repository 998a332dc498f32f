# SPDX-License-Identifier: MIT
"""`trimtab gradcheck`: the check of `gradient/gradcheck/check.py` on an experiment's own solver, network and reference run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure

from trimtab import gradient
from trimtab.bridge.opener import open_solver
from trimtab.config.experiment import Experiment, load_experiment
from trimtab.config.sections import OfflineConfig, TrainingConfig
from trimtab.core.atomic_files import replacing
from trimtab.core.errors import CheckpointError, ConfigError
from trimtab.core.failures import HYBRID, UNSTABLE, Failures
from trimtab.core.progress import silent
from trimtab.core.solver import Solver
from trimtab.corrections.factory import build_correction
from trimtab.corrections.slots import AnyCorrection
from trimtab.data.reference import Progress, make_reference
from trimtab.data.windows import Targets
from trimtab.evaluation.figures import RC
from trimtab.gradient.gradcheck.check import gradcheck
from trimtab.gradient.gradcheck.table import YARDSTICK, CheckTable
from trimtab.training.checkpoint import load_correction
from trimtab.training.offline import Offline, fit_normalisation
from trimtab.training.online import loss_scale
from trimtab.training.run_folder import check_place, load_run, warn_of_files

COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


def check_gradients(
    source: str | Path,
    out: str | Path | None = None,
    *,
    windows: Sequence[int] = (),
    gradients: Sequence[str] = (),
    changes: Sequence[str] = (),
    starts: int = 4,
    directions: int = 8,
    fit: int = 0,
    progress: Progress = silent,
) -> tuple[CheckTable, Path]:
    """Check the gradients of an experiment (its untrained network) or of a run (its best checkpoint).

    Far from the truth the loss is steep and most gradients point down; near it, where a training has to end, they differ
    more. So check an experiment with its network fitted offline for some steps, too, before a long training. The loss is that
    of the training: each field in its own standard deviation over the training runs.

    Args:
        source: a run folder, or an experiment's shipped name or TOML file.
        out: folder for gradcheck.csv, gradcheck.txt (the sentence) and gradcheck.png; by default the run folder, or
            `runs/NAME`.
        windows: lengths in outer steps; empty for half, once, twice and four times training.window, as far as the
            reference run reaches.
        gradients: names of variants; empty for "static", "ensemble" and the experiment's own.
        changes: of an experiment's keys, as "section.key=value".
        starts: validation windows that enter the loss.
        directions: random directions.
        fit: of an experiment, steps of the offline phase before the check.
        progress: told how far it is.

    Returns:
        The table, and the folder.

    Raises:
        ConfigError: changes of a run, an unknown variant or one the solver cannot give, or windows without a target.
        CheckpointError: a run without a best checkpoint.
        DataError: a reference run that does not fit or is too short.
        SolverError: see `gradcheck`.
    """
    run = load_run(source) if (Path(source) / "experiment.toml").is_file() else None
    if run and (changes or fit):
        raise ConfigError(f"{source} is a run: its experiment and network cannot be changed; give the experiment instead.")
    if run and "best" not in run.checkpoints:
        raise CheckpointError(f"{source} has no best.pt yet: let the training reach its first online checkpoint.")
    if starts < 1 or fit < 0:
        raise ConfigError(f"gradcheck needs at least one start and 0 or more steps of fitting, not {starts} and {fit}.")
    if run:
        check_place(run)
        warn_of_files(run)
    experiment = run.experiment if run else load_experiment(source, changes)
    training = experiment.training
    solver = open_solver(experiment.solver.name, **experiment.solver.options)
    try:
        h = training.stride * solver.spec.dt
        reference = make_reference(experiment, solver.spec, progress=progress)
        targets = Targets(reference, solver.spec, experiment.reference, h, experiment.observation)
        try:
            lengths = list(windows) or _lengths(targets, training.window)
            correction = (load_correction(run.checkpoints["best"], solver.spec) if run
                          else beginner(experiment, solver, targets, fit))
            held_out = targets.windows("validation", max(lengths))
            leads = targets.leads(max(lengths))
            chosen = held_out.spread(starts)
            first, observed = held_out.start(chosen), held_out.observe(chosen, leads)
            divided_by = loss_scale(targets.windows("training", training.window), training.weights)
        finally:
            targets.close()
        scale, name = _time_scale(experiment, solver, first)
        with Failures("rollouts", UNSTABLE, first=HYBRID).watching():
            table = gradcheck(solver, correction, first, observed, lengths, gradients=_variants(training, gradients),
                              directions=directions, stride=training.stride, leads=leads, time_scale=scale, time_name=name,
                              seed=training.seed, components=targets.counted, scale=divided_by,
                              progress=progress)
    finally:
        solver.close()
    folder = Path(out) if out else run.folder if run else Path("runs") / (experiment.name or experiment.solver.name)
    _write(table, folder)
    return table, folder


def _write(table: CheckTable, folder: Path) -> None:
    """The table, its sentence and its figure."""
    folder.mkdir(parents=True, exist_ok=True)
    for file, text in (("gradcheck.csv", table.to_csv()), ("gradcheck.txt", table.recommendation() + "\n")):
        with replacing(folder / file) as partial:
            partial.write_text(text, encoding="utf-8")
    draw_gradcheck(table, folder / "gradcheck.png")


def draw_gradcheck(table: CheckTable, path: Path) -> Path:
    """Over the window's length: the share of the steepest descent that each variant keeps, its error, and its cost.

    Args:
        table: the check.
        path: the PNG to write.

    Returns:
        The file.
    """
    names = list(dict.fromkeys(row.gradient for row in table.rows))
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(11.5, 3.5), layout="constrained")
        panels = figure.subplots(1, 3)
        ticks = [row.steps for row in table.of(names[0])]
        for name, colour in zip(names, _colours(names), strict=True):
            rows = table.of(name)
            steps = [row.steps for row in rows]
            style: dict[str, Any] = {"color": colour, "marker": "o", "markersize": 4,  # lines that coincide both show
                                     "linestyle": "-" if name == names[0] else (names.index(name), (4, len(names)))}
            panels[0].plot(steps, [row.cosine for row in rows], label=name, **style)
            panels[0].plot(steps, [row.cosine_exact for row in rows], linestyle="none", marker="x", color=colour)
            if name == YARDSTICK:
                continue
            panels[1].plot(steps, [row.error for row in rows], **style)
            panels[2].plot(steps, [row.solver_steps for row in rows], **style)
        panels[0].axhline(1 - table.tolerance, color="#7f7f7f", linewidth=1, linestyle=(0, (1, 2)))
        panels[0].set(title="cosine to the true gradient (x: by the twin)", ylim=(None, 1.01))
        panels[1].set(title="relative error |a - g| / |g|", yscale="log")
        panels[2].set(title="cost: solver steps of one state", yscale="log")
        for axes in panels:
            axes.set(xscale="log", xlabel="window, outer steps")
            axes.set_xticks(ticks, map(str, ticks))
            axes.minorticks_off()
        if table.time_name:
            above = panels[1].secondary_xaxis("top")
            above.set_xticks(ticks, [f"{row.scaled_time:.2g}" for row in table.of(names[0])])
            above.set_xlabel(table.time_name)
            above.minorticks_off()
        panels[0].legend()
        figure.suptitle(table.recommendation(), fontsize=9.5, wrap=True)
        with replacing(path) as partial:
            figure.savefig(partial, format="png")
    return path


def _colours(names: Sequence[str]) -> list[str]:
    others = iter(COLOURS * (1 + len(names) // len(COLOURS)))
    return ["#000000" if name == YARDSTICK else next(others) for name in names]


def _lengths(targets: Targets, window: int) -> list[int]:
    """Half, once, twice and four times the window, as far as validation windows go."""
    wanted = sorted({max(1, window // 2), window, 2 * window, 4 * window})
    gap = targets.gap
    reach = (targets.shape[1] - 1) // targets.skip if gap == 1 else (targets.shape[1] - 1) * gap
    if targets.reference.validation_windows:
        reach -= targets.reference.validation_windows // (targets.skip if gap == 1 else 1)
    return [n for n in sorted({max(gap, n // gap * gap) for n in wanted}) if n <= max(window, reach // 2)]


def beginner(experiment: Experiment, solver: Solver, targets: Targets, fit: int) -> AnyCorrection:
    """An experiment's network as a training begins with it, or after some steps of the offline phase.

    Args:
        experiment: the experiment.
        solver, targets: its own.
        fit: steps of the offline phase; 0 for the untrained network.

    Returns:
        The correction, in evaluation mode.
    """
    torch.manual_seed(experiment.training.seed)
    correction = build_correction(experiment, solver.spec)
    if not experiment.correction.input_mean:
        fit_normalisation(correction, solver, targets, experiment.training)
    if not fit:
        return correction.eval()
    # Fast and short: the labels decide the way, not the optimiser.
    phase = Offline(OfflineConfig(steps=fit, rate=1e-2), experiment.training, solver, correction, targets)
    optimiser = torch.optim.Adam(correction.parameters())
    for epoch in range(phase.epochs):
        order = phase.order(epoch)
        for step in range(phase.steps(epoch)):
            optimiser.param_groups[0]["lr"] = phase.rate(epoch, step)
            optimiser.zero_grad()
            phase.loss(order[step * phase.batch : (step + 1) * phase.batch], epoch)[0].backward()
            optimiser.step()
    return correction.eval()


def _variants(training: TrainingConfig, names: Sequence[str]) -> list[Any]:
    """Variants by name; the experiment's own with its options."""
    wanted = list(names) or list(dict.fromkeys(("static", "ensemble", training.gradient)))
    return [gradient.get_gradient(name, **(training.gradient_options if name == training.gradient else {}))
            for name in wanted]


def _time_scale(experiment: Experiment, solver: Solver, states: np.ndarray) -> tuple[float, str]:
    """The time over which the flow forgets, where it is known, and its name."""
    if experiment.score.lyapunov_time:
        return experiment.score.lyapunov_time, "Lyapunov times"
    if solver.spec.solver == "qg":
        return 1 / float(np.sqrt(np.mean(states**2))), "eddy times"
    return 0.0, ""
