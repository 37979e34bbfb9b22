"""Parts of a decoder as total functions: tensors in, tensors out.

Compiled functions (`c/`) compute them where they can, torch does elsewhere; which of them is decided inside, once a
process, and `report` says so. Compiling takes the system's C compiler some seconds, once. Without a compiler, or with
TOGI_NATIVE=0 in the environment, torch alone computes: slower, and the same up to rounding. TOGI_NATIVE=avx2 or avx512
limits compiled functions to those instructions on a processor that has more.
"""

from togi.kernels.attention import Block, Blocks, BlockTable, Options, attend
from togi.kernels.decoding import New, Rows, Stored, decode, supports_decode
from togi.kernels.dispatch import PARTS, identity, report, without
from togi.kernels.gates import gate, gated_linear
from togi.kernels.native import BLOCK
from togi.kernels.norms import Norm, norm
from togi.kernels.packing import PackedWeight, linear, pack, product_type
from togi.kernels.rotary import rotate
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
    "rotate",
    "softmax_",
    "softmax_backward_",
    "supports_decode",
    "without",
]
