"""The one door to `moodpo.kernels`: the same results sooner, or plainly where they are missing.

Without the package everything trains and samples as before, only slower.
"""

from __future__ import annotations

try:
    from moodpo.kernels.attention import NAME as OWN_ATTENTION
    from moodpo.kernels.attention import drop_pair_attention, use_pair_attention
    from moodpo.kernels.lora import fuse_lora, runs_fused
    from moodpo.kernels.packed import grouped_attention, packed_linears
    from moodpo.kernels.vocabulary import chunked_logps
except ModuleNotFoundError as error:
    if not str(error.name).startswith("moodpo.kernels"):
        raise
    from moodpo.models.plain import (
        OWN_ATTENTION,
        chunked_logps,
        drop_pair_attention,
        fuse_lora,
        grouped_attention,
        packed_linears,
        runs_fused,
        use_pair_attention,
    )

__all__ = [
    "OWN_ATTENTION",
    "chunked_logps",
    "drop_pair_attention",
    "fuse_lora",
    "grouped_attention",
    "packed_linears",
    "runs_fused",
    "use_pair_attention",
]
