"""The vision towers of DeepSeek-V4 from timm: rotary positions, and an aligner at the end."""
