"""What the kernelspec's argv runs where nobody asked our provisioner: a refusal, never a plain kernel."""

from __future__ import annotations

import sys

SENTENCE = (
    "Isolated Python: this front end starts kernels by itself and knows no kernel provisioners, so the kernel would "
    "run without a sandbox; connect it to a Jupyter server (jupyter lab) instead"
)


def main() -> int:
    """Say why, and end with 78 (sysexits.h, EX_CONFIG)."""
    sys.stderr.write(SENTENCE + "\n")
    return 78


if __name__ == "__main__":
    sys.exit(main())
