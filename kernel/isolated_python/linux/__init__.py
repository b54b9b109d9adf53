"""
The Linux kernel's interface with names: the only ctypes, and no decisions.

Runs:     in the supervisor, the zygote, the relay and the sandbox before the first cell
Trusts:   the kernel
Imports:  errors, record
"""
