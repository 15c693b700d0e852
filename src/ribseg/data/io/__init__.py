"""Reading and writing images, masks, labels and maps."""
