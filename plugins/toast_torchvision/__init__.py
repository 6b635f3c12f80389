"""torchvision models: ViT and Swin, steered in their values, and ConvNeXt and ResNet, steered before each stage."""
