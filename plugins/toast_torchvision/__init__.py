"""torchvision models: ViT, steered in its values, and ConvNeXt and ResNet, steered before each stage."""
