"""What happens when something on the page is pressed, as functions of what the page holds.

A value that `gradio.skip` gives leaves what is on the page.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import gradio as gr

from cogen_fast.app import address, downloads, views
from cogen_fast.app.offers import Offer, ReadPicture, lower_half
from cogen_fast.app.picture import REFUSED, Painted, file_of, from_image, painted
from cogen_fast.app.runs import Failure, Moment, Runs, Waiting
from cogen_fast.app.setup import ENLARGE, FILL, Settings, Setup, settings
from cogen_fast.results.result import Result
from cogen_fast.support.arguments import check_choice, check_whole

_FIELDS = 20  # a query has fewer


class Actions:
    """The actions of a page that offers some generators.

    ``read`` reads a picture's file; ``runs`` are those of all users. Arguments come from the page,
    and so they may be anything: ``name`` of the generator, ``factor``, a painter's ``value``, the
    ``numbers`` of the settings.
    """

    def __init__(self, offers: Sequence[Offer], read: ReadPicture, runs: Runs) -> None:
        self.offers = {offer.name: offer for offer in offers}
        self._read, self._runs = read, runs

    def offer(self, name: Any) -> Offer:
        """The generator of this name. ValueError if there is none."""
        return self.offers[check_choice("generator", name, tuple(self.offers))]

    def begin(self, task: str, name: Any, source: Any, factor: Any) -> str:
        """The painter's value for another picture of the list."""
        offer = self.offer(name)
        if task == FILL:
            return offer.begin(source).to_value()
        return offer.begin_small(source, _factor(offer, factor)).to_value()

    def open(self, task: str, name: Any, value: Any, factor: Any) -> tuple[Any, Any]:
        """The painter's value for a picture in the file that it has sent, and what is wrong."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "picture"
            try:
                path.write_bytes(file_of(value))
                return self._opened(task, self.offer(name), path, factor).to_value(), ""
            except (ValueError, OSError) as error:
                # The file has a name of the machine's own, which tells the user nothing.
                return REFUSED, views.told(str(error).replace(str(path), "a file"))

    def _opened(self, task: str, offer: Offer, path: Path, factor: Any) -> Painted:
        if task == FILL:
            return from_image(self._read(path, offer.shape), lower_half(offer.shape))
        return from_image(self._read(path, offer.small_shape(_factor(offer, factor))), None)

    def pictures(self, name: Any) -> tuple[Any, ...]:
        """What belongs to a generator: its pictures, the factors, and what both painters show."""
        offer = self.offer(name)
        first, factor = offer.sources[0], offer.usual_factor
        sources = gr.update(choices=offer.sources, value=first)
        factors = gr.update(choices=offer.factors, value=offer.begun_factor)
        small = offer.begin_small(first, factor).to_value()
        return sources, offer.begin(first).to_value(), sources, factors, small

    def run(
        self, request: gr.Request, task: str, name: Any, factor: Any, value: Any, *numbers: Any
    ) -> Iterator[tuple[Any, ...]]:
        """Run what the page asks for, and show it while it goes on.

        Gives status, results, whether either button and the stop can be pressed, and the files.
        """
        try:
            setup = self._setup(task, name, factor, value, *numbers)
            seen = self._runs.views(_session(request), setup)
            yield _page(views.starting(), views.INVITATION, running=True, begins=True)
            for view in seen:
                if isinstance(view, Result):
                    yield from _finished(setup, view)
                else:
                    yield _page(*_shown(view), running=not isinstance(view, Failure))
        except ValueError as error:
            yield _page(views.told(str(error)), gr.skip(), running=False)

    def stop(self, request: gr.Request) -> Any:
        """End the run of the page after its present temperature; gives the button meanwhile."""
        self._runs.stop(_session(request))
        return gr.update(value=views.STOPPING, interactive=False)

    def leave(self, request: gr.Request) -> None:
        """End the run of a page that is closed."""
        self._runs.stop(_session(request))

    def address(self, task: str, name: Any, factor: Any, value: Any, *numbers: Any) -> Any:
        """The query of the address; it stays as it was while something on the page is wrong."""
        try:
            setup = self._setup(task, name, factor, value, *numbers)
        except ValueError:
            return gr.skip()
        return address.to_query(setup.offer, setup.settings, setup.picture)

    def _setup(self, task: str, name: Any, factor: Any, value: Any, *numbers: Any) -> Setup:
        offer = self.offer(name)
        used = factor if task == ENLARGE else offer.usual_factor
        chosen = settings(offer, task, used, *numbers)
        return Setup(offer, chosen, painted(value, chosen.shape(offer), masked=task == FILL))

    def restore(self, query: Any) -> tuple[Any, ...]:
        """What the page shows first: what its address says, and a note on that.

        Gives the generator, the tab, `pictures`, the four numbers, and the status.
        """
        try:
            offer, chosen, picture, note = self._restored(query)
        except ValueError as error:
            offer, chosen, picture = next(iter(self.offers.values())), Settings(), None
            note = f"The address of this page is not one that it has written. {error}"
        sources, fill, small_sources, factors, small = self.pictures(offer.name)
        if chosen.task == ENLARGE:
            factors["value"] = chosen.factor
            small = offer.begin_small(offer.sources[0], chosen.factor).to_value()
        if picture is not None:
            value = picture.to_value()
            fill, small = (value, small) if chosen.task == FILL else (fill, value)
        return (
            *(offer.name, gr.update(selected=chosen.task)),
            *(sources, fill, small_sources, factors, small),
            *(chosen.chains, chosen.noise_std, chosen.budget, chosen.seed),
            note and views.noted(note),
        )

    def _restored(self, query: Any) -> tuple[Offer, Settings, Painted | None, str]:
        if not isinstance(query, str) or len(query) > address.MOST:
            raise ValueError(f"query: expected at most {address.MOST:,} characters")
        fields = dict(parse_qsl(query, max_num_fields=_FIELDS))
        offer = address.offer_of(fields, self.offers)
        chosen = address.settings_of(fields, offer)
        left_out = "hidden" in fields and "picture" not in fields
        note = "The picture is too large for the address: open it again." if left_out else ""
        return offer, chosen, address.picture_of(fields, offer, chosen), note


def _session(request: gr.Request) -> str:
    return str(request.session_hash)


def _factor(offer: Offer, factor: Any) -> int:
    if factor not in offer.factors:
        raise ValueError(f"factor: expected one of {offer.factors}, got another")
    return check_whole("factor", factor, 1)


def _shown(view: Waiting | Moment | Failure) -> tuple[str, Any]:
    """Status and results."""
    if isinstance(view, Moment):
        return views.moment(view), views.population(view)
    if isinstance(view, Waiting):
        return views.waiting(view), gr.skip()
    return views.failed(view), gr.skip()


def _finished(setup: Setup, result: Result) -> Iterator[tuple[Any, ...]]:
    """The result, and its files, which Gradio copies before it asks for more."""
    with tempfile.TemporaryDirectory() as folder:
        files = downloads.write(Path(folder), setup, result)
        yield _page(views.ended(result), views.completions(result), running=False, files=files)


def _page(
    status: str, results: Any, *, running: bool, begins: bool = False, files: Sequence[Path] = ()
) -> tuple[Any, ...]:
    press = gr.update(interactive=not running)
    shown = [gr.update(value=str(path), visible=True) for path in files]
    hidden = [gr.update(visible=False)] * (len(downloads.NAMES) - len(shown))
    stop = gr.update(visible=running)
    if begins:
        stop = gr.update(value=views.STOP, interactive=True, visible=True)
    return status, results, press, press, stop, *shown, *hidden
