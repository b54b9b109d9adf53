"""
Look inside: a shell in the machine, with what is tested installed as the tests find it.

    .cache/venv/bin/python -m tests.vm [root | person]

The machine is off when the shell ends, and keeps nothing.
"""

from __future__ import annotations

import subprocess
import sys

from tests.vm import image
from tests.vm.machine import Machine
from tests.vm.product import PLACE, PYTHON, install

if __name__ == "__main__":
    user = sys.argv[1] if sys.argv[1:] else image.PERSON
    machine = Machine(image.build(print), print)
    try:
        install(machine)
        print(f"For one test:  cd {PLACE} && export HYPOTHESIS_STORAGE_DIRECTORY=/tmp/hypothesis-{user}")
        print(f"               {PYTHON} -P -m pytest -p no:cacheprovider tests/kernel/test_limits.py -k memory")
        subprocess.run(machine.ssh(user, ["bash", "-l"], "-t"), check=False)
    finally:
        machine.close()
