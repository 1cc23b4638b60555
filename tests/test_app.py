"""The page of `cogen-fast app`: pictures, addresses, runs of several users, and what is refused."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
import pytest
import torch
from diagnoses import SICK, healthy
from torch import Tensor, nn

import cogen_fast
from cogen_fast.app import address, downloads, server, views
from cogen_fast.app.offers import SAMPLE, Offer, lower_half
from cogen_fast.app.picture import REFUSED, Painted, from_image, painted
from cogen_fast.app.runs import Failure, Moment, Runs, Waiting, sample
from cogen_fast.app.setup import ENLARGE, FILL, MOST_SEED, Settings, Setup, settings
from cogen_fast.cli.main import main
from cogen_fast.generators.pretrained import held_out_images, pretrained
from cogen_fast.results.diagnostics import diagnose

SHAPE = (1, 8, 8)


def small_generator(seed: int = 0) -> nn.Module:
    """Four latents to a grey image of 8 x 8 pixels."""
    random = torch.Generator().manual_seed(seed)
    layer = nn.Linear(4, 64)
    layer.weight.data = 0.5 * torch.randn(64, 4, generator=random)
    layer.bias.data.zero_()
    return nn.Sequential(layer, nn.Tanh(), nn.Unflatten(1, SHAPE))


def small_offer(generator: Any = None) -> Offer:
    made = generator or small_generator()
    image = small_generator()(torch.ones(1, 4))[0].detach()
    return Offer("small", made, SHAPE, image, ["G = None"], latent_shape=(4,))


def picture(shape: tuple[int, int, int] = SHAPE, seed: int = 0) -> Painted:
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 256, shape, dtype=np.uint8)
    return Painted(pixels, random.random(shape[1:]) < 0.5)


def setup_of(offer: Offer | None = None, **changed: Any) -> Setup:
    offer = offer or small_offer()
    chosen = replace(Settings(chains=4, budget=200), **changed)
    shown = offer.begin(SAMPLE)
    if chosen.task == ENLARGE:
        shown = offer.begin_small(SAMPLE, chosen.factor)
    return Setup(offer, chosen, shown)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 7), (1, 32, 31)])
def test_what_the_painter_sends_is_the_picture(shape: tuple[int, int, int]) -> None:
    sent = picture(shape)
    found = painted(sent.to_value(), shape, masked=True)
    assert np.array_equal(found.pixels, sent.pixels)
    assert np.array_equal(found.hidden, sent.hidden)
    assert painted(replace(sent, hidden=None).to_value(), shape, masked=False).hidden is None


def test_the_painter_takes_rows_of_pixels_and_the_first_in_the_highest_bit() -> None:
    """The layout on which painter.js relies."""
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 2, 2)
    value = json.loads(Painted(pixels, np.array([[True, False], [False, False]])).to_value())
    assert list(base64.b64decode(value["pixels"])) == [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]
    assert list(base64.b64decode(value["hidden"])) == [0b1000_0000]


def _changed(**fields: Any) -> str:
    return json.dumps({**json.loads(picture().to_value()), **fields})


@pytest.mark.parametrize(
    "value",
    [
        None,
        7,
        b"{}",
        "",
        "[1]",
        "{}",
        "null",
        "[" * 300,
        "x" * 10_000,
        _changed(width=9),
        _changed(width=16, height=4),
        _changed(width="8"),
        _changed(pixels="AAAA"),
        _changed(pixels="é" * 4),
        _changed(pixels=5),
        _changed(hidden=None),
        _changed(hidden="AA=="),
    ],
)
def test_other_values_are_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^(picture|mask): expected"):
        painted(value, SHAPE, masked=True)


def test_pictures_are_rounded_to_the_nearest_of_256_levels() -> None:
    image = torch.linspace(-1.2, 1.2, 64).reshape(SHAPE)
    back = from_image(image, None).image
    assert (back - image.clamp(-1, 1)).abs().max() <= 1 / 255 + 1e-6


def test_a_picture_is_begun_with_the_generators_or_a_grey_one() -> None:
    offer = small_offer()
    assert torch.allclose(offer.begin(SAMPLE).image, offer.sample, atol=1 / 255 + 1e-6)
    small = offer.begin_small(SAMPLE, 4)
    assert small.pixels.shape == (1, 2, 2) and small.hidden is None
    assert abs(small.image.mean() - offer.sample.mean()) <= 1 / 255 + 1e-6
    with pytest.raises(ValueError, match=r"^picture: expected one of"):
        offer.begin("/etc/passwd")


@pytest.mark.parametrize("task", [FILL, ENLARGE])
def test_an_address_restores_everything(task: str) -> None:
    offer = small_offer()
    sent = setup_of(offer, task=task, factor=2, chains=7, noise_std=0.05, budget=99, seed=MOST_SEED)
    query = dict(parse_qsl(address.to_query(offer, sent.settings, sent.picture)))
    assert address.offer_of(query, {"other": offer, "small": offer}) is offer
    chosen = address.settings_of(query, offer)
    assert chosen == sent.settings
    found = address.picture_of(query, offer, chosen)
    assert found is not None
    assert np.array_equal(found.pixels, sent.picture.pixels)
    assert np.array_equal(found.hidden, sent.picture.hidden)


def test_an_address_without_fields_stands_for_the_defaults() -> None:
    offer = small_offer()
    chosen = address.settings_of({}, offer)
    assert chosen == Settings() and address.offer_of({}, {"small": offer}) is offer
    assert address.picture_of({}, offer, chosen) is None


def test_a_large_picture_is_left_out_of_the_address_but_its_mask_is_kept() -> None:
    shape = (3, 64, 64)  # random pixels do not compress: 16,384 characters
    offer = Offer("large", small_generator(), shape, torch.zeros(shape), [])
    shown = Painted(picture(shape).pixels, lower_half(shape))
    query = address.to_query(offer, Settings(), shown)
    assert len(query) <= address.MOST
    fields = dict(parse_qsl(query))
    assert "picture" not in fields
    found = address.picture_of(fields, offer, address.settings_of(fields, offer))
    assert found is not None and np.array_equal(found.hidden, shown.hidden)


def _packed(content: bytes) -> str:
    return base64.urlsafe_b64encode(zlib.compress(content, 9)).decode().rstrip("=")


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("generator", "/etc/passwd"),
        ("generator", "os:system"),
        ("task", "delete"),
        ("factor", "3"),
        ("completions", "0"),
        ("completions", "1000000"),
        ("completions", "2.5"),
        ("noise", "nan"),
        ("noise", "-1"),
        ("noise", "1e999"),
        ("gradients", "-1"),
        ("seed", "4294967296"),
        ("seed", "one"),
        ("picture", "!"),
        ("picture", _packed(bytes(63))),
        ("picture", _packed(bytes(65))),
        ("picture", _packed(bytes(10**8))),  # of 130 kB; only 65 bytes of it are unpacked
        ("hidden", _packed(bytes(7))),
        ("hidden", "A"),
    ],
)
def test_a_wrong_address_is_told_by_field(field: str, text: str) -> None:
    offer = small_offer()
    usual = setup_of(offer, task=ENLARGE if field == "factor" else FILL)
    query = dict(parse_qsl(address.to_query(offer, usual.settings, usual.picture)))
    query[field] = text
    with pytest.raises(ValueError, match=f"^{field}: "):
        found = address.offer_of(query, {"small": offer})
        address.picture_of(query, found, address.settings_of(query, found))


@pytest.mark.parametrize(
    ("numbers", "name"),
    [
        ((0, 0.3, 0, 0), "completions"),
        ((65, 0.3, 0, 0), "completions"),
        ((None, 0.3, 0, 0), "completions"),
        ((4, 0.0, 0, 0), "noise"),
        ((4, "0.3", 0, 0), "noise"),
        ((4, 0.3, 100_001, 0), "gradients"),
        ((4, 0.3, [], 0), "gradients"),
        ((4, 0.3, 0, -1), "seed"),
        ((4, 0.3, 0, MOST_SEED + 1), "seed"),
    ],
)
def test_wrong_settings_are_told_by_name(numbers: tuple[Any, ...], name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        settings(small_offer(), FILL, 2, *numbers)
    assert settings(small_offer(), FILL, 2, 4.0, 0.3, 0.0, 1.0) == Settings(FILL, 2, 4, 0.3, 0, 1)


def test_a_picture_without_hidden_or_without_visible_pixels_is_refused() -> None:
    shown = picture()
    for hidden, message in ((False, "paint over a part"), (True, "leave a part")):
        with pytest.raises(ValueError, match=message):
            Setup(small_offer(), Settings(), replace(shown, hidden=np.full((8, 8), hidden)))


@pytest.mark.parametrize("task", [FILL, ENLARGE])
def test_a_run_is_seen_while_it_goes_on_and_is_that_of_the_front_door(task: str) -> None:
    asked = setup_of(task=task, factor=2, seed=3)
    *before, last = Runs().views("me", asked)
    assert before and all(isinstance(view, Moment) for view in before)
    assert before[0].images.shape == (4, *SHAPE) and 0.0 <= before[0].beta <= 1.0
    options = {"noise_std": 0.3, "chains": 4, "budget": 200, "seed": 3, "polish": 0}
    image = asked.picture.image
    if task == FILL:
        assert asked.picture.hidden is not None
        visible = ~asked.picture.hidden
        direct = cogen_fast.inpaint(small_generator(), image, visible, **options)
    else:
        direct = cogen_fast.super_resolve(small_generator(), image, 2, **options)
    assert isinstance(last, cogen_fast.Result) and last.complete
    assert torch.equal(last.latents, direct.latents)


def slow(seconds: float) -> Callable[[Tensor], Tensor]:
    """A generator whose every call takes a while."""
    made = small_generator()

    def generate(z: Tensor) -> Tensor:
        time.sleep(seconds)
        out: Tensor = made(z)
        return out

    return generate


def test_a_stopped_run_keeps_what_there_is() -> None:
    runs = Runs()
    seen = runs.views("me", setup_of(small_offer(slow(0.002)), budget=100_000))
    assert isinstance(next(seen), Moment)
    runs.stop("another")  # stops nobody
    assert isinstance(next(seen), Moment)
    runs.stop("me")
    last = list(seen)[-1]
    assert isinstance(last, cogen_fast.Result) and not last.complete
    assert last.images.shape == (1, 4, *SHAPE)
    assert "You stopped the run." in last.diagnose()[0]
    assert "Stopped" in views.ended(last) and "not yet samples" in views.completions(last)


def test_a_run_ends_at_the_time_limit() -> None:
    *_, last = Runs(0.2).views("me", setup_of(small_offer(slow(0.002)), budget=100_000))
    assert isinstance(last, cogen_fast.Result) and not last.complete
    assert "time limit" in views.ended(last)


def test_a_run_that_nobody_looks_at_is_stopped_and_leaves_its_turn() -> None:
    runs = Runs()
    seen = runs.views("me", setup_of(small_offer(slow(0.002)), budget=100_000))
    next(seen)
    threads = threading.active_count()
    seen.close()
    assert threading.active_count() == threads - 1
    assert not any(isinstance(view, Waiting) for view in runs.views("another", setup_of()))


def test_all_runs_are_ended_when_the_server_is() -> None:
    runs = Runs()
    seen = runs.views("a", setup_of(small_offer(slow(0.002)), budget=100_000))
    next(seen)
    waits = runs.views("b", setup_of())
    next(waits)
    threads = threading.active_count()
    runs.close()
    assert threading.active_count() == threads - 1
    assert isinstance(list(seen)[-1], cogen_fast.Result)
    assert isinstance(list(waits)[-1], Failure)
    Runs().close()


def test_a_page_has_one_run_at_a_time() -> None:
    runs = Runs()
    seen = runs.views("me", setup_of(small_offer(slow(0.002)), budget=100_000))
    next(seen)
    with pytest.raises(ValueError, match="still going on"):
        next(runs.views("me", setup_of()))
    seen.close()
    assert list(runs.views("me", setup_of()))


def test_runs_of_two_users_take_turns_and_do_not_mix() -> None:
    runs, seen = Runs(), {}
    asked = {name: setup_of(small_offer(slow(0.001)), seed=seed) for seed, name in enumerate("ab")}

    def look(name: str) -> None:
        seen[name] = list(runs.views(name, asked[name]))

    threads = [threading.Thread(target=look, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
        time.sleep(0.1)
    for thread in threads:
        thread.join()
    assert [view.ahead for view in seen["b"] if isinstance(view, Waiting)]
    assert not any(isinstance(view, Waiting) for view in seen["a"])
    for name in "ab":
        assert torch.equal(seen[name][-1].latents, sample(asked[name], progress=False).latents)
    assert not torch.equal(seen["a"][-1].latents, seen["b"][-1].latents)


def test_a_run_can_be_stopped_while_it_waits() -> None:
    runs = Runs()
    first = runs.views("a", setup_of(small_offer(slow(0.002)), budget=100_000))
    next(first)
    second = runs.views("b", setup_of())
    assert next(second) == Waiting(1)
    runs.stop("b")
    last = list(second)[-1]
    assert isinstance(last, Failure) and "before it began" in last.text
    first.close()


@pytest.mark.parametrize("error", [KeyError, SystemExit])
def test_an_error_of_a_generator_is_told_and_ends_the_run_only(error: type[BaseException]) -> None:
    calls, made = iter(range(30)), small_generator()

    def broken(z: Tensor) -> Tensor:
        if next(calls, None) is None:
            raise error("<b>weights</b>")
        out: Tensor = made(z)
        return out

    runs = Runs()
    *_, last = runs.views("me", setup_of(small_offer(broken)))
    assert isinstance(last, Failure)
    assert error.__name__ in last.text
    assert "<b>weights" not in views.failed(last)
    assert isinstance(list(runs.views("me", setup_of()))[-1], cogen_fast.Result)


def test_the_files_of_a_run_are_its_picture_arrays_and_script(tmp_path: Path) -> None:
    asked = setup_of()
    result = sample(asked, progress=False)
    drawn, arrays, script = downloads.write(tmp_path, asked, result)
    with np.load(arrays) as kept:
        assert np.array_equal(kept["latents"], result.latents[0].numpy())
        assert np.array_equal(kept["observed"], ~lower_half(SHAPE))
        assert np.array_equal(kept["x_obs"], asked.picture.image.numpy())
    assert drawn.read_bytes().startswith(b"\x89PNG")
    compile(script.read_text(), "repeat.py", "exec")


@pytest.mark.slow
@pytest.mark.parametrize("task", [FILL, ENLARGE])
def test_the_script_repeats_the_run(task: str, tmp_path: Path) -> None:
    name, image = "fashion-32", held_out_images("fashion-32")["boot"]
    code = [f"G = cogen_fast.pretrained({name!r})"]
    offer = Offer(name, pretrained(name), (1, 32, 32), image, code)
    asked = setup_of(offer, task=task, factor=4, chains=2, budget=200, seed=5)
    *_, script = downloads.write(tmp_path, asked, sample(asked, progress=False))
    command = [sys.executable, script.name]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "largest difference from the latents in run.npz: 0"


class Request:
    """What Gradio tells of who has pressed something."""

    def __init__(self, session_hash: str) -> None:
        self.session_hash = session_hash


@pytest.fixture
def actions() -> Any:
    pytest.importorskip("gradio", reason="needs the extra app")
    from cogen_fast.app.actions import Actions

    def read(path: Path, shape: tuple[int, int, int]) -> Tensor:
        """A picture's file is one byte, its level."""
        if len(content := path.read_bytes()) != 1:
            raise ValueError(f"picture: {path} is damaged")
        return torch.full(shape, content[0] / 127.5 - 1.0)

    return Actions([small_offer()], read, Runs())


