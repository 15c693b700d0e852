"""`python train.py experiment=...` composes a configuration and runs its stages.

`python train.py --help` shows the settings. The same as `ribseg train`, for a checkout. Hydra completes
settings in the shell for files that name its decorator, @hydra.main; docs/one_image.md has the command.
"""

import sys

from ribseg.launch import train

if __name__ == "__main__":
    train(sys.argv[1:])
