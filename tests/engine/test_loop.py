"""The loop takes nothing of the process that it runs in for good."""

from __future__ import annotations

import gc
import os
import signal

import pytest
from isolated_python.engine.loop import Loop


def test_a_loop_that_ends_leaves_the_wakeup_descriptor_and_no_other_behind() -> None:
    """Python keeps one for the whole process: who had it before has it again, and no signal is written elsewhere."""
    read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    loop = Loop()
    gc.collect()  # what an earlier test has left is closed now, and not in the midst of this one
    descriptors = os.listdir("/proc/self/fd")

    def stop() -> None:
        raise SystemExit

    try:
        for _ in range(2):  # one that has ended can run again
            loop.later(0, stop)
            with pytest.raises(SystemExit):
                loop.run()
        assert os.listdir("/proc/self/fd") == descriptors
    finally:
        assert signal.set_wakeup_fd(before) == write
        os.close(read)
        os.close(write)


@pytest.mark.parametrize("when", ["before", "during"])
def test_a_signal_ends_it_between_two_things_and_never_in_the_midst_of_one(when: str) -> None:
    """A supervisor that was being let go, and was told to end meanwhile, waited for ever for whom it had not let go."""
    done: list[str] = []
    loop, before = Loop(), signal.getsignal(signal.SIGUSR1)

    def deed() -> None:
        if when == "during":
            signal.raise_signal(signal.SIGUSR1)
        done.append("all of it")

    try:
        loop.end_at(signal.SIGUSR1)
        loop.later(0, deed)
        if when == "before":
            signal.raise_signal(signal.SIGUSR1)
        loop.run()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert done == ([] if when == "before" else ["all of it"])
