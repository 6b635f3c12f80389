"""CaiT backbones from timm: levels are the self-attention blocks, and the class-attention stage is their end."""
