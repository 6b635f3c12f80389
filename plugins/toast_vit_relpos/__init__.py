"""ViTs with relative positions: timm's `VisionTransformerRelPos`, steered in its values."""
