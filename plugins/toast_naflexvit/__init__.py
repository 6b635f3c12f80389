"""NaFlexViT: timm's `NaFlexVit`, images of any aspect ratio, steered in its values."""
