# SPDX-License-Identifier: MIT
"""A torch module as a shared library: torch.export, then AOTInductor in a process of its own, once a structure.

The library is kept in the folder that TRIMTAB_CACHE names, else in the user's cache (XDG_CACHE_HOME or ~/.cache, there
`trimtab`), with all that the compiler writes. Its name says what it depends on: the graph, the tensors' shapes and precision,
torch, the processor. Parameters are no part of that: the library is handed their memory (`aot_function.py`). Processes that want
one library at once wait for the first, so ranks of one run compile once.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import platform
import re
import shutil
import stat
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.core.announcements import Clock
from trimtab.core.atomic_files import only_writer
from trimtab.core.errors import TrimtabError
from trimtab.parallel.launcher import run_program

RECIPE = 1               # counts up when what is done to a graph changes
EXAMPLES = 3             # members of the example that is traced; the number of members stays free
PARALLEL_NUMBERS = 4096  # numbers of one state from which on loops are spread over threads: below, waking threads costs more
_PROXY = b"aoti_torch_proxy_executor_call_function"


class NotCompiledError(TrimtabError):
    """A module cannot be compiled; one sentence says why. The slot falls back to the module itself."""


def export_program(module: nn.Module, size: int, dtype: torch.dtype) -> Any:
    """The module as a graph of tensor operations, for any number of members.

    Args:
        module: (B, N) -> (B, M).
        size: N.
        dtype: of the states.

    Returns:
        A torch.export.ExportedProgram.

    Raises:
        NotCompiledError: torch.export does not follow the module, or the module changes its own buffers or its input, or uses
            tensors that nobody could hand over.
    """
    held = next(iter((*module.parameters(), *module.buffers())), None)
    if held is not None and held.device.type != "cpu":
        raise NotCompiledError(f"it lives on {held.device}, and a compiled slot runs on the CPU")
    members = torch.export.Dim("members", min=1)
    example = torch.zeros(EXAMPLES, size, dtype=dtype)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about its own internals
        try:
            program = torch.export.export(module, (example,), dynamic_shapes=({0: members},))
        except Exception as error:  # whatever the module or torch raises; the slot then runs the module as it is
            raise NotCompiledError(f"torch.export does not follow it ({type(error).__name__}: {_first_line(error)})") from error
    buffers = dict(module.named_buffers(remove_duplicate=False))
    unknown = [name for name in program.constants if name not in buffers]
    if unknown:
        raise NotCompiledError(f"it uses a tensor that is neither a parameter nor a buffer ({unknown[0]}): register it as one")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        signature = program.run_decompositions({}).graph_signature  # what is written in place stands in this one alone
    if signature.buffers_to_mutate:
        raise NotCompiledError(f"it changes its buffer {next(iter(signature.buffers_to_mutate.values()))} at every call")
    if signature.user_inputs_to_mutate:
        raise NotCompiledError("it changes its input in place: set inplace=False in its first layer, or clone() the input")
    return program


def compile_library(program: Any, tensors: dict[str, Tensor]) -> Path:
    """The shared library of an exported program; compiled when the cache does not hold it.

    Args:
        program: see `export_program`.
        tensors: parameters and buffers by their names, which the library will be handed.

    Returns:
        The library.

    Raises:
        NotCompiledError: no C++ compiler, a cache that cannot be written, or a graph that AOTInductor does not take.
    """
    parallel = program.example_inputs[0][0].shape[1] >= PARALLEL_NUMBERS
    folder = cache_folder()
    library = folder / f"{_key(program, tensors, parallel)}.so"
    if library.is_file():
        return library
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler.split()[0]) is None:
        raise NotCompiledError(f"there is no C++ compiler {compiler}: install g++, or set CXX")
    try:
        _make_cache(folder)
        clock = Clock("compiling the correction with AOTInductor (ten seconds to some minutes, once a structure)")
        with only_writer(folder, wait=True, waiting=clock.tick):
            if not library.is_file():
                _compile_in_process(program, library, parallel, clock)
        clock.end()
    except OSError as error:
        raise NotCompiledError(f"the cache {folder} cannot be written ({error.strerror or error}): set TRIMTAB_CACHE") from error
    return library


def cache_folder() -> Path:
    """Where compiled libraries are kept; for a user without a home, as in many containers, a folder of its own in TMPDIR."""
    named = os.environ.get("TRIMTAB_CACHE")
    try:
        base = Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trimtab"
    except RuntimeError:  # neither HOME nor an entry in the list of users
        base = _own_temporary()
    return (base / "compiled").absolute()


def _own_temporary() -> Path:
    return Path(tempfile.gettempdir()).absolute() / f"trimtab-{os.getuid()}"


def _make_cache(folder: Path) -> None:
    """Make the folder; refuse one in a folder for all that somebody else made: what lies there is run."""
    if folder.parent == _own_temporary():
        folder.parent.mkdir(exist_ok=True, mode=0o700)
        found = folder.parent.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
            raise NotCompiledError(f"the cache {folder.parent} is somebody else's, or others may write to it: set TRIMTAB_CACHE "
                                   "or HOME to a folder of your own")
    folder.mkdir(parents=True, exist_ok=True)


def save_program(program: Any, path: Path) -> None:
    """An exported program as a file; by way of memory, for torch's own writer ends the process when the disk is full.

    Args:
        program: see `export_program`.
        path: the file.

    Raises:
        NotCompiledError: torch cannot write such a program.
        OSError: the file cannot be written.
    """
    content = io.BytesIO()
    try:
        torch.export.save(program, content)
    except Exception as error:  # torch's serialiser raises many kinds
        raise NotCompiledError(f"torch.export cannot write it ({type(error).__name__}: {_first_line(error)}){_spectral(program)}"
                               ) from error
    path.write_bytes(content.getbuffer())


def _compile_in_process(program: Any, library: Path, parallel: bool, clock: Clock) -> None:
    """In a process of its own: Inductor keeps memory and workers, and takes its folders from the environment at import."""
    work = library.parent / "inductor"
    work.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=work) as scratch:
        source, target = Path(scratch) / "program.pt2", Path(scratch) / "library.so"
        level = logging.getLogger("torch.export").level
        save_program(program, source)
        logging.getLogger("torch.export").setLevel(level)
        environment = {**os.environ, "TMPDIR": str(work), "TORCHINDUCTOR_CACHE_DIR": str(work),
                       "TORCHINDUCTOR_COMPILE_THREADS": "1"}
        code = f"from trimtab.bridge.aot_compile import build; build({str(source)!r}, {str(target)!r}, {parallel})"
        done = run_program([sys.executable, "-P", "-W", "ignore", "-c", code], clock.tick, env=environment, cwd=scratch)
        if done.returncode or not target.is_file():
            (library.parent / "failed.txt").write_text(done.stderr, encoding="utf-8")
            last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise NotCompiledError(f"AOTInductor does not take it ({last[:300]}; see {library.parent / 'failed.txt'})"
                                   f"{_spectral(program)}")
        if _PROXY in target.read_bytes():
            names = ", ".join(sorted(set(re.findall(r"(\S+) is missing a c-shim", done.stderr))))
            raise NotCompiledError(f"it uses operations that torch offers to C++ alone{f' ({names})' if names else ''}"
                                   f"{_spectral(program)}")
        os.replace(target, library)


def _spectral(program: Any) -> str:
    """What to do about operations on complex numbers, as torch.fft leads to, where a program has such; else ""."""
    names = sorted({str(node.target) for node in program.graph.nodes
                    if node.op == "call_function" and isinstance(node.meta.get("val"), Tensor) and node.meta["val"].is_complex()})
    if not names:
        return ""
    return (f". It computes with complex numbers ({', '.join(names)}), of which few operations are compiled: multiply a spectrum "
            "by a parameter of its shape, or by real and imaginary parts apart (torch.view_as_real), or use the other forms")


def build(source: str, target: str, parallel: bool) -> None:
    """Compile an exported program; runs in the process that `compile_library` starts.

    Args:
        source: the program, a .pt2 file.
        target: the library to write.
        parallel: spread its loops over OpenMP threads, as many as there are when it runs.
    """
    program = torch.export.load(source).run_decompositions()
    shims = _shim_fft(program.graph_module)
    options: dict[str, Any] = {
        "aot_inductor.output_path": target,
        "aot_inductor.custom_ops_to_c_shims": shims,
        "always_keep_tensor_constants": True,  # else small ones are numbers in the code, and an optimiser's step is not seen
        "layout_optimization": False,          # converting weights to channels-last at every call costs more than it gives
        **({"cpp.dynamic_threads": True} if parallel else {"cpp.threads": 1}),
    }
    torch._inductor.aot_compile(program.module(), program.example_inputs[0], options=options)


# torch.fft.irfft2 ends in aten::_fft_c2r, which has no C function in torch. The dispatcher has one for every operation: this one
# calls it so. Source: torch/csrc/stable/c/shim.h and stableivalue_conversions.h.
_FFT_C2R = """
AOTITorchError aoti_torch_cpu_fft_c2r(AtenTensorHandle self, const int64_t* dim, int64_t dims, int64_t normalization,
                                      int64_t last, AtenTensorHandle* answer) {
  struct StableListOpaque* list = nullptr;
  AtenTensorHandle own = nullptr;
  AOTITorchError code = torch_new_list_reserve_size(dims, &list);
  for (int64_t i = 0; code == 0 && i < dims; i++) code = torch_list_push_back(list, (uint64_t)dim[i]);
  if (code == 0) code = aoti_torch_new_tensor_handle(self, &own);
  uint64_t stack[4] = {(uint64_t)own, (uint64_t)list, (uint64_t)normalization, (uint64_t)last};
  if (code == 0) code = torch_call_dispatcher("aten::_fft_c2r", "", stack, aoti_torch_abi_version());
  if (code == 0) *answer = (AtenTensorHandle)stack[0];
  return code;
}"""
_SHIMS = [
    "AOTITorchError torch_call_dispatcher(const char*, const char*, uint64_t*, uint64_t)",
    "AOTITorchError torch_new_list_reserve_size(size_t, struct StableListOpaque**)",
    "AOTITorchError torch_list_push_back(struct StableListOpaque*, uint64_t)",
    _FFT_C2R,
]
_LIBRARY = torch.library.Library("trimtab", "DEF")
_LIBRARY.define("fft_c2r(Tensor self, int[] dim, int normalization, SymInt last_dim_size) -> Tensor")
_LIBRARY.impl("fft_c2r", torch.ops.aten._fft_c2r.default, "CPU")
_LIBRARY.impl("fft_c2r", torch.ops.aten._fft_c2r.default, "Meta")


def _shim_fft(graph: torch.fx.GraphModule) -> dict[Any, list[str]]:
    """Put our name for the last half of an inverse real FFT into a graph, and return how to call it from C."""
    ours, found = torch.ops.trimtab.fft_c2r.default, False
    for node in graph.graph.nodes:
        if node.target is torch.ops.aten._fft_c2r.default:
            node.target, found = ours, True
    graph.recompile()
    return {ours: _SHIMS} if found else {}


def _key(program: Any, tensors: dict[str, Tensor], parallel: bool) -> str:
    """What a library depends on; values of parameters and buffers do not count."""
    parts = [str(RECIPE), torch.__version__, platform.machine(), _processor(), str(parallel), str(program.graph_signature),
             *(one.code for one in program.graph_module.modules() if isinstance(one, torch.fx.GraphModule))]
    parts += [f"{name} {tuple(one.shape)} {one.dtype}" for name, one in sorted(tensors.items())]
    parts += [str(node.meta.get("val")) for node in program.graph.nodes]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _processor() -> str:
    """The processor's vector extensions: the compiler uses all it finds."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return f"{torch.backends.cpu.get_cpu_capability()} {flags}"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]
