"""The vision towers of Qwen3-VL and Qwen3.5 from timm: rotary positions, and a merger at the end."""
