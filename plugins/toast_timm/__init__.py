"""Code that the plugins for timm's families share: building models and loading weights. It is not a plugin itself."""
