"""Vision transformers and ConvNeXts of transformers: any encoder with a value projection, steered in its values."""
