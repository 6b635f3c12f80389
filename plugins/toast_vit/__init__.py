"""Vision Transformers for toast: any timm `VisionTransformer`, steered in its values."""
