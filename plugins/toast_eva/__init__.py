"""Backbones from timm's `Eva`: EVA, EVA-02, DINOv3, Perception Encoder, ROPE ViTs and others."""