def test_what_is_wrong_is_told_on_the_page_and_its_buttons_come_back(actions: Any) -> None:
    nothing_hidden = replace(picture(), hidden=np.zeros((8, 8), np.bool_)).to_value()
    shown = picture().to_value()
    for given, message in (
        (("small", 2, nothing_hidden, 4, 0.3, 0, 0), "paint over a part"),
        (("other", 2, shown, 4, 0.3, 0, 0), "generator: expected one of"),
        (("small", 2, "<script>", 4, 0.3, 0, 0), "picture: expected"),
        (("small", 2, shown, 4, -1, 0, 0), "noise: expected"),
    ):
        ((status, _, fill, enlarge, stop, *_files),) = actions.run(Request("me"), FILL, *given)
        assert message in status and "<script" not in status
        assert fill["interactive"] and enlarge["interactive"] and not stop["visible"]


def test_a_run_of_the_page_ends_with_pictures_and_three_files(actions: Any) -> None:
    given = ("small", 2, setup_of().picture.to_value(), 4, 0.3, 200, 0)
    first, *between = actions.run(Request("me"), FILL, *given)
    assert "Starting" in first[0] and not first[2]["interactive"] and first[4]["visible"]
    assert any("Running" in each[0] for each in between)
    status, results, fill, _, stop, *files = between[-1]
    assert status.count("<li>") >= 1 and results.count("<img") == 4 + 2
    assert fill["interactive"] and not stop["visible"]
    assert [Path(each["value"]).name for each in files] == list(downloads.NAMES)


