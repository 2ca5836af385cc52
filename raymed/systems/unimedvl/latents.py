"""Latent tokens of pictures: from the frozen autoencoder, or from what it said of the same picture before."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor

from raymed.systems.unimedvl.autoencoder import ImageAutoencoder

MIB = 2**20


class LatentCache:
    """The latest pictures' latents, on the host, up to so many bytes.

    What is kept is the mean and the deviation, not a sample: a picture seen again is drawn from the same distribution anew.
    """

    def __init__(self, mebibytes: int) -> None:
        self._capacity, self._used = mebibytes * MIB, 0
        self._kept: OrderedDict[bytes, tuple[Tensor, Tensor]] = OrderedDict()
        self.hits = self.misses = 0

    def encode(self, autoencoder: ImageAutoencoder, picture: Tensor, digest: bytes) -> tuple[Tensor, Tensor]:
        """Mean and deviation of a picture's latent tokens, on the picture's device.

        Args:
            picture: uint8 [3, height, width].
            digest: by which the picture is known.
        """
        if digest in self._kept:
            self.hits += 1
            self._kept.move_to_end(digest)
            mean, deviation = self._kept[digest]
            return mean.to(picture.device, non_blocking=True), deviation.to(picture.device, non_blocking=True)
        self.misses += 1
        moments = autoencoder.encode(picture)
        self._kept[digest] = (moments[0].cpu(), moments[1].cpu())
        self._used += _size(moments)
        while self._used > self._capacity:
            _, oldest = self._kept.popitem(last=False)
            self._used -= _size(oldest)
        return moments


def _size(moments: tuple[Tensor, Tensor]) -> int:
    return sum(moment.nbytes for moment in moments)


def sampled(mean: Tensor, deviation: Tensor, noise: Tensor) -> Tensor:
    """Latent tokens drawn from the autoencoder's distribution: all float32 [tokens, width]."""
    return torch.addcmul(mean, deviation, noise)
