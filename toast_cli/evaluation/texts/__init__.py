"""Evaluation of language models text by text: losses, their comparison, and attention on the parts of a text."""
