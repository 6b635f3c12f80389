"""The vision towers of Gemma 4 from timm: rotary positions, and normalized queries, keys and values."""
