"""`vit_demo` and `vit_demo_3`: small ViTs whose weights ship with toast. They are only trained on drawn scenes."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer

from toast_cli.plugin import Preprocessing, ToastError, UsageError, refuse_lfs_pointers
from toast_timm.image_size import check_image_size
from toast_vit.backbone import VitBackbone
from toast_vit.options import VitOptions

IMAGE_SIDE = 64


def build_demo(name: str, depth: int, options: VitOptions) -> VitBackbone:
    """Build a demo ViT with its shipped weights, with those of a safetensors file, or with random ones.

    Args:
        name: Name of the backbone and of its weights file.
        depth: Number of blocks.
        options: The options of the backbone.

    Raises:
        UsageError: The weights file does not exist or is not a .safetensors file.
        ToastError: The file does not hold this model's weights.
    """
    module = VisionTransformer(
        img_size=IMAGE_SIDE,
        patch_size=8,
        embed_dim=128,
        depth=depth,
        num_heads=4,
        mlp_ratio=3,
        num_classes=0,
        weight_init="jax",
        drop_path_rate=options.drop_path,
    )
    if options.weights != "none":
        shipped = Path(str(files("toast_vit") / "weights" / f"{name}.safetensors"))
        path = shipped if options.weights is None else Path(options.weights).expanduser()
        if not path.is_file():
            what = f"{path} is not a weights file." if path.exists() else f"There is no weights file {path}."
            raise UsageError(
                what,
                what_to_do="Reinstall toast." if path == shipped else "Check --weights.",
                code="weights.missing-file",
            )
        if path.suffix != ".safetensors":
            raise UsageError(
                f"Expected a .safetensors file for '{name}', got {path}.",
                "This backbone supports no other format.",
                "Give an output of 'toast export --what backbone', or the --backbone that the file was made for.",
                code="weights.unsupported-format",
            )
        try:
            module.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()})
        except (RuntimeError, SafetensorError) as error:
            refuse_lfs_pointers(path)
            raise ToastError(
                f"{path} does not hold the weights of '{name}' (a safetensors file).",
                " ".join(str(error).split())[:300],
                "Give the --backbone that the file was made for.",
                code="weights.wrong-model",
            ) from error
    check_image_size(module, options)
    if options.image_size is not None:
        # Set the size after loading: the position embedding of the file is then resampled instead of rejected.
        module.set_input_size(img_size=options.image_size)
    height, width = module.patch_embed.img_size
    return VitBackbone(module, Preprocessing((height, width), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)), options.value_bias)
