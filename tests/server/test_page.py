"""The page at /: what it is served with, and what it does in Chromium, where playwright and Chromium are installed."""

from __future__ import annotations

import http.server
import json
import os
import re
import shutil
import threading
import time
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from fakes import FakeModel
from served import served, until
from test_openai import ANSWER, ENDLESS, QUESTION, tiny

from mlx_dgemma import load
from mlx_dgemma.seam.model import Facts
from mlx_dgemma.server.page_files import FILES, HERE
from mlx_dgemma.writing.ask import Ask

BROWSER = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
VENDORED = {  # as npm's packages have them
    "marked.js": "lib/marked.esm.js of marked 18.2.1",
    "purify.js": "dist/purify.min.js of dompurify 3.4.18",
    "morphdom.js": "dist/morphdom-umd.min.js of morphdom 2.7.8",
}


class Scripted(FakeModel):
    """It writes `text`, a quarter of the positions surer after each pass, in passes that take a while."""

    text, tokenizer, seconds = "", None, 0.03

    def denoise(self, rows):
        time.sleep(self.seconds)
        tokens = [*self.tokenizer.encode(self.text), self.facts.stop_ids[0]]
        padded = (tokens + [0] * self.facts.canvas_length)[: self.facts.canvas_length]
        order = np.random.default_rng(0).permutation(len(padded))
        self.script = [(padded, order[n * len(order) // 4 :].tolist()) for n in range(5)]
        return super().denoise(rows)


def scripted():
    model, tokenizer, sampling = load()
    names = [each.name for each in fields(Facts)]
    facts = Facts(**{name: getattr(model.facts, name) for name in names})
    made = Scripted([], replace(facts, canvas_length=3000, max_position_embeddings=20_000))
    made.tokenizer = tokenizer
    return made, tokenizer, Ask(sampling=sampling)


@pytest.fixture(scope="module")
def server():
    with served(tiny, places=4) as running:
        yield running


def policy(reply) -> dict[str, str]:
    parts = (part.split(None, 1) for part in reply.headers["content-security-policy"].split(";"))
    return {part[0]: part[1] if len(part) > 1 else "" for part in parts}


def test_browsers_get_the_page_and_ollamas_clients_their_words(server):
    shown, probed = server.send("GET", "/", headers=BROWSER), server.send("GET", "/", headers={"accept": "*/*"})
    assert shown.status == 200 and "<!doctype html>" in shown.read().decode()
    assert probed.read() == b"Ollama is running"
    assert all("accept" in reply.headers["vary"] for reply in (shown, probed))
    assert server.send("HEAD", "/").status == 200


def test_the_page_may_load_nothing_from_elsewhere_and_no_script_within(server):
    reply = server.send("GET", "/", headers=BROWSER)
    held = policy(reply)
    assert held["default-src"] == held["base-uri"] == held["form-action"] == held["frame-ancestors"] == "'none'"
    assert held["script-src"] == held["connect-src"] == held["frame-src"] == held["style-src"] == "'self'"
    page = reply.read().decode()
    assert 'sandbox="allow-scripts"' in page and not re.search(r"<script(?![^>]*src=)|\son\w+=|\sstyle=", page)


def test_the_preview_has_no_origin_no_network_and_one_script(server):
    reply = server.send("GET", "/page/preview")
    held, page = policy(reply), reply.read().decode()
    assert held["default-src"] == held["form-action"] == "'none'" and held["sandbox"] == "allow-scripts"
    assert held["script-src"].startswith("'sha256-") and page.count("<script>") == 1
    assert "connect-src" not in held and "frame-src" not in held


def test_the_page_needs_no_token_and_its_files_are_those_of_the_folder():
    with served(scripted, token="s") as guarded:
        for path in FILES:
            assert guarded.get(path)[0] == 200
        assert guarded.get("/page/x.js")[0] == 401 and guarded.get("/page/../app.py")[0] == 401


def test_our_files_name_no_other_place():
    for file in HERE.iterdir():
        if file.is_file():
            found = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+", file.read_text()))
            assert found <= {"http://www.w3.org"}, file.name


def test_vendored_code_has_its_licence_and_its_version():
    table = (HERE / "vendor/README.md").read_text()
    for name, source in VENDORED.items():
        file, package = source.split(" of ")
        assert f"| {name} | {package} | {file} |" in table
        assert len((HERE / "vendor" / name.replace(".js", "-LICENSE.txt")).read_text()) > 1000
    assert "marked v18.2.1" in (HERE / "vendor/marked.js").read_text()
    assert "DOMPurify 3.4.18" in (HERE / "vendor/purify.js").read_text()


# in Chromium

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]


@pytest.fixture(scope="module")
def chromium():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not (path := shutil.which("chromium") or shutil.which("google-chrome")):
        pytest.skip("Chromium is not installed")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def tab(chromium):
    """A tab; afterwards no error may have come of it."""
    context = chromium.new_context(viewport={"width": 1280, "height": 800})
    tab, errors = context.new_page(), []
    tab.on("pageerror", lambda error: errors.append(str(error)))
    yield tab
    context.close()
    assert not errors


def ask(tab, base: str, question: str) -> None:
    tab.goto(base)
    tab.get_by_role("textbox").first.fill(question)
    tab.keyboard.press("Enter")


@pytest.mark.slow
def test_a_draft_is_seen_and_the_answer_is_the_apis(server, tab):
    tab.goto(server.base)
    tab.evaluate(
        "() => { window.seen = 0; new MutationObserver(() => { window.seen += Boolean(document.querySelector("
        "'[data-testid=draft]')?.textContent) }).observe(document.body, {subtree: true, childList: true}) }"
    )
    tab.get_by_role("textbox").first.fill(QUESTION)
    tab.keyboard.press("Enter")
    tab.get_by_role("button", name="Copy").wait_for()
    assert tab.get_by_test_id("answer").text_content() == ANSWER and tab.evaluate("seen") > 0
    assert tab.get_by_test_id("draft").get_attribute("aria-hidden") == "true"
    assert tab.get_by_test_id("answer").get_attribute("aria-live") == "polite"
    tab.get_by_label("Pass to look at").fill("0")
    assert tab.get_by_test_id("answer").is_hidden() and tab.get_by_test_id("draft").text_content()


@pytest.mark.slow
def test_stop_frees_the_row(server, tab):
    tab.route("**/v1/chat/completions", lambda route: route.continue_(post_data=endless(route.request.post_data)))
    ask(tab, server.base, "Who?")
    until(lambda: server.metric("rows_running") == 1)
    tab.keyboard.press("Escape")
    until(lambda: server.metric("rows_running") == 0)
    assert tab.get_by_role("button", name="Send").is_visible()


def endless(data: str) -> str:
    return json.dumps(json.loads(data) | {"preset": ENDLESS})


def shown(text) -> str:
    """What is seen of it."""
    return text.evaluate(
        "text => [...text.children].filter(part => !part.hidden).map(part => part.textContent).join('')"
    )


@pytest.mark.slow
def test_fill_edit_and_race(server, tab):
    tab.goto(f"{server.base}/#edit")
    tab.get_by_role("button", name="Edit").click()
    tab.locator(".diff ins").wait_for()
    assert "* 55" in tab.locator(".diff ins").text_content() and "* 44" in tab.locator(".diff del").text_content()
    tab.get_by_role("button", name="Apply").click()
    assert tab.get_by_label("Text", exact=True).input_value() == "def scale(a, w):\n    return [w * 55 for w in a]\n"
    tab.get_by_role("tab", name="Fill").click()
    tab.get_by_role("button", name="Fill", exact=True).click()
    tab.get_by_text("3 gaps filled").wait_for()
    whole = '{"name": "Tess", "age": 40, "job": "vet", "city": "Accra"}'
    assert tab.locator("#fill .text").text_content() == whole
    tab.locator("#fill").get_by_label("Pass to look at").fill("0")  # each draft is in its own gap
    assert re.fullmatch(
        r'\{"name": "....", "age": .., "job": "...", "city": "Accra"\}', shown(tab.locator("#fill .text"))
    )
    tab.get_by_role("tab", name="Race").click()
    tab.get_by_role("button", name="Start").click()
    tab.get_by_text("The texts are equal.").wait_for(timeout=60_000)
    assert [lane.text_content() for lane in tab.locator(".lane .text").all()] == [ANSWER, ANSWER]


@pytest.mark.slow
def test_the_preview_is_drawn_while_the_draft_settles(tab):
    with served(scripted) as server:
        server.engine.model.text, server.engine.model.seconds = (
            "So:\n```svg\n<svg viewBox='0 0 9 9'><rect/></svg>\n```",
            0.5,
        )
        ask(tab, server.base, "A picture, please.")
        tab.frame_locator("#preview iframe").locator("svg rect").wait_for(state="attached")
        assert tab.get_by_role("button", name="Stop").is_visible()
        tab.keyboard.press("Escape")


@pytest.mark.slow
def test_what_goes_wrong_is_said(server, tab):
    tab.goto(f"{server.base}/#edit")
    tab.get_by_label("Lines").fill("7:9")
    tab.get_by_role("button", name="Edit").click()
    assert "7" in tab.get_by_role("alert").text_content()


@pytest.mark.slow
def test_a_server_that_is_gone_is_said_and_the_question_is_kept(tab):
    with served(tiny) as server:
        tab.goto(server.base)
        tab.get_by_role("button", name="A sudoku").wait_for()
    for _ in range(2):
        tab.get_by_role("textbox").first.fill("Who?")
        tab.keyboard.press("Enter")
        tab.get_by_role("button", name="Send").wait_for()
        assert tab.get_by_role("alert").last.text_content() == "The server is not there any more."
        assert tab.get_by_role("textbox").first.input_value() == "Who?"


@pytest.mark.slow
def test_a_reload_frees_the_row(server, tab):
    tab.route("**/v1/chat/completions", lambda route: route.continue_(post_data=endless(route.request.post_data)))
    ask(tab, server.base, "Who?")
    until(lambda: server.metric("rows_running") == 1)
    tab.reload()
    until(lambda: server.metric("rows_running") == 0)
    assert tab.get_by_role("button", name="Send").is_visible()


@pytest.mark.slow
def test_a_narrow_screen_shows_every_view(server, tab):
    tab.set_viewport_size({"width": 390, "height": 800})
    ask(tab, server.base, QUESTION)
    tab.get_by_role("button", name="Copy").wait_for()
    for name in ("Chat", "Fill", "Edit", "Race"):
        tab.get_by_role("tab", name=name).click()
        assert tab.evaluate("document.documentElement.scrollWidth") <= 390, name


@pytest.mark.skipif(not os.environ.get("AXE"), reason="AXE does not name axe-core's axe.min.js")
@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_axe_finds_nothing(server, tab, scheme):
    tab.emulate_media(color_scheme=scheme)
    ask(tab, server.base, QUESTION)
    tab.get_by_role("button", name="Copy").wait_for()
    for name in ("Chat", "Fill", "Edit", "Race", "Options"):
        tab.get_by_role("button" if name == "Options" else "tab", name=name).click()
        found = tab.evaluate(Path(os.environ["AXE"]).read_text() + "; axe.run()")
        assert [violation["id"] for violation in found["violations"]] == [], name


class Trap:
    """A server that must not hear of anything."""

    def __enter__(self):
        self.heard = heard = Counter()

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                heard[self.path] += 1
                self.send_response(200)
                self.end_headers()

            do_POST = do_HEAD = do_OPTIONS = do_GET

            def log_message(self, *_):
                pass

        class Listening(http.server.ThreadingHTTPServer):
            def get_request(self):
                heard["a connection"] += 1
                return super().get_request()

        self.server = Listening(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


HOSTILE = """<!doctype html><style>body{{background:url({0}/css)}} @import "{0}/import";</style><h1>Here</h1>
<a href="{0}/a" ping="{0}/ping">Click</a>
<img src="{0}/img" onerror="{1}"><svg onload="{1}"></svg><iframe src="{0}/frame"></iframe><base href="{0}/">
<link rel=stylesheet href="{0}/link"><link rel=preconnect href="{0}"><meta http-equiv=refresh content="0;url={0}/meta">
<form action="{0}/form"><input autofocus onfocus="{1}"></form><object data="{0}/object"></object>
<embed src="{0}/embed"><link rel=prefetch href="{0}/prefetch"><link rel=dns-prefetch href="{0}"><video src="{0}/video"
poster="{0}/poster"></video><audio src="{0}/audio" autoplay></audio><img srcset="{0}/srcset 2x"><svg>
<image href="{0}/image"/>
<use href="{0}/use#a"/><a href="{0}/svg"><text>x</text></a><animate attributeName=href to="{0}/animate"/></svg>
<style>@font-face{{font-family:f;src:url({0}/font)}} h1{{font-family:f;cursor:url({0}/cursor),auto}}</style>
<template shadowrootmode=open><img src="{0}/shadow"></template><math href="{0}/math"><mi>x</mi></math>
<details open ontoggle="{1}"></details><button formaction="{0}/button" autofocus>b</button><script>{1}</script>"""
SCRIPT = """for (const f of [() => parent.document.body.remove(), () => localStorage.x = 1, () => fetch('{0}/fetch'),
() => top.location = '{0}/top', () => location = '{0}/self', () => open('{0}/open'),
() => navigator.sendBeacon('{0}/beacon'), () => document.cookie = 'x=1',
() => new WebSocket('{0}/socket'.replace('http', 'ws')),
() => new RTCPeerConnection({{iceServers: [{{urls: 'stun:' + '{0}'.slice(7)}}]}}).createDataChannel('x'),
() => new Worker('{0}/worker'), () => indexedDB.open('x'), () => caches.open('x'), () => sessionStorage.x = 1,
() => {{ for (let i = 0; i < 1000; i++) parent.postMessage('ready', '*') }}]) try {{ f() }} catch {{}}"""


@pytest.mark.slow
def test_hostile_html_reaches_nothing(tab):
    with Trap() as trap, served(scripted) as server:
        script = SCRIPT.format(trap.url).replace("\n", " ").replace('"', "'")
        server.engine.model.text = HOSTILE.format(trap.url, script)
        ask(tab, server.base, "A page, please.")
        inner = tab.frame_locator("#preview iframe")
        inner.get_by_role("heading", name="Here").wait_for()
        tab.get_by_role("button", name="Copy").wait_for()
        inner.get_by_text("Click").hover()
        inner.get_by_text("Click").click()
        time.sleep(1)
        assert inner.get_by_role("heading", name="Here").is_visible() and not trap.heard
        assert tab.url == f"{server.base}/" and tab.locator("#turns").is_visible()
        assert tab.evaluate("localStorage.x") is None and tab.context.cookies() == [] and len(tab.context.pages) == 1


@pytest.mark.slow
def test_the_frame_holds_what_gets_past_the_cleaning(chromium):
    """The same, put into the frame as it is. A navigation ends at the policy; browsers may open a bare connection."""
    with Trap() as trap, served(scripted) as server:
        context = chromium.new_context()
        tab, script = context.new_page(), SCRIPT.format(trap.url).replace("\n", " ").replace('"', "'")
        server.engine.model.text = "<h1>Here</h1>"
        ask(tab, server.base, "A page, please.")
        tab.frame_locator("#preview iframe").get_by_role("heading", name="Here").wait_for()
        tab.get_by_role("button", name="Copy").wait_for()
        html = HOSTILE.format(trap.url, script)
        tab.evaluate("html => document.querySelector('iframe').contentWindow.postMessage(html, '*')", html)
        time.sleep(1)
        assert set(trap.heard) <= {"a connection"}
        assert tab.url == f"{server.base}/" and tab.evaluate("localStorage.x") is None and len(context.pages) == 1
        context.close()
