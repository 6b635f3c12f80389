"""LLaMA and its relatives from transformers: levels are decoder layers, steered in their values (section 4.3)."""