def test_a_stop_is_answered_at_once(actions: Any) -> None:
    given = ("small", 2, setup_of().picture.to_value(), 4, 0.3, 100_000, 0)
    seen = actions.run(Request("me"), FILL, *given)
    begun = next(seen)[4]
    assert begun["value"] == views.STOP and begun["interactive"] and begun["visible"]
    assert "Running" in next(seen)[0]
    pressed = actions.stop(Request("me"))
    assert pressed["value"] == views.STOPPING and not pressed["interactive"]
    *_, (status, _, _, _, ended, *_) = seen
    assert "You stopped the run" in status and not ended["visible"]


def test_a_file_from_the_page_becomes_the_picture(actions: Any) -> None:
    def opened(task: str, content: bytes, factor: Any = 2) -> tuple[Any, str]:
        value = json.dumps({"file": base64.b64encode(content).decode()})
        found: tuple[Any, str] = actions.open(task, "small", value, factor)
        return found

    value, status = opened(FILL, b"7")
    assert (painted(value, SHAPE, masked=True).pixels == ord("7")).all() and status == ""
    value, _ = opened(ENLARGE, b"7")
    assert painted(value, (1, 4, 4), masked=False).pixels.shape == (1, 4, 4)
    value, status = opened(FILL, b"77")
    assert value == REFUSED and "a file is damaged" in status
    for factor in (3, [], None):
        assert "factor: expected" in opened(ENLARGE, b"7", factor)[1]
    assert "expected a file" in actions.open(FILL, "small", '{"file": 3}', 2)[1]


