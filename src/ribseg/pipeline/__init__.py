"""Stages, the artefact store, and the runner."""
