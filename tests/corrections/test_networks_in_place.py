# SPDX-License-Identifier: MIT
"""A first layer that works in place changes neither the solver's state, nor what is recorded, nor the gradient."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
import torch
from torch import nn

import trimtab
from trimtab.bridge.aot_compile import NotCompiledError, export_program
from trimtab.bridge.slot_callback import Callback
from trimtab.core.errors import CorrectionError


class Behind(nn.Module):
    """In place where no version counter of torch's sees it."""

    def __init__(self, linear):
        super().__init__()
        self.linear = linear

    def forward(self, u):
        u.data.clamp_(min=0)
        return self.linear(u)


def pair():
    """The same bare float64 network, in place and not."""
    torch.manual_seed(0)
    linear = nn.Linear(3, 3).double()
    return nn.Sequential(nn.ReLU(inplace=True), linear), nn.Sequential(nn.ReLU(), linear)


@pytest.mark.parametrize("gradient", ["static", "euler", "tangent", "discrete", "exact", "ensemble"])
def test_gradients_are_those_of_the_network_that_works_beside(gradient, open_solver, random_states):
    solver, found, states = open_solver("lorenz63"), [], []
    for network in pair():
        u0 = torch.from_numpy(random_states(solver) - 6.0).requires_grad_()
        before = u0.detach().clone()
        window = trimtab.rollout(solver, network, u0, 4, gradient=gradient)
        recorded = window.detach().clone()
        network.zero_grad()
        window.square().mean().backward()
        assert torch.equal(window, recorded) and torch.equal(u0, before)
        found.append(torch.cat([u0.grad.flatten(), *(one.grad.flatten() for one in network.parameters())]))
        states.append(recorded)
    assert (states[0] < 0).any()
    assert torch.equal(*states)
    assert torch.equal(*found)


def test_a_coefficient_and_a_twin_see_a_copy(open_solver, random_states):
    solver = open_solver("lorenz63", slot="beta")
    found = []
    for inplace in (True, False):
        torch.manual_seed(0)
        network = nn.Sequential(nn.ReLU(inplace), nn.Linear(3, 1)).double()
        trimtab.rollout(solver, network, random_states(solver) - 6.0, 3, gradient="exact").square().mean().backward()
        trimtab.rollout(solver, network, random_states(solver) - 6.0, 3, gradient="static").square().mean().backward()
        found.append(torch.cat([one.grad.flatten() for one in network.parameters()]))
    assert torch.equal(*found)


@pytest.mark.parametrize("build", [lambda linear: nn.Sequential(nn.ReLU(inplace=True), linear), Behind],
                         ids=["counted", "behind torch's back"])
def test_the_solvers_buffer_is_left_alone(build):
    torch.manual_seed(0)
    linear = nn.Linear(3, 3).double()
    filling, states = Callback(build(linear)), torch.tensor([[-1.0, 2.0, -3.0]], dtype=torch.float64)
    expected = linear(states.relu())
    for _ in range(3):
        address = filling._call(states.data_ptr(), 3, 1, 0.0)
        answer = torch.frombuffer((ctypes.c_double * 3).from_address(address), dtype=torch.float64)
        assert states.tolist() == [[-1.0, 2.0, -3.0]]
        torch.testing.assert_close(answer, expected[0].detach(), rtol=0, atol=0)


def test_one_that_begins_later_is_told(open_solver):
    solver = open_solver("lorenz63")
    network = pair()[1]
    solver.advance(-np.ones((1, 3)), 1, correction=network)
    network[0].inplace = True
    with pytest.raises(CorrectionError, match=r"changed its input in place.*inplace=False"):
        solver.advance(-np.ones((1, 3)), 1, correction=network)


def test_it_is_not_compiled():
    """The compiled form would write to the solver's buffer."""
    with pytest.raises(NotCompiledError, match="changes its input in place"):
        export_program(pair()[0], 3, torch.float64)
