"""Evaluation: tasks of YAML files, scored by a model."""
