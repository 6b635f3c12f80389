"""MViTv2 from timm: pooled queries, keys and values, steered in the values."""
