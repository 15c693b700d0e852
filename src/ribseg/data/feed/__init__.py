"""Reference images, views, and batches for training and prediction."""
