"""`python -m ribseg.interop`: converts folders of maps and masks from and to other programs' formats."""

import sys

from ribseg.cli import main

if __name__ == "__main__":
    main(["convert", *sys.argv[1:]])
