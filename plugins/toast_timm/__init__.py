"""What the plugins for timm's families share: building a model and finding its weights. Not a plugin itself."""
