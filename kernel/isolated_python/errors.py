"""
The error tree. Every error says what happened in one line and hands its reader one next thing.

    IsolatedPythonError
    ├── ProfileError      what a person wrote cannot be meant
    ├── HostError         this machine cannot give a layer that the profile requires
    ├── LaunchError       a sandbox could not be built, though host and profile are fine
    │   └── ProgramError  the kernelspec's program does not exist (a FileNotFoundError, as its callers expect)
    ├── RequestError      a request was refused by the supervisor
    └── ProtocolError     a peer did not keep to the protocol

Runs:     everywhere, also inside the sandbox
Imports:  nothing
"""

from __future__ import annotations


class IsolatedPythonError(Exception):
    """The root. `str(error)` is one line fit for a dialog: what happened, then the remedy."""

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message, remedy)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        line = f"{self.message}: {self.remedy}" if self.remedy else self.message
        return " ".join(line.split())

    def to_wire(self) -> dict[str, str]:
        return {"error": type(self).__name__, "message": self.message, "remedy": self.remedy}

    @staticmethod
    def from_wire(wire: dict[str, str]) -> IsolatedPythonError:
        kind = KINDS.get(wire.get("error", ""), IsolatedPythonError)
        return kind(wire.get("message", "no reason given"), remedy=wire.get("remedy", ""))


class ProfileError(IsolatedPythonError):
    """What a person wrote in a profile cannot be meant."""


class HostError(IsolatedPythonError):
    """This machine cannot give a layer that the profile requires."""


class LaunchError(IsolatedPythonError):
    """A sandbox could not be built."""


class ProgramError(LaunchError, FileNotFoundError):
    """The kernelspec's program does not exist."""


class RequestError(IsolatedPythonError):
    """The supervisor refused a request."""


class ProtocolError(IsolatedPythonError):
    """A peer did not keep to the protocol."""


KINDS: dict[str, type[IsolatedPythonError]] = {
    kind.__name__: kind for kind in (ProfileError, HostError, LaunchError, ProgramError, RequestError, ProtocolError)
}
