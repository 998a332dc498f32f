# SPDX-License-Identifier: MIT
"""From an experiment's sections to a correction."""

from __future__ import annotations

import inspect
import io
from typing import Any

import torch

from trimtab.config.experiment import Experiment
from trimtab.core.errors import ConfigError
from trimtab.core.spec import Slot, SolverSpec
from trimtab.corrections.correction import Correction
from trimtab.corrections.networks import build_network, network_class
from trimtab.corrections.real_numbers import in_precision
from trimtab.corrections.slots import AnyCorrection, SlotCorrection


def build_correction(experiment: Experiment, spec: SolverSpec) -> AnyCorrection:
    """The untrained correction of an experiment, from torch's global generator.

    Args:
        experiment: whose sections [network] and [correction] count.
        spec: the solver's.

    Returns:
        The correction, with the normalisation that the experiment gives, else none.

    Raises:
        ConfigError: a network or features that do not exist or do not fit; for a coefficient, an offline phase, which has no
            label for it, or a normalisation left to be fitted; or a network that keeps what a checkpoint cannot.
    """
    config = experiment.correction
    if spec.coefficient is not None and experiment.offline.steps:
        raise ConfigError(f"The slot of {spec.solver} takes a coefficient, {spec.coefficient.name}, for which the truth has no "
                          "label: set offline.steps = 0, it is trained online.")
    if spec.coefficient is not None and not config.input_mean:
        raise ConfigError(f"The slot of {spec.solver} takes a coefficient, {spec.coefficient.name}, whose scale no data tell: "
                          "give correction.input_mean, input_scale and output_scale.")
    network = in_precision(_networks(experiment, spec), getattr(torch, config.dtype))
    given = {}
    if config.input_mean:
        given = {name: getattr(config, name) for name in ("input_mean", "input_scale", "output_scale")}
    kind = SlotCorrection if spec.slots else Correction
    correction = kind(network, spec, features=config.features, compiled=config.compiled, **given)
    if isinstance(correction, SlotCorrection):
        correction.check_networks()
    _check_kept(correction)
    return correction


def _networks(experiment: Experiment, spec: SolverSpec) -> torch.nn.Module:
    """The network; for a solver with several slots one for each, whose arguments [network.SLOT] changes."""
    name, options = experiment.network.name, dict(experiment.network.options)
    if not spec.slots:
        return build_network(name, **options)
    if len(spec.slots) == 1:
        return build_network(name, **_counted(name, options, spec.slots[0]))
    own = [(slot, dict(options.pop(slot.name, {}))) for slot in spec.slots]
    networks = {}
    for slot, changes in own:
        kind = changes.pop("name", name)
        networks[slot.name] = build_network(kind, **_counted(kind, {**options, **changes}, slot))
    return torch.nn.ModuleDict(networks)


def _counted(name: str, options: dict[str, Any], slot: Slot) -> dict[str, Any]:
    """The arguments of a slot's network; its whole numbers `inputs` and `outputs`, if it takes such, are the slot's numbers of
    fields unless they are given."""
    known = inspect.signature(network_class(name)).parameters
    counts = {"inputs": len(slot.inputs), "outputs": len(slot.outputs)}
    taken = {key: count for key, count in counts.items() if key in known
             and (known[key].default is inspect.Parameter.empty or type(known[key].default) is int)}
    return {**taken, **options}


def _check_kept(correction: AnyCorrection) -> None:
    """Refuse now, not after hours, what a network keeps beside tensors and no checkpoint could give back.

    Raises:
        ConfigError: a state of `get_extra_state` that is no plain thing, or that nothing takes back.
    """
    kept = {name: value for name, value in correction.state_dict().items() if not isinstance(value, torch.Tensor)}
    if not kept:
        return
    file = io.BytesIO()
    try:
        torch.save(kept, file)
        file.seek(0)
        torch.load(file, weights_only=True)
        correction.load_state_dict(correction.state_dict())
    except Exception as error:  # pickle, torch and the network's own set_extra_state raise many kinds
        why = f"{type(error).__name__}: {error}".splitlines()[0][:200].rstrip(".")
        raise ConfigError(f"The network keeps {', '.join(kept)} in its checkpoint, which could not be read again ({why}): have "
                          "get_extra_state return tensors, numbers, strings, lists and dictionaries of them only, and "
                          "set_extra_state take them.") from error
