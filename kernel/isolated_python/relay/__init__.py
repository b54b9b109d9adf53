"""
The relay: carries Jupyter's channels across the border of every sandbox.

Runs:     in a process of its own, without files, network or children
Trusts:   the supervisor; both sides of a connection may lie
Imports:  errors, record, layers, linux
"""
