"""Stages, the artefact store, and the runner that chains them."""
