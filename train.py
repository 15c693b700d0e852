"""`python train.py experiment=...` composes a configuration and runs its stages.

`python train.py --help` shows the settings. The same as `ribseg train`, for a checkout.
"""

from ribseg.launch import main

if __name__ == "__main__":
    main()
