"""Reference images, views, and samplers for training and prediction."""
