"""
Isolated Python: notebook kernels that live in a box of their own.

Runs:     wherever one of its parts is imported; this root imports nothing.
Trusts:   nobody
Imports:  nothing
"""

__version__ = "0.1.0"
