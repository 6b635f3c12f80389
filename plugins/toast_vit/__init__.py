"""Vision Transformers: any timm `VisionTransformer`, steered in its values."""
