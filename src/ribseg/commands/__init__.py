"""The commands of `ribseg`, one module each."""
