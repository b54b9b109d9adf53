"""
The guard: beside user code, explains what was refused; nothing rests on it.

Runs:     in the kernel, where user code can change it at will; also where nobody knows of us (foreign.py)
Trusts:   nobody, and nobody trusts it
Imports:  nothing
"""

from __future__ import annotations

import json
from typing import Any

from . import explain, imports, magic

LISTS = "/etc/isolated-python/modules.json"  # as layers.view writes it


def install(shell: Any, granted: dict[str, Any]) -> None:
    """Be of help in `shell`, an IPython. `granted`: the profile, as on the wire, and what of it was weakened."""
    lists: dict[str, list[str]] = {"granted": [], "refused": []}
    if granted["modules"]["grant"] is not None:
        try:
            with open(LISTS, encoding="utf-8") as file:
                lists = json.load(file)
        except OSError:
            pass
    failures = explain.install(shell, granted, lists)
    if granted["modules"]["guard"] and lists["refused"]:
        imports.install(shell, granted["name"], lists["granted"], lists["refused"])
    magic.install(shell, granted, lists, failures)
