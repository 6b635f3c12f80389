"""Convolutional networks from timm: levels are the stages that timm names, undone by deconvolutions (section 4.4)."""
