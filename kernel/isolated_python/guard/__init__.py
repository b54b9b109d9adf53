"""
The guard: beside user code, explains what was refused; nothing rests on it.

Runs:     in the kernel, where user code can change it at will
Trusts:   nobody, and nobody trusts it
Imports:  policy
"""
