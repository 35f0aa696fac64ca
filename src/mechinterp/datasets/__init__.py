"""Prompts with labels and named positions. Nothing here loads a model."""
