"""Readers of the checkpoints that authors released."""
