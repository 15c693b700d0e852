"""`python train.py experiment=...` composes a configuration and runs its stages.

`python train.py --help` shows the settings. The same as `ribseg train`, for a checkout. Hydra completes
settings in the shell for files that name its decorator, @hydra.main; docs/one_image.md has the command.
"""

from ribseg.launch import main

if __name__ == "__main__":
    main()
