"""
The launcher: turns a plan into a process. Review child.py first.

Runs:     in the zygote, and in each sandbox until the first cell
Trusts:   the supervisor
Imports:  errors, guard, layers, linux, policy
"""
