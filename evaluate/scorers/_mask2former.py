"""Mask2Former (Cheng et al. 2022, arXiv:2112.01527) on a Swin-S as MMDetection trained it on COCO's instances: the
stock class of transformers, filled with the checkpoint of MMDetection 2.

MMDetection trained its own; the networks that the authors and the hub publish under the same name have other weights,
and find other objects.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

URL = (
    "https://download.openmmlab.com/mmdetection/v2.0/mask2former/mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco/"
    "mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco_20220504_001756-743b7d99.pth"
)
#: The first digits of its sha256, which its name ends with; the others are published nowhere.
SHA256 = "743b7d99"

#: MMDetection 2.28.2, configs/mask2former/mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco.py and what it is based on.
#: transformers counts as a decoder layer what is predicted before the first of nine.
ARCHITECTURE: dict[str, Any] = {
    "backbone": {
        "embed_dim": 96, "depths": [2, 2, 18, 2], "num_heads": [3, 6, 12, 24], "window_size": 7, "mlp_ratio": 4.0,
        "qkv_bias": True, "out_features": ["stage1", "stage2", "stage3", "stage4"],
    },
    "head": {
        "num_labels": 80, "num_queries": 100, "feature_size": 256, "mask_feature_size": 256, "hidden_dim": 256,
        "encoder_layers": 6, "encoder_feedforward_dim": 1024, "decoder_layers": 10, "dim_feedforward": 2048,
        "num_attention_heads": 8,
    },
}  # fmt: skip

_BACKBONE = "model.pixel_level_module.encoder."
_PIXELS = "model.pixel_level_module.decoder."
_QUERIES = "model.transformer_module."
#: MMDetection's names -> transformers', each tried in turn; `qkv` and `in_proj` of self-attention are split after them.
NAMES = (
    (r"^backbone\.patch_embed\.projection\.", f"{_BACKBONE}swin.embeddings.patch_embeddings.projection."),
    (r"^backbone\.patch_embed\.norm\.", f"{_BACKBONE}swin.embeddings.norm."),
    (r"^backbone\.stages\.", f"{_BACKBONE}swin.encoder.layers."),
    (r"(blocks\.\d+)\.norm1\.", r"\1.layernorm_before."),
    (r"(blocks\.\d+)\.norm2\.", r"\1.layernorm_after."),
    (r"\.attn\.w_msa\.relative_position_bias_table$", ".attention.relative_position_bias.relative_position_bias_table"),
    (r"\.attn\.w_msa\.qkv\.", ".attention.{}_proj."),
    (r"\.attn\.w_msa\.proj\.", ".attention.o_proj."),
    (r"\.ffn\.layers\.0\.0\.", ".mlp.fc1."),
    (r"\.ffn\.layers\.1\.", ".mlp.fc2."),
    (r"^backbone\.norm(\d)\.", lambda found: f"{_BACKBONE}hidden_states_norms.stage{int(found[1]) + 1}."),
    (r"^panoptic_head\.pixel_decoder\.", _PIXELS),
    (r"decoder\.input_convs\.(\d)\.conv\.", r"decoder.input_projections.\1.0."),
    (r"decoder\.input_convs\.(\d)\.gn\.", r"decoder.input_projections.\1.1."),
    (r"decoder\.lateral_convs\.0\.conv\.", "decoder.adapter_1.0."),
    (r"decoder\.lateral_convs\.0\.gn\.", "decoder.adapter_1.1."),
    (r"decoder\.output_convs\.0\.conv\.", "decoder.layer_1.0."),
    (r"decoder\.output_convs\.0\.gn\.", "decoder.layer_1.1."),
    (r"decoder\.level_encoding\.weight$", "decoder.level_embed"),
    (r"decoder\.mask_feature\.", "decoder.mask_projection."),
    (r"(encoder\.layers\.\d+)\.attentions\.0\.", r"\1.self_attn."),
    (r"(encoder\.layers\.\d+)\.norms\.0\.", r"\1.self_attn_layer_norm."),
    (r"(encoder\.layers\.\d+)\.norms\.1\.", r"\1.final_layer_norm."),
    (r"^panoptic_head\.transformer_decoder\.layers\.(\d+)\.", rf"{_QUERIES}decoder.layers.\1."),
    (r"\.attentions\.0\.attn\.", ".cross_attn."),
    (r"\.attentions\.1\.attn\.in_proj_", ".self_attn.{}_proj."),
    (r"\.attentions\.1\.attn\.out_proj\.", ".self_attn.out_proj."),
    (r"\.norms\.0\.", ".cross_attn_layer_norm."),
    (r"\.norms\.1\.", ".self_attn_layer_norm."),
    (r"\.norms\.2\.", ".final_layer_norm."),
    (r"\.ffns\.0\.layers\.0\.0\.", ".fc1."),
    (r"\.ffns\.0\.layers\.1\.", ".fc2."),
    (r"^panoptic_head\.transformer_decoder\.post_norm\.", f"{_QUERIES}decoder.layernorm."),
    (r"^panoptic_head\.query_embed\.", f"{_QUERIES}queries_embedder."),
    (r"^panoptic_head\.query_feat\.", f"{_QUERIES}queries_features."),
    (r"^panoptic_head\.level_embed\.", f"{_QUERIES}level_embed."),
    (r"^panoptic_head\.cls_embed\.", "class_predictor."),
    (r"^panoptic_head\.mask_embed\.([024])\.",
     lambda found: f"{_QUERIES}decoder.mask_predictor.mask_embedder.{int(found[1]) // 2}.0."),
)  # fmt: skip


def network() -> Any:
    """The network without weights: pixels `[B, 3, H, W]`, normalised, both sides multiples of 32, to `[B, Q, 81]`
    `class_queries_logits`, the last of which is nothing, and `[B, Q, H / 4, W / 4]` `masks_queries_logits`.
    """
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

    backbone = SwinConfig(**ARCHITECTURE["backbone"])
    model = Mask2FormerForUniversalSegmentation(Mask2FormerConfig(backbone_config=backbone, **ARCHITECTURE["head"]))
    # Neither the loss nor the norm of a classifier's features is of any use here, and the checkpoint has neither.
    model.criterion = model.model.pixel_level_module.encoder.swin.layernorm = nn.Identity()
    return model


def rename(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """MMDetection's state dict under the names of `network`; what nobody knows stays, to be refused by the strict
    match.
    """
    renamed: dict[str, Tensor] = {}
    for key, value in tensors.items():
        if key.endswith(".relative_position_index"):  # follows from the size of the window
            continue
        for pattern, replacement in NAMES:
            key = re.sub(pattern, replacement, key)
        if ".downsample." in key:
            value = unfold_to_slices(value)
        if "{}" in key:
            renamed |= {key.format(part): rows for part, rows in zip("qkv", value.chunk(3), strict=True)}
        else:
            renamed[key] = value
    return renamed


def unfold_to_slices(value: Tensor) -> Tensor:
    """Weights `[..., 4C]` of Swin's patch merging for another order of its 4C inputs.

    MMDetection gathers 2 x 2 patches with `nn.Unfold`: channel, row, column. transformers, as Swin's authors, puts
    slices behind each other: column, row, channel.
    """
    return value.unflatten(-1, (-1, 2, 2)).transpose(-1, -3).flatten(-3)