def test_the_page_begins_with_what_its_address_says(actions: Any) -> None:
    asked = setup_of(seed=9, chains=7)
    query = actions.address(FILL, "small", 2, asked.picture.to_value(), 7, 0.3, 200, 9)
    name, tab, _, value, *_, chains, noise, budget, seed, status = actions.restore(query)
    assert (name, tab["selected"], chains, noise, budget, seed) == ("small", FILL, 7, 0.3, 200, 9)
    assert value == asked.picture.to_value() and status == ""
    *_, status = actions.restore(re.sub("&picture=.*", "", query))
    assert "open it again" in status
    for wrong in (
        "seed=one",
        "generator=%2Fetc%2Fpasswd",
        "picture=A",
        "x=1&" * 30,
        "a" * 10**5,
        3,
    ):
        *_, seed, status = actions.restore(wrong)
        assert seed == 0 and "not one that it has written" in status


def answered(
    guard: server.Guard, path: str = "/", method: str = "GET", body: bytes = b"", **headers: str
) -> int:
    """The status of the answer to a request."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": body}

    named = {"host": "127.0.0.1:7860", **headers}
    raw = [(k.replace("_", "-").encode(), v.encode()) for k, v in named.items()]
    scope = {"type": "http", "path": path, "method": method, "headers": raw}
    asyncio.run(guard(scope, receive, send))
    if sent[0]["status"] == 200:
        assert "default-src 'self'" in dict(sent[0]["headers"])[b"content-security-policy"].decode()
    status: int = sent[0]["status"]
    return status


async def anything(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


LOCAL = server.Guard(anything, ("127.0.0.1", "localhost", "::1"))


@pytest.mark.parametrize(
    "path", ["/", "/config", "/assets/index.js", "/gradio_api/queue/data", "/gradio_api/file=/x"]
)
def test_what_the_page_asks_for_is_answered(path: str) -> None:
    assert answered(LOCAL, path) == 200


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/proxy=https://a.hf.space/x",
        "/gradio_api/info",
        "/gradio_api/upload",
        "/gradio_api/run-history/connect",
        "/gradio_api/vibe-edit/",
        "/gradio_api/component_server",
        "/monitoring",
        "/docs",
        "/login",
        "/configuration",
    ],
)
def test_everything_else_is_not_found(path: str) -> None:
    assert answered(LOCAL, path) == 404


def test_requests_for_other_hosts_and_of_other_sites_are_refused() -> None:
    assert answered(LOCAL, host="localhost:7860") == 200
    assert answered(LOCAL, host="[::1]:7860") == 200
    assert answered(LOCAL, host="rebound.example:7860") == 403
    assert answered(LOCAL, host="") == 403
    assert answered(server.Guard(anything, None), host="machine.example") == 200
    assert answered(LOCAL, origin="http://127.0.0.1:7860") == 200
    assert answered(LOCAL, origin="http://elsewhere.example") == 403
    assert answered(LOCAL, origin="null") == 403


def test_large_requests_and_those_of_unknown_size_are_refused() -> None:
    path = "/gradio_api/queue/join"
    most = server.MOST_BYTES
    assert answered(LOCAL, path, "POST", content_length=str(most)) == 200
    assert answered(LOCAL, path, "POST", content_length=str(most + 1)) == 413
    assert answered(LOCAL, path, "POST", content_length="-1") == 411
    assert answered(LOCAL, path, "POST", transfer_encoding="chunked") == 411


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"data": [None, "fashion-32", 4, 0.3, True], "event_data": {}}, 200),
        ({"session_hash": "abc"}, 200),
        ({"data": [{"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}]}, 400),
        ({"data": [["/etc/passwd"]]}, 400),
        ({"data": {"path": "/etc/passwd"}}, 400),
        ({"data": [], "event_data": {"path": "/etc/passwd"}}, 400),
        ([], 400),
    ],
)
def test_requests_with_anything_but_texts_and_numbers_are_refused(body: Any, status: int) -> None:
    content = json.dumps(body).encode()
    path, length = "/gradio_api/run/predict", str(len(content))
    assert answered(LOCAL, path, "POST", content, content_length=length) == status
    assert answered(LOCAL, path, "POST", content[:-1], content_length=length) == 400


def test_a_web_socket_is_closed() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "websocket", "path": "/", "headers": []}
    asyncio.run(LOCAL(scope, None, send))  # type: ignore[arg-type]
    assert [message["type"] for message in sent] == ["websocket.close"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port", "65536"], "port: expected at most 65535"),
        (["--max-pixels", "0"], "max_pixels: expected"),
        (["--time-limit", "0"], "time_limit: expected"),
        (["--generator", "five-gaussians"], "generator: expected images"),
        (["--generator", "fashion-32", "--generator", "fashion-32"], "expected different names"),
        (["--host", "no.such.host.invalid", "--port", "0"], "host, port: cannot listen"),
    ],
)
def test_mistakes_are_told_before_anything_is_served(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["app", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_without_gradio_the_command_says_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["app", "--port", "0"]) == 2
    assert "pip install 'cogen-fast[app]'" in capsys.readouterr().err


def test_a_diagnosis_is_told_without_names_of_python() -> None:
    result = sample(setup_of(small_offer(), noise_std=0.001, budget=16), progress=False)
    assert any("noise_std" in sentence for sentence in result.diagnose())
    shown = views.ended(result)
    assert "Done, with a warning" in shown and "standard deviations of the noise" in shown
    for name in ("noise_std", "x_obs", "weighted=", "checkpoint="):
        assert name not in shown


# The page has neither the published method nor noise that is inferred.
OF_THE_PAGE = {
    name: change
    for name, (change, _) in SICK.items()
    if change.get("adaptive", True) and not name.startswith("noise-")
}


@pytest.mark.parametrize("change", OF_THE_PAGE.values(), ids=OF_THE_PAGE)
def test_each_diagnosis_speaks_of_settings_that_the_page_has(change: dict[str, Any]) -> None:
    (sentence,) = diagnose(replace(healthy(), **change))
    shown = views.in_words(sentence)
    assert shown[0].isupper() and shown.endswith(".")
    assert not re.search(r"\w_\w|=|\bG\b", shown), shown
    action = shown.rpartition(";")[2]
    assert not re.search(r"\b(chains?|budget|populations|moves)\b", action), shown
