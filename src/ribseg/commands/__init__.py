"""The commands of `ribseg`, a file each."""
