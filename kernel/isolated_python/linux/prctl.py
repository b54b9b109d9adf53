"""What a process may say about itself: prctl(2) with names."""

from __future__ import annotations

from .libc import call

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_NAME = 15
PR_SET_CHILD_SUBREAPER = 36  # linux 3.4
PR_SET_NO_NEW_PRIVS = 38  # linux 3.5
PR_SET_MDWE = 65  # linux 6.3
PR_MDWE_REFUSE_EXEC_GAIN = 1

NAME_LENGTH = 15  # bytes, TASK_COMM_LEN less its closing NUL


def set_no_new_privs() -> None:
    """Give up set-uid bits and file capabilities, here and in every descendant, for good."""
    call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def set_parent_death_signal(signal: int) -> None:
    """Receive `signal` when the thread that forked us ends; 0 for none.

    A change of uid, gid or of the reach of capabilities makes the kernel forget it, so it comes after those.
    A parent that is already gone sends nothing: whoever cares compares getppid() afterwards.
    """
    call("prctl", PR_SET_PDEATHSIG, signal, 0, 0, 0)


def set_dumpable(dumpable: bool) -> None:
    """Say whether this process may be traced and dumped by its own user, and so whether its /proc files are its own.

    A change of uid takes it away, and with it /proc/self: multiprocessing and psutil then fail.
    """
    call("prctl", PR_SET_DUMPABLE, int(dumpable), 0, 0, 0)


def set_child_subreaper() -> None:
    """Become the parent of every orphan among our descendants."""
    call("prctl", PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def set_name(name: str) -> None:
    """Name this thread as ps and /proc show it: the first 15 bytes of `name`."""
    call("prctl", PR_SET_NAME, name.encode()[:NAME_LENGTH], 0, 0, 0)


def set_mdwe() -> None:
    """Refuse memory that is both writable and executable, here and in every descendant, for good.

    Raises EINVAL before linux 6.3.
    """
    call("prctl", PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0)
