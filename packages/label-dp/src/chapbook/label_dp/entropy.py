"""Random integers for privacy: entropy of the operating system, expanded by ChaCha20."""

import hashlib
import os

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from jaxtyping import Int, UInt64

from chapbook.core.errors import Error
from chapbook.label_dp.exact import RANGE_BITS

# ChaCha20 counts 64-byte blocks in 32 bits; a new key long before that also means that a key that
# leaks cannot give away the noise drawn under the earlier ones.
_BYTES_PER_KEY = 1 << 30
_ZEROS = bytes(1 << 16)


class Entropy:
    """A stream of uniform random integers that nobody can guess, or one that can be repeated.

    Without a seed the stream is ChaCha20 under a key from the operating system, and it is never
    repeated: copies, pickles and forked processes start under a key of their own. With a seed it
    is ChaCha20 under a key that follows from the seed: whoever knows the seed can remove the
    noise, so that nothing drawn from it is private.

    One stream belongs to one thread.

    Args:
        seed: None for private noise, or an integer of at most 256 bits for repeatable noise.
    """

    def __init__(self, seed: int | None = None):
        self._material: bytes | None = None
        if seed is not None:
            if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
                raise Error(f"the seed is {seed!r}; it must be an integer")
            if abs(int(seed)).bit_length() > 256:
                raise Error("the seed has more than 256 bits")
            self._material = b"seed" + int(seed).to_bytes(33, "little", signed=True)
        self._renew()

    @property
    def seeded(self) -> bool:
        """Whether the stream can be repeated by whoever knows the seed: then it is not private."""
        return self._material is not None

    def child(self, index: int) -> "Entropy":
        """Returns an independent stream: the same for the same seed and index, else a fresh one.

        Args:
            index: Which child, 0 or more; say, the number of a row group.
        """
        child = Entropy()
        if self._material is not None:
            child._material = hashlib.blake2b(
                self._material + b"child" + index.to_bytes(8, "little")
            ).digest()
            child._renew()
        return child

    def words(self, count: int) -> UInt64[np.ndarray, " count"]:
        """Returns `count` independent integers, uniform over 0 to 2^64 - 1."""
        if self._material is None and self._process != os.getpid():
            self._renew()  # after a fork, parent and child must not draw the same noise
        out = bytearray(8 * count)
        view, done = memoryview(out), 0
        while done < len(out):
            if self._left == 0:
                self._next_key()
            size = min(len(out) - done, self._left, len(_ZEROS))
            view[done : done + size] = self._stream.update(_ZEROS[:size])
            done += size
            self._left -= size
        return np.frombuffer(out, "<u8")

    def below(self, bounds: Int[np.ndarray, "*shape"]) -> Int[np.ndarray, "*shape"]:
        """Returns one integer per bound, uniform over 0 to bound - 1 without any bias.

        A draw of 62 bits at or above the largest multiple of the bound is drawn again.

        Args:
            bounds: Integers from 1 to 2^62.
        """
        bounds = np.asarray(bounds, np.int64)
        limits = bounds * ((1 << RANGE_BITS) // bounds)
        return self.under(limits) % bounds

    def under(self, limits: Int[np.ndarray, "*shape"]) -> Int[np.ndarray, "*shape"]:
        """Returns one integer per limit, uniform over 0 to limit - 1 without any bias.

        Draws of 62 bits at or above the limit are drawn again: meant for limits near 2^62.

        Args:
            limits: Integers from 1 to 2^62.
        """
        limits = np.asarray(limits, np.int64)
        flat = limits.reshape(-1)
        draws = self._words62(flat.size)
        again = np.flatnonzero(draws >= flat)
        while again.size:
            draws[again] = self._words62(again.size)
            again = again[draws[again] >= flat[again]]
        return draws.reshape(limits.shape)

    def permutation(self, count: int) -> Int[np.ndarray, " count"]:
        """Returns a random order of 0 to count - 1: the order of as many independent words."""
        return np.argsort(self.words(count), kind="stable")

    def __reduce__(self):
        if self.seeded:
            raise TypeError("a seeded Entropy cannot be copied or pickled: make one from its seed")
        return Entropy, ()

    def _words62(self, count: int) -> np.ndarray:
        return (self.words(count) >> np.uint64(64 - RANGE_BITS)).view(np.int64)

    def _renew(self) -> None:
        self._process = os.getpid()
        self._keys_used = 0
        self._next_key()

    def _next_key(self) -> None:
        if self._material is None:
            key = os.urandom(32)
        else:
            number = self._keys_used.to_bytes(8, "little")
            key = hashlib.blake2b(self._material + b"key" + number, digest_size=32).digest()
        self._keys_used += 1
        self._left = _BYTES_PER_KEY
        self._stream = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()
