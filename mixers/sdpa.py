"""torch's scaled_dot_product_attention: its choice of a kernel left to it, asked for or forced."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

Forced = Literal["sdpa_flash", "sdpa_cudnn"]
BACKENDS: dict[str, SDPBackend] = {
    "sdpa_flash": SDPBackend.FLASH_ATTENTION,
    "sdpa_cudnn": SDPBackend.CUDNN_ATTENTION,
}


def unsupported(impl: Forced, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why that kernel cannot run there, in words; None when it can."""
    if device.type != "cuda":
        return f"impl={impl!r} needs a CUDA device, not {device}: use impl='sdpa'"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"impl={impl!r} takes bfloat16 or float16, not {dtype}: use impl='sdpa'"
    if impl == "sdpa_flash" and not torch.backends.cuda.is_flash_attention_available():
        return f"impl={impl!r} needs a torch that is built with it: use impl='sdpa'"
    if impl == "sdpa_cudnn" and not torch.backends.cudnn.is_available():
        return f"impl={impl!r} needs a torch with cuDNN: use impl='sdpa'"
    return None


def attend(
    q: Float[Tensor, "b t h k"],
    k: Float[Tensor, "b s h k"],
    v: Float[Tensor, "b s h k"],
    *,
    causal: bool,
    mask: Bool[Tensor, "#b s"] | None,
    backend: SDPBackend | None = None,
) -> Float[Tensor, "b t h k"]:
    """softmax(q k / sqrt(k)) v by torch. `mask`: the keys that may be seen; not with `causal`.

    `backend`: the kernel to run; None leaves it to torch. Raises ValueError for a mask with the
    flash kernel, and torch's RuntimeError for other inputs that a forced kernel does not take.
    """
    if mask is not None and backend == SDPBackend.FLASH_ATTENTION:
        raise ValueError(
            "impl = 'sdpa_flash' takes no mask, which decoding needs over its cache, and both "
            "directions with padding: use impl = 'sdpa'"
        )
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    mask = None if mask is None else mask[:, None, None]
    with nullcontext() if backend is None else sdpa_kernel(backend):
        return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal).transpose(1, 2)


def picked(x: Float[Tensor, "b t h k"]) -> str:
    """The kernel that torch takes under a causal mask where query, key and value are like x:
    flash, efficient, cudnn or math."""
    x = x.transpose(1, 2)
    # What scaled_dot_product_attention itself asks; torch offers no other way to know.
    number = torch._fused_sdp_choice(  # pyright: ignore[reportPrivateImportUsage]
        x, x, x, None, 0.0, True
    )
    chosen = SDPBackend(number)
    return chosen.name.lower().removesuffix("_attention")
