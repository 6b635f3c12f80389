"""The family of timm's convolutional networks, which is asked after all others, and its short names. Torch-free."""

from __future__ import annotations

from toast_timm.cards import make_timm_card, make_timm_family

FAMILY = make_timm_family("convnet", "toast_convnet.loading:wrap_convnet", generic=True)

RESNET50 = make_timm_card("resnet50", "resnet50.a1_in1k", "convnet", 23_508_032, 224, "apache-2.0")
