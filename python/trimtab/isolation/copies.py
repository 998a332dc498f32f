# SPDX-License-Identifier: MIT
"""Several instances of one library in one process, each with its own COMMON, SAVE and module variables."""

from __future__ import annotations

import ctypes
import os
import shutil
import tempfile
import weakref
from pathlib import Path

from trimtab.core.errors import ConfigError


def load_private_copy(path: str | Path) -> ctypes.CDLL:
    """Load a shared object under another name, so that its static memory is shared with no other copy.

    What stays shared are the libraries it needs: gfortran's run time with its units and random numbers (two copies that
    open unit 10 open the same one), MPI (one communicator world, initialised once), FFTW, a second library of the same
    code: link that one statically. A copy that was loaded with RTLD_GLOBAL, or preloaded, takes over the COMMON blocks of
    all later ones. Folder, standard input and output are the process's. STOP ends them all: `IsolatedSolver` is for codes
    that do any of this.

    Args:
        path: of the shared object.

    Returns:
        The library, loaded with RTLD_LOCAL from a file that is removed when nothing refers to it any more; the system keeps
        the library itself until the process ends.

    Raises:
        ConfigError: the file is missing or cannot be loaded.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"The library {path} does not exist: build it first.")
    folder = Path(tempfile.mkdtemp(prefix="trimtab-copy-"))
    copy = Path(shutil.copy2(path, folder / path.name))
    try:
        library = ctypes.CDLL(str(copy), mode=os.RTLD_LOCAL | os.RTLD_NOW)
    except OSError as error:
        shutil.rmtree(folder)
        raise ConfigError(f"The library {path} cannot be loaded: {error}.") from error
    weakref.finalize(library, shutil.rmtree, folder, ignore_errors=True)
    return library
