"""The methods: what the papers say, as plain PyTorch."""
