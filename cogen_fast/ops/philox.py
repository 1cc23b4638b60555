"""Counter-based noise: Philox-4x32-10, and our own maps from integers to uniforms and normals.

Every random number of a run is a pure function of (seed, purpose, dimension, transition, chain,
observation), so splitting a batch, resuming a run or pausing observations changes no draw. The
integers are those of Salmon et al. (2011), "Parallel random numbers: as easy as 1, 2, 3", and of
``tl.philox``. This file is the definition, which ``csrc/common/philox.h`` follows.

    key     = the 64-bit seed, low word first
    counter = (purpose << 24 | block, transition, chain, observation)

A block is four 32-bit words, which serve four neighbouring dimensions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated

import torch
from torch import Tensor

from cogen_fast.support.layout import Array, Whole

_MASK = 0xFFFFFFFF
_ROUND_A, _ROUND_B = 0xD2511F53, 0xCD9E8D57
_KEY_A, _KEY_B = 0x9E3779B9, 0xBB67AE85
_ROUNDS = 10
PURPOSE_SHIFT = 24
_Words = Annotated[Tensor, Array("B", torch.int64, low=0, high=2**32 - 1)]
# Values of a stream that can still advance, by more transitions than any run has.
_Advancing = Annotated[Tensor, Array("B", torch.int64, low=0, high=2**31)]


class Purpose(IntEnum):
    """What a draw is for; draws for different purposes never share a counter."""

    LATENT = 0  # prior draws
    MOMENTUM = 1
    ACCEPT = 2  # the uniform of a Metropolis test
    RESAMPLE = 3
    JITTER = 4  # the random factor of a move's step size
    SELECT = 5  # which particles are returned
    TASK = 6  # simulated data of experiments: what is hidden, and measurement noise
    POOL = 7  # which scored prior draws become particles
    LEVEL = 8  # the noise level, where it is inferred


@dataclass(frozen=True)
class NoiseStream:
    """The position of B observations in their streams of noise.

    ``seed`` is a Python integer in [0, 2^64); ``transition`` and ``observation`` are int64 tensors
    ``(B,)`` with values in [0, 2^32).
    """

    seed: Annotated[int, Whole(high=2**64 - 1)]
    transition: _Advancing
    observation: _Words

    def advance(self, active: Tensor | None) -> NoiseStream:
        """The stream one transition later for the observations in ``active`` (None: all of them).

        ``active`` is ``(B,)`` bool.
        """
        step = 1 if active is None else active.to(torch.int64)
        return NoiseStream(self.seed, self.transition + step, self.observation)


def _multiply(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of a 32 x 32 bit product, computed in int64 without overflow."""
    high, low = a >> 16, a & 0xFFFF
    low_product = low * b
    top = (high * b + (low_product >> 16)) >> 16
    bottom = (((high * b) & 0xFFFF) * 65536 + low_product) & _MASK
    return top, bottom


def philox(
    seed: int, c0: Tensor, c1: Tensor, c2: Tensor, c3: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox-4x32-10: four 32-bit words of a counter, each as int64.

    ``c0`` to ``c3`` are int64 tensors that broadcast, and hold 32-bit values.
    """
    k0, k1 = seed & _MASK, (seed >> 32) & _MASK
    for _ in range(_ROUNDS):
        high_a, low_a = _multiply(_ROUND_A, c0)
        high_b, low_b = _multiply(_ROUND_B, c2)
        c0, c1, c2, c3 = high_b ^ c1 ^ k0, low_b, high_a ^ c3 ^ k1, low_a
        k0, k1 = (k0 + _KEY_A) & _MASK, (k1 + _KEY_B) & _MASK
    return c0, c1, c2, c3


def to_uniform(words: Tensor, dtype: torch.dtype) -> Tensor:
    """Map words to (0, 1): to the odd multiples of 2^-24, exact in float32 and never 0 or 1."""
    return ((words >> 9).to(dtype) + 0.5) * 2.0**-23


def _words(
    stream: NoiseStream, purpose: Purpose, chains: int, blocks: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four words for each (observation, chain, block): each of shape ``(B, chains, blocks)``."""
    device = stream.transition.device
    block = torch.arange(blocks, device=device) | (int(purpose) << PURPOSE_SHIFT)
    chain = torch.arange(chains, device=device)[:, None]
    return philox(
        stream.seed,
        block,
        stream.transition[:, None, None],
        chain,
        stream.observation[:, None, None],
    )


def normals(
    stream: NoiseStream, purpose: Purpose, chains: int, size: int, dtype: torch.dtype
) -> Tensor:
    """Standard normals ``(B, chains, size)``, by Box-Muller of neighbouring words."""
    u0, u1, u2, u3 = (
        to_uniform(w, dtype) for w in _words(stream, purpose, chains, (size + 3) // 4)
    )
    pairs = []
    for radius, turn in ((u0, u1), (u2, u3)):
        r, angle = torch.sqrt(-2.0 * torch.log(radius)), (2.0 * math.pi) * turn
        pairs += [r * torch.cos(angle), r * torch.sin(angle)]
    return torch.stack(pairs, dim=-1).flatten(-2)[..., :size].contiguous()


def uniforms(stream: NoiseStream, purpose: Purpose, chains: int, dtype: torch.dtype) -> Tensor:
    """One uniform per chain, ``(B, chains)``, from the first word of block 0."""
    return to_uniform(_words(stream, purpose, chains, 1)[0][..., 0], dtype)
