"""What tools/gpu_check.py checks and measures; it needs torch and this repository, nothing else."""
