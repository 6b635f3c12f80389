"""LeViT backbones from timm: levels are blocks and down-sampling attentions, steered at their values."""
