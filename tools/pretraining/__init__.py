"""Parts of tools/pretrain.py: the corpus, GLM's objective, the model's set-up, the optimiser, the run's files."""
