"""MaxViT, CoAtNet and MaxxViT from timm: convolutions steered at their input, attention in the values."""
