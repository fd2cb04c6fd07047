"""A stretch of queries and all the keys that one of them sees: what a stream computes at a time.

The queries lie in one chunk. The keys are its window, the summaries those that the chunk sees, each
with the number of real tokens that it stands for. There is a forward only: no gradient flows
through a stream's state.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..attend import attend, compute_dtype, in_full_precision, zero_padding
from ..registration import OperatorDefinition


class WindowOptions(NamedTuple):
    """Options in the order of the registered operator's schema.

    Attributes:
        summary_k: (batch, heads, chunks, head_dim) or None.
        summary_v: (batch, heads, chunks, value_dim) or None.
        summary_count: (batch, chunks) int64, real tokens of each summary; one of 0 is not seen.
        query_mask: (batch, queries) bool or None.
        mask: (batch, keys) bool or None.
        first_query: the key that comes with the first query.
        causal: no query sees a key later than itself.
        scale: factor on the similarity.
    """

    summary_k: Tensor | None
    summary_v: Tensor | None
    summary_count: Tensor | None
    query_mask: Tensor | None
    mask: Tensor | None
    first_query: int
    causal: bool
    scale: float


@in_full_precision
def forward(q: Tensor, k: Tensor, v: Tensor, options: WindowOptions) -> tuple[Tensor, Tensor]:
    """Return out (batch, heads, queries, value_dim) and lse (batch, heads, queries)."""
    dtype, queries, keys = compute_dtype(q.dtype), q.shape[2], k.shape[2]
    query = zero_padding(q.to(dtype), options.query_mask)
    key, value = (zero_padding(x.to(dtype), options.mask) for x in (k, v))
    # (batch or 1, 1, queries, keys)
    visible = torch.ones(1, 1, queries, keys, dtype=torch.bool, device=q.device)
    if options.causal:
        visible = visible.tril(options.first_query)
    if options.mask is not None:
        visible = visible & options.mask[:, None, None, :]
    scores = options.scale * (query @ key.transpose(-1, -2))
    count = options.summary_count
    if options.summary_k is not None and options.summary_v is not None and count is not None:
        summary_k, summary_v = (
            zero_padding(x.to(dtype), count > 0) for x in (options.summary_k, options.summary_v)
        )
        bias = count.clamp(min=1).to(dtype).log()[:, None, None, :]
        summary_scores = options.scale * (query @ summary_k.transpose(-1, -2)) + bias
        seen = (count > 0)[:, None, None, :].expand(-1, -1, queries, -1)
        scores = torch.cat((scores, summary_scores), dim=-1)
        visible = torch.cat((visible.expand(count.shape[0], -1, -1, -1), seen), dim=-1)
        value = torch.cat((value, summary_v), dim=2)
    if options.query_mask is not None:
        visible = visible & options.query_mask[:, None, :, None]
    out, lse = attend(scores, visible, value, None)
    return out.to(q.dtype), lse


def _output_shapes(tensors: Sequence[Tensor]) -> list[tuple[int, ...]]:
    q, _, v = tensors
    return [(q.shape[0], q.shape[1], q.shape[2], v.shape[3])]


WINDOW = OperatorDefinition(
    name="chunked_attention_window",
    tensors=("q", "k", "v"),
    options_type=WindowOptions,
    differentiable_options=0,
    outputs=1,
    output_shapes=_output_shapes,
    forward=forward,
    backward=None,
)
