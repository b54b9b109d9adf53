"""
The audit: what happened, as versioned records, written where no kernel can reach.

Runs:     in the supervisor
Trusts:   the supervisor; what came from a kernel is bounded before it gets here
Imports:  errors
"""
