# SPDX-License-Identifier: MIT
"""A torch module as the C function that fills a solver's slot.

One layout rule holds at the border: Fortran `a(i, members)` and torch `(members, i)` are the same bytes. The tensor on
the solver's buffer is made once per (address, shape) and used again; the answer is the address of the network's own
output, so nothing is copied on the way back. The C function is `bridge/python/callback.c`: it hands the solver a null address
when the module raises, the solver unwinds, and the exception comes out of the solver's call as it is. (A ctypes function
would lose what strikes at its edges, a Ctrl-C, and return what happens to lie on the stack.)
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.bridge.solver_api import solver_api
from trimtab.core.errors import ConfigError, CorrectionError
from trimtab.corrections.networks import network_dtype

_KINDS = {torch.float32: (4, ctypes.c_float), torch.float64: (8, ctypes.c_double)}
_MOST_BUFFERS = 16
_IN_PLACE = ("The correction changed its input in place, which it did not at its first call, and with it the solver's state: set "
             "inplace=False in its first layer, or clone() the input.")


class Callback:
    """A C function pointer over a torch module.

    Args:
        module: (B, N) -> (B, M) in float32 or float64: tendencies in the state's unit per unit of time, or coefficients.
        outputs: M; 0 for N, a tendency.

    Attributes:
        address: of the C function.
        context: what the C function calls; valid as long as this object lives.
        bytes: 4 or 8, the kind of numbers it reads and returns.

    Raises:
        ConfigError: the module works in neither float32 nor float64.
    """

    def __init__(self, module: nn.Module, outputs: int = 0):
        self.module, self.outputs = module, outputs
        self.dtype = network_dtype(module)
        if self.dtype not in _KINDS:
            raise ConfigError(f"The network works in {self.dtype}; a solver's slot takes float32 or float64: "
                              "convert the network with .float() or .double().")
        self.bytes, _ = _KINDS[self.dtype]
        self._call = self._make_call()
        self.address: int = int(solver_api.solver_python_function())
        self.context: int = id(self._call)

    def _make_call(self) -> Callable[[int, int, int, float], int]:
        """The function behind the pointer: what it needs stands in a closure, where it is reached fastest."""
        module, dtype, conform, outputs = self.module, self.dtype, self._conform, self.outputs
        ready: dict[int, Tensor] = {}
        states, answer = torch.empty(0, 0), torch.empty(0, 0)
        shape, last, length, count = states.shape, 0, 0, 0
        copies: bool | None = None  # whether the module works in place on what it is given; not known before its first call

        def call(address: int, n: int, members: int, _weight: float) -> int:
            # Called by the solver, without gradients, as `FortranSolver.advance` says.
            nonlocal states, answer, shape, last, length, count, copies
            if address != last or n != length or members != count:
                states = _view(ready, address, n, members, dtype)
                shape, last, length, count = torch.Size((members, outputs or n)), address, n, members
            if copies is False:
                version = states._version
                answer = module(states)
                if states._version != version:
                    raise CorrectionError(_IN_PLACE)
            else:  # the buffer is the solver's own
                seen = states.clone()
                answer = module(seen)
                copies = copies or seen._version > 0 or not torch.equal(seen, states)
            if type(answer) is not Tensor or answer.shape != shape or answer.dtype is not dtype \
                    or not answer.is_contiguous() or not answer.is_cpu:
                answer = conform(answer, states, shape)
            return answer.data_ptr()  # `answer` lives in the closure until the next call

        return call

    def _conform(self, answer: Any, states: Tensor, shape: torch.Size) -> Tensor:
        if not isinstance(answer, Tensor):
            raise CorrectionError(f"The correction returned a {type(answer).__name__}; it must return a tensor.")
        if answer.shape != shape:
            raise CorrectionError(f"The correction returned shape {tuple(answer.shape)} where the solver wants {tuple(shape)}; "
                                  "it must return one answer a state, nothing is broadcast.")
        if not answer.dtype.is_floating_point:
            raise CorrectionError(f"The correction returned {answer.dtype}; the solver takes {states.dtype}.")
        try:
            return answer.to("cpu", states.dtype).contiguous()
        except (RuntimeError, NotImplementedError) as error:
            raise CorrectionError(f"The correction returned a tensor of layout {answer.layout}; the solver takes a dense "
                                  "one.") from error


def _view(ready: dict[int, Tensor], address: int, n: int, members: int, dtype: torch.dtype) -> Tensor:
    """The tensor on a solver's buffer, made once an address and shape; a solver holds one buffer a shape."""
    states = ready.get(address)
    if states is None or states.shape != (members, n):
        if len(ready) >= _MOST_BUFFERS:
            ready.clear()
        buffer = (_KINDS[dtype][1] * (n * members)).from_address(address)
        states = ready[address] = torch.frombuffer(buffer, dtype=dtype).view(members, n)
    return states
