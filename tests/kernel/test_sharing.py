"""What a zygote does so that its children share more: it must work as before."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from isolated_python.launcher import order

# In a process of its own, as a zygote is.
ZYGOTE = """
import gc, inspect, json, threading
from isolated_python.launcher import kernel, order, zygote
kernel.prepare(lambda: None)
start = threading.Thread.start
before = start.__code__, inspect.getsource(start)
zygote.share()
thread = threading.Thread(target=gc.collect)
thread.start()
thread.join()
again = order.put_together()
print(json.dumps([start.__code__ is before[0], inspect.getsource(start) == before[1], again]))
"""


def test_what_kernels_call_has_moved_and_works(tmp_path: Path) -> None:
    """Each function of the list runs from a copy of its code. Most that it names are there."""
    environment = {**os.environ, "HOME": str(tmp_path), "IPYTHONDIR": str(tmp_path)}
    argv = [sys.executable, "-P", "-Xfrozen_modules=off", "-c", ZYGOTE]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60, check=True)
    same_code, same_source, moved = json.loads(done.stdout)
    assert not same_code
    assert same_source
    assert moved > len(order.LIST.read_text().split()) / 2
