"""`python -m edgert`."""

from .cli import main

main()
