"""What quantisation changes in a model, measured: the work behind `python -m quantization report`."""
