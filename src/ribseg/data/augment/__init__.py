"""Augmentation, seeded by (seed, epoch, image id)."""
