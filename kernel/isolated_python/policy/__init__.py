"""
The policy: profiles as frozen values, and pure decisions about them.

Runs:     in the server, the supervisor and the command line; `profile` also inside
Trusts:   the files of the site; what a person writes is checked
Imports:  errors, record
"""

SOCKET = "/run/isolated-python/service.sock"  # of the privileged service, if its settings name no other
