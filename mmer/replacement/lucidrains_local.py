"""lucidrains' local-attention: windows that see their neighbours."""

from __future__ import annotations

from typing import Any

import torch
from local_attention.local_attention import LocalAttention
from torch import Tensor

from mmer.kernels import chunked_attention

from .fused import FusedModule, too_wide


class FusedLocalAttention(FusedModule, LocalAttention):
    """Attention of every window to itself and to its neighbours, without copies of the keys."""

    @staticmethod
    def refusal(module: Any, name: str) -> str | None:
        """Return why an attention cannot become fused."""
        if module.shared_qk:
            return "shared_qk normalises the keys and punishes a token's attention to itself"
        if module.use_xpos and module.rel_pos is not None:
            return "use_xpos scales by the distance, which overflows over a whole sequence"
        return None

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None = None,
        input_mask: Tensor | None = None,
        attn_bias: Tensor | None = None,
        window_size: int | None = None,
    ) -> Tensor:
        """Attend within windows.

        Args:
            q: (..., time, dim), rotated here where the module has rotary positions.
            k: (..., time, dim).
            v: (..., time, dim).
            mask: (batch, time) bool, True = real; the leading axes of ``q`` together are batch x
                heads.
            input_mask: another name of ``mask``.
            attn_bias: leaves the call to the library.
            window_size: leaves the call to the library.
        """
        real = input_mask if mask is None else mask
        reason = None
        if attn_bias is not None:
            reason = "attn_bias is given"
        elif window_size is not None:
            reason = "window_size is given"
        elif q.shape[:-1] != k.shape[:-1] or q.shape[:-1] != v.shape[:-1]:
            reason = "queries, keys and values differ in shape"
        elif q.shape[-2] % self.window_size and not self.autopad:
            reason = "the time is no multiple of the window"
        else:
            reason = too_wide(max(q.shape[-1], v.shape[-1]))
        if reason is not None:
            return self.original_forward(reason, q, k, v, mask, input_mask, attn_bias, window_size)
        shape = v.shape
        # (batch x heads, time, dim) -> (batch, heads, time, dim), as the mask divides them.
        batch = 1 if real is None else real.shape[0]
        q, k, v = (x.reshape(batch, -1, *x.shape[-2:]) for x in (q, k, v))
        if self.rel_pos is not None:
            q, k = self._rotate(q, k)
        # exact_windowsize slides with each token: chunks of one.
        chunk_size, chunks = (
            (1, self.window_size) if self.exact_windowsize else (self.window_size, 1)
        )
        out = chunked_attention(
            q,
            k,
            v,
            chunk_size,
            chunks * self.look_backward,
            chunks * self.look_forward,
            self.causal,
            mask=real,
            scale=self.scale,
            dropout_p=self.dropout.p if self.training else 0.0,
            backend=self.attention_backend,
        )
        assert isinstance(out, Tensor)
        return out.reshape(shape)

    def _rotate(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Turn queries and keys by their positions.

        The library counts positions within what a window sees, and puts the queries at its end, so
        that they come ``look_forward`` windows too late. Only differences of positions matter:
        these are the library's. Angles are computed in float64, in which a position of a long
        sequence is as good as one of a window.
        """
        positions = torch.arange(q.shape[-2], device=q.device, dtype=torch.float64)
        frequencies = self.rel_pos.inv_freq.double()
        late = self.look_forward * self.window_size
        return (
            turn(q, (positions + late)[:, None] * frequencies),
            turn(k, positions[:, None] * frequencies),
        )


def turn(x: Tensor, angles: Tensor) -> Tensor:
    """Turn channel p and channel p + dim / 2 of (..., time, dim) by angles (time, dim / 2)."""
    cosines = torch.cat((angles, angles), dim=-1).cos().float()
    sines = torch.cat((angles, angles), dim=-1).sin().float()
    first, second = x.chunk(2, dim=-1)
    return (x * cosines + torch.cat((-second, first), dim=-1) * sines).to(x.dtype)
