# SPDX-License-Identifier: MIT
"""A compiled torch module as the C function that fills a slot: no Python in the hot path, parameters seen as they are trained.

The C side is `aoti_runtime.c`, its functions are described in `correction.h`, both in `bridge/production/`. What it runs
is the module's own graph (normalisation and features included), compiled by AOTInductor: the same operations, so the same
numbers up to rounding.
`TOLERANCE` is what is allowed; it is held against the module itself on the first states a solver hands over. Gradients
differentiate the module, at the same parameters.
"""

from __future__ import annotations

import ctypes
import functools
import weakref
from pathlib import Path

import torch
from torch import Tensor, nn

from trimtab.bridge.aot_compile import NotCompiledError, compile_library, export_program
from trimtab.core.errors import TrimtabError
from trimtab.corrections.networks import network_dtype
from trimtab.corrections.repeatable import as_slot

BYTES = {torch.float32: 4, torch.float64: 8}
# Largest difference to the module, over the module's largest answer: vectors of another length, sums in another order.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-13}
INSTALLED = Path(__file__).parent.parent / "lib"  # libraries and sources for programs to link
_SENTENCE = 1024


def installed(name: str) -> Path | None:
    """A shared library of this installation by its name without an ending; None when it was not built."""
    return next(iter(sorted(INSTALLED.glob(f"{name}.*"))), None)


@functools.cache
def library() -> ctypes.CDLL:
    """The C functions of `bridge/production/correction.h`.

    Raises:
        TrimtabError: the installation lacks them.
    """
    found = installed("libtrimtab_correction")
    if found is None:
        raise TrimtabError("This installation of trimtab lacks libtrimtab_correction; install it again.")
    functions = ctypes.CDLL(str(found))
    pointer, text, long, integer = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int64, ctypes.c_int32
    for name, result, arguments in (
        ("trimtab_compiled_open", pointer, (text, text, text, long, long, long, text, long)),
        ("trimtab_compiled_give", integer, (pointer, text, pointer, long, pointer, long)),
        ("trimtab_compiled_commit", integer, (pointer,)),
        ("trimtab_compiled_message", text, (pointer,)),
        ("trimtab_compiled_call", pointer, (pointer, pointer, long, long, ctypes.c_double)),
        ("trimtab_load_compiled", integer, (text, pointer, pointer, pointer, text, long)),
        ("trimtab_close_compiled", None, (pointer,)),
    ):
        function = getattr(functions, name)
        function.restype, function.argtypes = result, arguments
    return functions


def torch_folder() -> Path:
    """Where libtorch lies."""
    return Path(torch.__file__).parent / "lib"


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by the names that torch.export gives them, without their graphs.

    Raises:
        NotCompiledError: one whose numbers do not lie in a row.
    """
    named = {**dict(module.named_parameters(remove_duplicate=False)), **dict(module.named_buffers(remove_duplicate=False))}
    tensors = {name: one.detach() for name, one in named.items()}
    for name, one in tensors.items():
        if not one.is_contiguous():
            raise NotCompiledError(f"the numbers of {name} do not lie in a row: make it contiguous()")
    return tensors


class Compiled:
    """A C function pointer over the compiled form of a torch module; the counterpart of `Callback`.

    Args:
        module: (B, N) -> (B, M) in float32 or float64.
        size: N.
        outputs: M; 0 for N.

    Attributes:
        address: of the C function.
        context: what the C function calls; valid as long as this object lives.
        bytes: 4 or 8, the kind of numbers it reads and returns.
        path: the shared library.

    Raises:
        NotCompiledError: the module cannot be compiled, or its compiled form cannot be opened.
    """

    def __init__(self, module: nn.Module, size: int, outputs: int = 0):
        dtype = network_dtype(module)
        if dtype not in BYTES:
            raise NotCompiledError(f"it works in {dtype}, and a slot takes float32 or float64")
        self.dtype, self.bytes, self.size, self.outputs = dtype, BYTES[dtype], size, outputs or size
        self._module = weakref.ref(module)
        self._functions = library()
        self._tensors = named_tensors(module)
        self.path = compile_library(export_program(module, size, dtype), self._tensors)
        said = ctypes.create_string_buffer(_SENTENCE)
        self.context: int = self._functions.trimtab_compiled_open(
            str(self.path).encode(), str(torch_folder()).encode(), torch.__version__.encode(), size, self.outputs, self.bytes,
            said, _SENTENCE) or 0
        if not self.context:
            raise NotCompiledError(said.value.decode(errors="replace"))
        self._finalizer = weakref.finalize(self, self._functions.trimtab_close_compiled, self.context)
        self.address: int = ctypes.cast(self._functions.trimtab_compiled_call, ctypes.c_void_p).value or 0
        self._give()

    @property
    def module(self) -> nn.Module | None:
        """The module, as long as somebody holds it."""
        return self._module()

    @property
    def message(self) -> str:
        """Why the last call failed, a sentence without its beginning and end; "" when none did."""
        answer: str = self._functions.trimtab_compiled_message(self.context).decode(errors="replace")
        return answer

    def refresh(self) -> None:
        """Look whether parameters or buffers moved (in-place changes need nothing), and hand them over anew if so.

        Raises:
            NotCompiledError: they no longer fit.
        """
        module = self._module()
        if module is None:
            raise NotCompiledError("its module is gone")
        tensors = named_tensors(module)
        if [one.data_ptr() for one in tensors.values()] != [one.data_ptr() for one in self._tensors.values()]:
            self._tensors = tensors
            self._give()

    @torch.no_grad()
    def compare(self, states: Tensor) -> float:
        """Largest difference to the module itself, over the module's largest answer.

        Args:
            states: (B, N).

        Returns:
            The ratio; 0 when the bits are the same, NaN in the same places included.

        Raises:
            NotCompiledError: the compiled call failed.
        """
        module = self._module()
        if module is None:
            raise NotCompiledError("its module is gone")
        states = states.to(self.dtype).contiguous()
        answer = self(states)  # first: where both fail, the reason is that of the run to come
        expected = as_slot(module, states)
        if torch.equal(answer.isfinite(), expected.isfinite()):
            finite = expected.isfinite()
            answer, expected = answer[finite], expected[finite]
        if expected.numel() == 0 or torch.equal(answer, expected):
            return 0.0
        return float((answer - expected).abs().max() / expected.abs().max())

    def __call__(self, states: Tensor) -> Tensor:
        """The compiled answer as the slot gets it, copied.

        Args:
            states: (B, N) contiguous, in `dtype`.

        Returns:
            (B, M).

        Raises:
            NotCompiledError: the call failed.
        """
        members, size = states.shape
        address = self._functions.trimtab_compiled_call(self.context, states.data_ptr(), size, members, 0.0)
        if not address:
            raise NotCompiledError(self.message)
        buffer = (ctypes.c_char * (members * self.outputs * self.bytes)).from_address(address)
        return torch.frombuffer(buffer, dtype=self.dtype).view(members, self.outputs).clone()

    def _give(self) -> None:
        functions = self._functions
        for name, one in self._tensors.items():
            sizes = (ctypes.c_int64 * max(1, one.dim()))(*one.shape)
            if functions.trimtab_compiled_give(self.context, name.encode(), one.data_ptr(), one.dim(), sizes, one.nbytes):
                raise NotCompiledError(self.message)
        if functions.trimtab_compiled_commit(self.context):
            raise NotCompiledError(self.message)
