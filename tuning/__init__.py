"""Tuning and pretraining: rows of files become samples, samples losses and scores, steps a checkpoint or an adapter."""
