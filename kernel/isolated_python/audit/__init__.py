"""
The audit: what happened, as versioned records, written where no kernel can reach.

`schemas/` says what each event is: JSON Schema, in the form that jupyter_events registers.

Runs:     in the supervisor, which writes; in the server, which may pass records on; in a terminal, which reads
Trusts:   the supervisor; what came from a kernel is bounded before it gets here
Imports:  errors
"""
