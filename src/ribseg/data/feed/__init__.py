"""Reference images, and what predictions read."""
