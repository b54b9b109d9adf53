"""`python -m isolated_python` is `jupyter isolated`."""

from isolated_python.cli import main

main()
