"""Checks and surveys of data sets."""
