"""ConvNeXt backbones from timm: levels are stages, undone by deconvolutions (section 4.4)."""
