"""The page: what it is made of, and what happens when something on it is pressed."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import gradio as gr

from cogen_fast.app import views
from cogen_fast.app.actions import Actions
from cogen_fast.app.setup import ENLARGE, FILL, MOST_BUDGET, MOST_CHAINS, Settings

_AT_ONCE = 16  # users who wait for their turn; further ones wait in Gradio's queue
_CACHE = (3600, 86400)  # seconds: how often files are looked through, and how old they may become
_HEAD = """\
<div class="cf-head"><h1>cogen-fast</h1>
<p>Hide a part of a picture, and see what a generator would put there: not one answer, but
samples of all that fit.</p></div>
"""
_TO_ADDRESS = "(query) => { if (query) history.replaceState(null, '', '?' + query); }"
_FROM_ADDRESS = "() => [window.location.search.slice(1)]"
_LONG: dict[str, Any] = {"concurrency_limit": _AT_ONCE, "concurrency_id": "runs"}
_QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}


class Page:
    """The page with these actions; `build` makes it."""

    def __init__(self, actions: Actions) -> None:
        self._actions = actions
        self._first = next(iter(actions.offers.values()))
        self._enlarges = any(offer.factors for offer in actions.offers.values())

    def build(self) -> gr.Blocks:
        """The page, for Gradio to serve."""
        with gr.Blocks(
            title="cogen-fast", analytics_enabled=False, delete_cache=_CACHE, fill_width=True
        ) as blocks:
            gr.HTML(_HEAD)
            with gr.Row():
                with gr.Column(scale=4, min_width=340):
                    self._add_left()
                with gr.Column(scale=6, min_width=340):
                    self._add_right()
            self._connect(blocks)
        return blocks

    def _add_left(self) -> None:
        names = list(self._actions.offers)
        self._generator = gr.Dropdown(
            names, value=names[0], label="Generator", visible=len(names) > 1
        )
        with gr.Tabs() as self._tabs:
            with gr.Tab("Fill in", id=FILL):
                self._source = self._add_source(FILL)
                self._picture = _painter("fill")
                self._fill = gr.Button("Draw completions", variant="primary", elem_id="cf-run-fill")
            with gr.Tab("Enlarge", id=ENLARGE, visible=self._enlarges):
                self._small_source = self._add_source(ENLARGE)
                self._factor = gr.Radio(
                    self._first.factors, value=self._first.begun_factor, label="Enlarge by"
                )
                self._small = _painter("enlarge")
                self._enlarge = gr.Button(
                    "Draw large pictures", variant="primary", elem_id="cf-run-enlarge"
                )
        with gr.Accordion("Settings", open=False):
            self._add_settings()

    def _add_source(self, task: str) -> gr.Dropdown:
        sources = self._first.sources
        return gr.Dropdown(sources, value=sources[0], label="Picture", elem_id=f"cf-source-{task}")

    def _add_settings(self) -> None:
        usual = Settings()
        self._chains = gr.Slider(
            1, MOST_CHAINS, value=usual.chains, step=1, label="Number of completions"
        )
        self._noise = gr.Slider(
            0.02,
            1.0,
            value=usual.noise_std,
            step=0.01,
            label="Noise",
            info="Standard deviation of what is visible, where black is -1 and white is 1. With a "
            "smaller one the completions follow it more closely, and a run takes longer.",
        )
        self._budget = gr.Number(
            usual.budget,
            label="Gradients for each completion",
            info="0: as many as needed.",
            precision=0,
            minimum=0,
            maximum=MOST_BUDGET,
        )
        self._seed = gr.Number(
            usual.seed,
            label="Seed",
            info="The same seed, picture and settings give the same completions.",
            precision=0,
            minimum=0,
        )

    def _add_right(self) -> None:
        self._status = gr.HTML(elem_id="cf-status")
        labels = ("Picture (PNG)", "Arrays (npz)", "Script that repeats this run")
        with gr.Row():
            self._stop = gr.Button(views.STOP, size="sm", visible=False, elem_id="cf-stop")
            self._downloads = [
                gr.DownloadButton(label, size="sm", visible=False, elem_id=f"cf-download-{number}")
                for number, label in enumerate(labels)
            ]
        self._results = gr.HTML(views.INVITATION, elem_id="cf-results", elem_classes="cf-results")
        self._query = gr.Textbox(visible="hidden", elem_id="cf-query")

    def _connect(self, blocks: gr.Blocks) -> None:
        act = self._actions
        numbers = [self._chains, self._noise, self._budget, self._seed]
        status = [self._status, self._results, self._fill, self._enlarge, self._stop]
        for name, painter, button in (
            (FILL, self._picture, self._fill),
            (ENLARGE, self._small, self._enlarge),
        ):
            task = gr.State(name)
            given = [task, self._generator, self._factor, painter, *numbers]
            keep = (act.address, given, self._query)
            gr.on([painter.input, button.click], *keep, queue=False, **_QUIET)
            button.click(act.run, given, status + self._downloads, **_LONG, **_QUIET)
            self._connect_pictures(name, task, keep)
        self._query.change(None, self._query, None, js=_TO_ADDRESS)
        self._stop.click(act.stop, None, self._stop, queue=False, **_QUIET)
        pictures = [self._source, self._picture, self._small_source, self._factor, self._small]
        self._generator.input(act.pictures, self._generator, pictures, **_QUIET)
        form = [self._generator, self._tabs, *pictures, *numbers, self._status]
        blocks.load(act.restore, self._query, form, js=_FROM_ADDRESS, queue=False, **_QUIET)
        blocks.unload(act.leave)

    def _connect_pictures(self, name: str, task: gr.State, keep: tuple[Any, ...]) -> None:
        """Connect what puts another picture into the painter of a task."""
        source, painter = {
            FILL: (self._source, self._picture),
            ENLARGE: (self._small_source, self._small),
        }[name]
        changes = [source.input] if name == FILL else [source.input, self._factor.input]
        chosen = [task, self._generator, source, self._factor]
        opened = [task, self._generator, painter, self._factor]
        events = (
            gr.on(changes, self._actions.begin, chosen, painter, **_QUIET),
            painter.upload(self._actions.open, opened, [painter, self._status], **_QUIET),
        )
        for event in events:
            event.then(*keep, queue=False, **_QUIET)


def _painter(task: str) -> gr.HTML:
    """A painter without a picture: `Actions.restore` gives it one when the page is loaded."""
    return gr.HTML(
        "",
        html_template=_text("painter.html"),
        js_on_load=_text("painter.js"),
        elem_id=f"cf-painter-{task}",
        elem_classes="cf-painter",
    )


def stylesheet() -> str:
    """The style of the page."""
    return _text("page.css")


def _text(name: str) -> str:
    return (files("cogen_fast.app") / name).read_text(encoding="utf-8")
