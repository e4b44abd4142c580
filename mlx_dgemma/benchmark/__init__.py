"""Autoregression against diffusion, measured and predicted. `python -m mlx_dgemma.benchmark --help`."""
