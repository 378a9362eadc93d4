"""`python -m memoria`."""

from memoria.cli import main

main()
