# SPDX-License-Identifier: MIT
"""The correction of a solver with named slots: networks + normalisation -> tendencies in physical units.

The solver computes what a network sees. Inputs of one shape come to it as channels, others as named tensors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.core.errors import ConfigError, InputError
from trimtab.core.spec import Field, Slot, SolverSpec
from trimtab.corrections.correction import Correction, as_numbers, real_tensor, scales_of, varying
from trimtab.corrections.networks import network_dtype
from trimtab.corrections.real_numbers import Precise


class SlotCorrection(Precise):
    """M_theta for slots: (B, M) inputs of all slots, one after the other, to (B, M') tendencies of all slots.

    Where all inputs of a slot have one shape, its network sees (B, inputs, *shape) and returns (B, outputs, *shape);
    else it sees a dictionary, name -> (B, *shape), and returns one (or a tensor, where there is one output).

    Args:
        network: any torch module; for several slots an `nn.ModuleDict`, slot name -> module.
        spec: the solver's, with slots.
        input_mean, input_scale: one number an input field, in the order of the slots, or one for all; the network sees
            (input - mean) / scale.
        output_scale: one number an output field, or one for all; the tendency is scale * output.
        compiled: see `Correction`.

    Raises:
        ConfigError: a solver without slots, a module missing for a slot, a normalisation of another length or a scale of 0.
    """

    def __init__(self, network: nn.Module, spec: SolverSpec, *, features: Sequence[str] = (),
                 input_mean: Sequence[float] | float = 0.0, input_scale: Sequence[float] | float = 1.0,
                 output_scale: Sequence[float] | float = 1.0, compiled: bool = False):
        super().__init__()
        self.compiled = compiled
        if not spec.slots:
            raise ConfigError(f"The solver {spec.solver} has no named slot; use trimtab.Correction.")
        if features:
            raise ConfigError("A solver with named slots says itself what the network sees: leave correction.features empty, and "
                              "name the inputs in the adapter.")
        names = {one.name for one in spec.slots}
        if len(names) > 1 and (not isinstance(network, nn.ModuleDict) or set(network) != names):
            raise ConfigError(f"The solver {spec.solver} has the slots {', '.join(sorted(names))}: give a torch.nn.ModuleDict "
                              "with one network for each.")
        dtype = network_dtype(network)
        inputs, outputs = ([one for slot in spec.slots for one in getattr(slot, kind)] for kind in ("inputs", "outputs"))
        self.network, self.slots = network, spec.slots
        self.input_sizes, self.output_sizes = [one.size for one in inputs], [one.size for one in outputs]
        for name, values, length in (("input_mean", input_mean, len(inputs)), ("input_scale", input_scale, len(inputs)),
                                     ("output_scale", output_scale, len(outputs))):
            self.register_buffer(name, as_numbers(name, values, length, dtype))
        self.input_mean: Tensor
        self.input_scale: Tensor
        self.output_scale: Tensor
        self._rounding = [one.rounding for one in inputs]
        self._slots: dict[str, SlotPart] = {}
        self._parts, first_in, first_out = {}, 0, 0  # of each slot: its scales, the one shape of its inputs, that of its answer
        for slot in spec.slots:
            ins, outs = slice(first_in, first_in + len(slot.inputs)), slice(first_out, first_out + len(slot.outputs))
            shapes, answers = ({one.shape for one in kind} for kind in (slot.inputs, slot.outputs))
            shape = next(iter(shapes)) if len(shapes) == 1 else None
            answer = (len(slot.outputs), *next(iter(answers))) if len(answers) == 1 else ()
            self._parts[slot.name] = (ins, outs, shape, answer)
            first_in, first_out = ins.stop, outs.stop

    @property
    def dtype(self) -> torch.dtype:
        """Precision of networks and normalisation."""
        return self.input_scale.dtype

    def forward(self, seen: Tensor) -> Tensor:
        """Tendencies of all slots, from what their networks see.

        Args:
            seen: (B, M), float32 or float64.

        Returns:
            (B, M') in physical units, dtype of seen.

        Raises:
            InputError: a network's output has another shape.
        """
        sizes = [sum(one.size for one in slot.inputs) for slot in self.slots]
        if seen.shape[-1] != sum(sizes):
            raise InputError(f"The networks of the slots see {sum(sizes)} numbers, and {seen.shape[-1]} came.")
        parts = [self.apply_slot(slot, part) for slot, part in zip(self.slots, seen.split(sizes, -1), strict=True)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)

    @torch.no_grad()
    def check_networks(self) -> None:
        """Try each network on zeros of the shape that its slot hands over, in evaluation mode.

        Raises:
            ConfigError: it raised, or returned another shape; with the shapes, and what to set.
        """
        modes = [(one, one.training) for one in self.modules()]
        self.eval()
        try:
            for slot, size in zip(self.slots, [sum(one.size for one in slot.inputs) for slot in self.slots], strict=True):
                try:
                    with torch.random.fork_rng(devices=[]):
                        self.apply_slot(slot, torch.zeros(2, size, dtype=self.dtype))
                except Exception as error:  # whatever the user's network raises
                    why = f"{type(error).__name__}: {error}".splitlines()[0].rstrip(".")
                    raise ConfigError(f"The network of the slot {slot.name} does not fit: {_hands(slot)}; it raised {why}."
                                      ) from error
        finally:
            for one, training in modes:
                one.training = training

    def slot(self, name: str) -> SlotPart:
        """What fills one slot.

        Args:
            name: the slot's.

        Returns:
            A module (B, m) -> (B, m') over the same networks; the same one at every call.
        """
        if name not in self._slots:
            self._slots[name] = SlotPart(self, next(one for one in self.slots if one.name == name))
        return self._slots[name]

    def apply_slot(self, slot: Slot, seen: Tensor) -> Tensor:
        """One slot's tendencies, (B, m) -> (B, m'); see `forward`."""
        network = self.network[slot.name] if len(self.slots) > 1 else self.network  # type: ignore[index]
        ins, outs, shape, answer = self._parts[slot.name]
        u, members = seen.to(self.dtype), seen.shape[0]
        if shape is not None:
            x = (u.reshape(members, len(slot.inputs), -1) - self.input_mean[ins, None]) / self.input_scale[ins, None]
            output = network(x.reshape(members, len(slot.inputs), *shape))
        else:
            fields = zip(slot.inputs, u.split([one.size for one in slot.inputs], -1), self.input_mean[ins], self.input_scale[ins],
                         strict=True)
            output = network({one.name: ((part - mean) / scale).reshape(-1, *one.shape) for one, part, mean, scale in fields})
        if isinstance(output, Tensor) and output.dtype.is_floating_point and output.shape == (members, *answer):
            tendency = output.reshape(members, len(slot.outputs), -1) * self.output_scale[outs, None]
            return tendency.reshape(members, -1).to(seen.dtype)
        parts = [part * scale for part, scale in zip(_outputs(output, slot, members), self.output_scale[outs], strict=True)]
        return torch.cat(parts, -1).to(seen.dtype)

    @torch.no_grad()
    def fit_normalisation(self, seen: Any, tendencies: Any = None) -> None:
        """Set mean and scale of each input field, and the scale of each output field.

        Args:
            seen: (R, M) float64, numpy or torch; or one array a field, of any number of points.
            tendencies: (R, M') in the fields' units per unit of time, or one array a field; None leaves the output scale as it
                is.

        Raises:
            InputError: an input, or every tendency, that does not vary.
        """
        device = self.input_mean.device
        parts = _by_field(seen, self.input_sizes, device)
        least = torch.stack([one * part.abs().max() for one, part in zip(self._rounding, parts, strict=True)])
        deviations = torch.stack([part.std() for part in parts])
        deviations = torch.where(deviations <= least, 0.0, deviations)  # NaN stays, and is refused
        # An input that is the same everywhere (a constant, a mask at one value) loses its mean, and is divided by its size.
        if not (deviations > 0).any():
            varying("input", deviations)
        self.input_mean.copy_(torch.stack([part.mean() for part in parts]))
        self.input_scale.copy_(scales_of(deviations.where(deviations > 0, deviations.max()), deviations, parts))
        if tendencies is not None:
            outputs = _by_field(tendencies, self.output_sizes, device)
            sizes = torch.stack([part.square().mean().sqrt() for part in outputs])
            self.output_scale.copy_(torch.where(sizes > 0, sizes, varying("tendency", sizes.max())))

    def examples(self, rows: int) -> Tensor:
        """What the networks of the slots may see, by the normalisation: mean and deviation of each input field, as noise.

        Args:
            rows: R.

        Returns:
            (R, M) in the correction's precision, the same at every call.
        """
        sizes = torch.tensor(self.input_sizes, device=self.input_mean.device)
        noise = torch.randn(rows, int(sizes.sum()), generator=torch.Generator().manual_seed(0))
        mean, scale = (one.repeat_interleave(sizes) for one in (self.input_mean, self.input_scale))
        return mean + scale * noise.to(mean)

    def scale_of_outputs(self) -> Tensor:
        """(M',) the output scale at every place of the outputs."""
        return torch.repeat_interleave(self.output_scale, torch.tensor(self.output_sizes, device=self.output_scale.device))


AnyCorrection = Correction | SlotCorrection


class SlotPart(nn.Module):
    """One slot of a `SlotCorrection`, for the solver to call."""

    def __init__(self, whole: SlotCorrection, slot: Slot):
        super().__init__()
        self.whole, self.slot = whole, slot  # the parameters are found here, too: a compiled form is handed their memory

    @property
    def compiled(self) -> bool:
        """See `Correction`."""
        return self.whole.compiled

    @property
    def dtype(self) -> torch.dtype:
        """See `SlotCorrection.dtype`."""
        return self.whole.dtype

    def examples(self, rows: int) -> Tensor:
        """See `SlotCorrection.examples`, of this slot: (R, m)."""
        sizes = [sum(one.size for one in slot.inputs) for slot in self.whole.slots]
        return self.whole.examples(rows).split(sizes, -1)[[one.name for one in self.whole.slots].index(self.slot.name)]

    def forward(self, seen: Tensor) -> Tensor:
        """(B, m) -> (B, m'); see `SlotCorrection.apply_slot`."""
        return self.whole.apply_slot(self.slot, seen)


def _by_field(values: Any, sizes: list[int], device: torch.device) -> Sequence[Tensor]:
    if isinstance(values, list):
        return [torch.as_tensor(one).to(device, torch.float64) for one in values]
    return torch.as_tensor(values).to(device, torch.float64).split(sizes, -1)


def _outputs(output: Any, slot: Slot, members: int) -> list[Tensor]:
    """The network's answer as one (B, size) tensor an output, its shape checked."""
    if isinstance(output, Mapping):
        missing = [one.name for one in slot.outputs if one.name not in output]
        if missing or len(output) != len(slot.outputs):
            raise InputError(f"The network of the slot {slot.name} returned {', '.join(map(str, output)) or 'nothing'}; it must "
                             f"return {', '.join(one.name for one in slot.outputs)}.")
        parts, expected = [output[one.name] for one in slot.outputs], [(members, *one.shape) for one in slot.outputs]
        for part, shape, one in zip(parts, expected, slot.outputs, strict=True):
            _check(part, [shape], f"{slot.name}, output {one.name}")
        return [part.reshape(members, -1) for part in parts]
    if len({one.shape for one in slot.outputs}) > 1:
        raise InputError(f"The outputs of the slot {slot.name} have several shapes ({_shapes(slot.outputs)}): its network must "
                         "return a dictionary, name -> (B, *shape).")
    shape = (members, len(slot.outputs), *slot.outputs[0].shape)
    _check(output, [shape, (members, *shape[2:])] if len(slot.outputs) == 1 else [shape], slot.name)
    return list(output.reshape(members, len(slot.outputs), -1).unbind(1))


def _check(output: Any, shapes: list[tuple[int, ...]], where: str) -> None:
    found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    if found not in shapes:
        raise InputError(f"The network of the slot {where} returned {found}; it must return a tensor of shape {shapes[0]}: mend "
                         "the network's last layer.")
    real_tensor(output, f"The network of the slot {where}")


def _hands(slot: Slot) -> str:
    """What a slot hands to its network, and what to set for it."""
    parts = []
    for fields in (slot.inputs, slot.outputs):
        shapes = {one.shape for one in fields}
        text = ", ".join(["B", str(len(fields)), *map(str, fields[0].shape)])
        named = ", ".join(f"{one.name} ({', '.join(['B', *map(str, one.shape)])})" for one in fields)
        parts.append(f"({text})" if len(shapes) == 1 else f"a dictionary of {named}")
    return (f"the slot hands {parts[0]} and takes {parts[1]}: set inputs = {len(slot.inputs)}, outputs = {len(slot.outputs)} (or "
            "the channels or sizes of a shipped network) in [network], or mend its layers")


def _shapes(fields: Sequence[Field]) -> str:
    return ", ".join(f"{one.name} {one.shape}" for one in fields)


def slot_sizes(spec: SolverSpec) -> tuple[int, int]:
    """Lengths M of the inputs and M' of the outputs of all slots."""
    inputs, outputs = (sum(math.prod(one.shape) for slot in spec.slots for one in getattr(slot, kind))
                       for kind in ("inputs", "outputs"))
    return inputs, outputs
