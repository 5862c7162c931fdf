"""What an optimizer's state says of directions: where its geometry is diagonal, how it ranks them, how it scales them.

Every geometry of LITE is diagonal somewhere: AdamW's in the parameter's own coordinates, SOAP's in its eigenbasis,
Muon's in the singular vectors of the momentum. There its proxy of sharpness, its preconditioner F and its projector Q
are numbers per direction, which measurements read without moving anything.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lite_probe.optim.buckets import Piece


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One piece of a parameter in coordinates Q_Lᵀ X Q_R."""

    piece: Piece
    left: Tensor | None  # (count, m, m) orthonormal columns; None: not rotated
    right: Tensor | None  # (count, n, n)

    def rotate(self, x: Tensor) -> Tensor:
        """Return Q_Lᵀ X Q_R of a stack in its element type, a missing side left as it is."""
        if self.left is not None:
            x = torch.matmul(self.left.mT.to(x.dtype), x)
        return x if self.right is None else torch.matmul(x, self.right.to(x.dtype))

    def rotate_back(self, x: Tensor) -> Tensor:
        """Return Q_L X Q_Rᵀ."""
        if self.left is not None:
            x = torch.matmul(self.left.to(x.dtype), x)
        return x if self.right is None else torch.matmul(x, self.right.mT.to(x.dtype))


@dataclass(frozen=True, slots=True, kw_only=True)
class Directions(Frame):
    """A piece in coordinates in which its geometry is diagonal, and what it is there.

    `proxy`, `divisor` and `flat` broadcast over the rotated piece, (count, m, n) or (1, n).
    """

    proxy: Tensor  # squared gradient by which LITE tells sharp from flat: larger is sharper
    divisor: Tensor  # F over the geometry's step scale: a step is −lr · rotate_back(rotate(averaged gradient)/divisor)
    flat: Tensor  # weight of each direction in LITE's Q, in [0, 1]; a single 0 where nothing is told apart
    distinguishes: bool  # whether the optimizer tells sharp from flat here; else `flat` is 0

    @property
    def frame(self) -> Frame:
        """The coordinates alone."""
        return Frame(piece=self.piece, left=self.left, right=self.right)
