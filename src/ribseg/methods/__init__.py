"""Methods for localization maps, their refinement and evaluation, in plain PyTorch."""
