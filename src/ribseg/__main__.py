"""`python -m ribseg COMMAND`: the same as the command `ribseg`."""

from ribseg.cli import main

main()
