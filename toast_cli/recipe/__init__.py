"""Recipes: schemas, YAML with line numbers, overrides, and the built-in recipes."""
