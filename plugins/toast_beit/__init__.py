"""BEiT and BEiTv2: timm's `Beit`, steered in its values."""
