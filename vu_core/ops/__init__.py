"""Pure tensor functions: norms, inner products, masks."""

from vu_core.ops.masks import kept, pack_mask, top_masks, unpack_mask
from vu_core.ops.norms import clip_to_norm, global_norm, gram

__all__ = ["clip_to_norm", "global_norm", "gram", "kept", "pack_mask", "top_masks", "unpack_mask"]
