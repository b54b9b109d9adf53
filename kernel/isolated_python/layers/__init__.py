"""
The layers: one module per mechanism; `plan()` decides outside, steps act inside.

Runs:     plan() in the supervisor, steps in the process that is to be confined
Trusts:   the plan's author, the supervisor
Imports:  errors, record, linux, policy
"""
