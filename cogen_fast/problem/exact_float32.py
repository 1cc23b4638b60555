"""Float32 arithmetic as it is stored: TF32 and other shortened products are off for a while.

These settings belong to the process, not to a thread. Since version 2.9 torch has one for each
operation of a library (``fp32_precision``) beside older flags for several at once, whose getters
raise an error where the two disagree; here they agree, inside and afterwards.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from threading import Lock, get_ident
from typing import Any

import torch

_EXACT, _INHERITED = "ieee", "none"


class ExactFloat32:
    """Exact float32 while any thread holds it."""

    def __init__(self) -> None:
        self._lock, self._settings = Lock(), ExitStack()
        self._holders: Counter[int] = Counter()  # how often each thread holds it
        self._claimed: str | None = None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Exact inside; the last holder to leave restores the settings of before the first.

        Raises RuntimeError where another thread has claimed the settings.
        """
        thread = get_ident()
        with self._lock:
            self._check_others(thread, self._claimed)
            if not self._holders:
                self._settings.enter_context(_exact())
            self._holders[thread] += 1
        try:
            yield
        finally:
            with self._lock:
                self._holders = +(self._holders - Counter([thread]))
                if not self._holders:
                    self._claimed = None
                    self._settings.close()

    def claim(self, name: str) -> None:
        """Let this thread change the settings for a while, until the last holder leaves.

        Raises RuntimeError, which names the argument ``name``, where other threads hold them.
        """
        with self._lock:
            self._check_others(get_ident(), name)
            self._claimed = name

    def _check_others(self, thread: int, claimed: str | None) -> None:
        if claimed is not None and self._holders.keys() - {thread}:
            raise RuntimeError(
                f"{claimed}: TF32 on CUDA is a setting of the whole process, so no two threads can "
                "make runs at the same time where one of them uses it; make them in processes"
            )


@contextmanager
def _exact() -> Iterator[None]:
    holders = _holders()
    with ExitStack() as stack:
        for each in holders:
            stack.callback(_restore, each, each.fp32_precision)
            each.fp32_precision = _EXACT
        # The older flags can be read now, and turning them off changes the settings above.
        if (products := torch.get_float32_matmul_precision()) != "highest":
            stack.callback(torch.set_float32_matmul_precision, products)
            torch.set_float32_matmul_precision("highest")
        if _older_convolutions():
            stack.callback(partial(setattr, torch.backends.cudnn, "allow_tf32"), True)
            torch.backends.cudnn.allow_tf32 = False
        for each in holders:
            each.fp32_precision = _EXACT
        yield


def _holders() -> list[Any]:
    """What has a precision, operations before those from whom they inherit; none in old torch."""
    backends = torch.backends
    places = [
        (backends.cuda, "matmul"),
        *((backends.cudnn, name) for name in ("conv", "rnn")),
        *((backends.mkldnn, name) for name in ("matmul", "conv", "rnn")),
        (backends, "cudnn"),
        (torch, "backends"),
    ]
    found = [getattr(owner, name, None) for owner, name in places]
    return [each for each in found if hasattr(each, "fp32_precision")]


def _restore(holder: Any, precision: str) -> None:
    """Give a holder its precision again, inherited where this is the same."""
    holder.fp32_precision = _INHERITED
    if holder.fp32_precision != precision:
        holder.fp32_precision = precision


def _older_convolutions() -> bool:
    """The older flag of cuDNN, read while its operations are exact."""
    try:
        return bool(torch.backends.cudnn.allow_tf32)
    except RuntimeError:  # it is on, and so disagrees with the operations
        return True
