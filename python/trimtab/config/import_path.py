# SPDX-License-Identifier: MIT
"""What is named by import path, "package.module:Class", is looked for in the working folder, too; nothing else ever is.

The folder comes last: a file there that is called as a module of Python, queue.py or random.py, hides nothing and is never run.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any


def search_working_folder() -> None:
    """Have modules found in the working folder, after every other place; as it is now, wherever a code goes later."""
    sys.path += [folder for folder in _working_folder() if "" not in sys.path and folder not in sys.path]


def search_path() -> list[str]:
    """Where a process below this one finds what is named here, now or later: absolute folders, the working folder among them."""
    folders = _working_folder()
    found = [os.path.join(*folders, one) for one in sys.path if folders or os.path.isabs(one)]
    return found + [folder for folder in folders if os.path.join(folder, "") not in found and folder not in found]


def _working_folder() -> list[str]:
    try:
        return [os.getcwd()]
    except FileNotFoundError:  # it was removed, and holds nothing
        return []


def import_named(module: str, attribute: str) -> Any:
    """An attribute of a module that the user names.

    Args:
        module: "package.module", installed, on PYTHONPATH, or in the working folder.
        attribute: of the module.

    Returns:
        The attribute.

    Raises:
        ImportError, AttributeError: there is none.
    """
    search_working_folder()
    return getattr(importlib.import_module(module), attribute)
