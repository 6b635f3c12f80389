"""Models that `timm:` finds the family of."""

MODELS = ["timm:test_vit", "timm:test_convnext"]
