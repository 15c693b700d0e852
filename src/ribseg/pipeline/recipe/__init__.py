"""Stages, the store, and what runs them."""
