"""Recipes: schemas, YAML with line numbers, overrides, and finding the built-in ones."""
