# SPDX-License-Identifier: MIT
"""Gradients of a rollout, by a variant and by the torch twin."""

from __future__ import annotations

import torch

import trimtab
from trimtab.gradient.twin.torch_twin import twin


def correction_for(solver, seed=0, sizes=None):
    torch.manual_seed(seed)
    size = solver.spec.size
    network = trimtab.networks.MLP(sizes or (size, 5, size)).double()
    return trimtab.Correction(network, solver.spec, input_scale=10.0, output_scale=3.0)


def flat(gradients):
    return torch.cat([one.flatten() for one in gradients])


def gradient_of(solver, correction, u0, steps, gradient, loss, **options):
    correction.zero_grad()
    u0 = torch.tensor(u0, requires_grad=True)
    loss(trimtab.rollout(solver, correction, u0, steps, gradient=gradient, **options)).backward()
    return flat(p.grad for p in correction.parameters()), u0.grad


def exact_of(solver, correction, u0, steps, loss):
    correction.zero_grad()
    u0 = torch.tensor(u0, requires_grad=True)
    loss(twin(solver).rollout(u0, steps, correction)).backward()
    return flat(p.grad for p in correction.parameters()), u0.grad


def mean_square(states):
    return states.square().mean()


class Bare:
    """A solver with the three members of the protocol, and whatever else a test gives it."""

    def __init__(self, solver, **others):
        self.spec, self.advance, self.close = solver.spec, solver.advance, solver.close
        self.__dict__.update(others)
