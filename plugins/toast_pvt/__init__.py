"""PVTv2 from timm: keys and values of a reduced map, steered in the values."""
