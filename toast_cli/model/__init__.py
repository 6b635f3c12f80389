"""Backbone, method and task as one module, and text generation with it."""
