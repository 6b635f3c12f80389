"""Hiera and the SAM 2 image encoders (HieraDet) from timm: mask units and pooled queries, steered in the values."""
