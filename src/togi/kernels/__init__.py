"""Parts of a decoder as functions of tensors: attention, the softmax of the head, norms, gates, products of few rows.

Compiled functions (`c/`) compute attention, softmax and products where possible; torch computes the rest. The choice is
made here, once per process; `report` returns it. The system's C compiler needs some seconds for the first build.
Without a compiler, or with TOGI_NATIVE=0 in the environment, torch computes everything: more slowly, with the same
results up to rounding. TOGI_NATIVE=avx2 or avx512 limits compiled functions to those instruction sets.
"""

from togi.kernels.attention import Block, Blocks, BlockTable, Options, attend
from togi.kernels.decoding import New, Rows, Stored, decode, supports_decode
from togi.kernels.dispatch import PARTS, identity, report, without
from togi.kernels.gates import gate, gated_linear
from togi.kernels.native import BLOCK
from togi.kernels.norms import Norm, norm
from togi.kernels.packing import PackedWeight, linear, pack, product_type
from togi.kernels.softmax import LogitShape, Softmax, entropy_, softmax_, softmax_backward_

__all__ = [
    "BLOCK",
    "PARTS",
    "Block",
    "BlockTable",
    "Blocks",
    "LogitShape",
    "New",
    "Norm",
    "Options",
    "PackedWeight",
    "Rows",
    "Softmax",
    "Stored",
    "attend",
    "decode",
    "entropy_",
    "gate",
    "gated_linear",
    "identity",
    "linear",
    "norm",
    "pack",
    "product_type",
    "report",
    "softmax_",
    "softmax_backward_",
    "supports_decode",
    "without",
]
