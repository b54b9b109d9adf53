"""
The engine: a running sandbox as one object, and the supervisor that holds them all.

Runs:     supervisor.py in a process of its own, client.py in the server
Trusts:   its own server; never a byte written by a kernel
Imports:  errors, record, linux, policy, audit, layers, launcher
"""

import os

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # the folder of our package
ADAPTIVE = -1  # kernels of a pool: as many as were asked for within its memory, and at least one
