"""Hugging Face safetensors to MLX folders. `python -m mlx_dgemma.convert --help`."""
