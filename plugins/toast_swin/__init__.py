"""Swin Transformers from timm (V1, V2 and V2-CR): levels are blocks, steered in the values of their windows."""
