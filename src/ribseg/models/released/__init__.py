"""Readers of checkpoints released by the authors of RIB and IRN."""
