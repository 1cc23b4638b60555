"""A setup as the query of the page's address, so that a page can be reloaded and shared."""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Mapping
from urllib.parse import urlencode

import numpy as np

from cogen_fast.app.offers import Offer
from cogen_fast.app.picture import Flags, Painted, Shape, packed, unpacked
from cogen_fast.app.setup import FILL, Settings, settings
from cogen_fast.support.arguments import check_choice

MOST = 6_000
"""The longest query: where the picture would make it longer, it is left out, and so is the mask."""


def to_query(offer: Offer, chosen: Settings, picture: Painted) -> str:
    """The query for these."""
    plain = {
        "generator": offer.name,
        "task": chosen.task,
        "factor": chosen.factor,
        "completions": chosen.chains,
        "noise": chosen.noise_std,
        "gradients": chosen.budget,
        "seed": chosen.seed,
    }
    mask = {} if picture.hidden is None else {"hidden": _text(packed(picture.hidden))}
    whole = {**plain, **mask, "picture": _text(picture.pixels.tobytes())}
    texts = (urlencode(part) for part in (whole, plain | mask))
    return next((text for text in texts if len(text) <= MOST), urlencode(plain))


def offer_of(query: Mapping[str, str], offers: Mapping[str, Offer]) -> Offer:
    """The generator that a query names, by default the first. ValueError for unknown names."""
    name = query.get("generator", next(iter(offers)))
    return offers[check_choice("generator", name, tuple(offers))]


def settings_of(query: Mapping[str, str], offer: Offer) -> Settings:
    """The settings in a query, where it has none the defaults. ValueError for wrong ones."""
    usual = Settings()
    return settings(
        offer,
        query.get("task", usual.task),
        _number(query, "factor", offer.usual_factor),
        _number(query, "completions", usual.chains),
        _number(query, "noise", usual.noise_std),
        _number(query, "gradients", usual.budget),
        _number(query, "seed", usual.seed),
    )


def picture_of(query: Mapping[str, str], offer: Offer, chosen: Settings) -> Painted | None:
    """The picture in a query; with a mask alone, the first of the list. None without both.

    ValueError for other texts than those that `to_query` has written.
    """
    shape = chosen.shape(offer)
    hidden = None
    if chosen.task == FILL and "hidden" in query:
        hidden = _flags(query["hidden"], shape)
    if "picture" not in query:
        return None if hidden is None else Painted(offer.begin(offer.sources[0]).pixels, hidden)
    content = _bytes("picture", query["picture"], int(np.prod(shape)))
    if chosen.task == FILL and hidden is None:
        raise ValueError("hidden: expected the hidden pixels beside the picture, got none")
    return Painted(np.frombuffer(content, np.uint8).reshape(shape).copy(), hidden)


def _flags(text: str, shape: Shape) -> Flags:
    _, height, width = shape
    return unpacked(_bytes("hidden", text, -(-height * width // 8)), (height, width))


def _number(query: Mapping[str, str], name: str, usual: float) -> float:
    text = query.get(name, str(usual))
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{name}: expected a number, got {text[:40]!r}") from None


def _text(content: bytes) -> str:
    return base64.urlsafe_b64encode(zlib.compress(content, 9)).decode("ascii").rstrip("=")


def _bytes(name: str, text: str, count: int) -> bytes:
    """``count`` bytes from what `_text` has made of them; nothing longer is ever unpacked."""
    try:
        content = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        found = zlib.decompressobj().decompress(content, count + 1)
    except (ValueError, binascii.Error, zlib.error):
        raise ValueError(f"{name}: expected what the page has written, got another text") from None
    if len(found) != count:
        raise ValueError(f"{name}: expected {count:,} bytes, got another number")
    return found
