"""`python -m ribseg.interop`: converts maps, masks and labels from and to other programs' formats."""

import sys

from ribseg.cli import main

if __name__ == "__main__":
    main(["convert", *sys.argv[1:]])
