"""Faster implementations of operations that plain torch could compute, too."""
