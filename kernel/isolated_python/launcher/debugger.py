"""ipykernel's debugger, imported when somebody debugs: no first cell needs it, and it is a fifth of all imports."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import sys
import types
from typing import Any

NAME = "ipykernel.debugger"
HEAVY = "debugpy.server.api"  # what it imports, and what takes its time


class Late:
    """Stands where a kernel has its `ipykernel.debugger.Debugger`, and makes that one at the first request."""

    def __init__(self, *arguments: Any) -> None:
        """`arguments`: the Debugger's."""
        self._arguments = arguments
        self._real: Any = None
        self._made = asyncio.Event()  # of the control thread's loop, in which all that follows is called

    async def process_request(self, message: dict[str, Any]) -> dict[str, Any] | None:
        if self._real is None:
            module = _load()
            if not module._is_debugpy_available:
                return None
            self._real = module.Debugger(*self._arguments)
            self._made.set()
        answer: dict[str, Any] = await self._real.process_request(message)
        return answer

    async def handle_stopped_event(self) -> None:
        await self._made.wait()
        await self._real.handle_stopped_event()

    @property
    def tcp_client(self) -> Any:
        return self._real.tcp_client


class _Later(types.ModuleType):
    """The module, for those who ask only whether there is a debugger."""

    _is_debugpy_available = True
    Debugger = Late

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(_load(), name)


def put_off() -> None:
    """Before a kernel is built: its debugger is imported later, where there is a debugpy to import."""
    if NAME not in sys.modules and importlib.util.find_spec("debugpy"):
        sys.modules[NAME] = _Later(NAME)


def _load() -> types.ModuleType:
    if isinstance(sys.modules.get(NAME), _Later):
        del sys.modules[NAME]
    return importlib.import_module(NAME)
