"""
The policy: profiles as frozen values, and pure decisions about them.

Runs:     in the server, the supervisor and the command line; `profile` also inside
Trusts:   the files of the site; what a person writes is checked
Imports:  errors
"""
