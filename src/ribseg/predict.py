"""`python -m ribseg.predict IMAGE... --checkpoint FILE --out DIR`: images in, palette PNGs out.

Only the command. In Python, `ribseg.predict` is the function `ribseg.models.inference.predict`; importing
this file would put a module in its place, so it cannot be imported.
"""

import sys

if __name__ != "__main__":
    raise ImportError("ribseg.predict is a command: python -m ribseg.predict; in Python it is a function")

from ribseg.cli import main

main(["predict", *sys.argv[1:]])
