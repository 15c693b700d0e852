"""`python -m ribseg.predict IMAGE... --checkpoint segmenter.pt --out DIR`: images in, palette PNGs out.

Only the command: `ribseg.predict` in Python is the function `ribseg.methods.inference.predict`.
"""

import sys

from ribseg.cli import main

if __name__ == "__main__":
    main(["predict", *sys.argv[1:]])
