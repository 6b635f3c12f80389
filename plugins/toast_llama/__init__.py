"""LLaMA and related models of transformers: levels are decoder layers, steered in their values (section 4.3)."""
