"""XCiT backbones from timm: attention over channels, steered at its values."""
