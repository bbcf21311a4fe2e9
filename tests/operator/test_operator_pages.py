"""The operator pages: who sees them, what they show, and that they look as they should in a browser."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
from datetime import UTC, datetime

import pytest
from operating import FLAGS, MODEL, MODEL_SHA256, closed_rounds, job


def visit(world, path, *, method="GET", cookie=None, origin="https://testserver", **options):
    headers = {"Origin": origin} if origin else {}
    if cookie:
        headers["Cookie"] = cookie
    return world.call(method, path, by=None, base="", headers=headers, **options)


def signed_in(world, role="owner"):
    answer = visit(world, "/sign-in", method="POST", data={"token": world.tokens[role]})
    assert (answer.status_code, answer.headers["location"]) == (303, "/runs")
    return answer.headers["set-cookie"].partition(";")[0]


def test_every_page_sends_strangers_to_sign_in(released):
    for path in ("/", "/runs", f"/runs/{released.run_id}", "/clients"):
        for cookie in (None, "__Host-hansa=x", "__Host-hansa=e30.key.e30"):
            answer = visit(released, path, cookie=cookie)
            assert (answer.status_code, answer.headers["location"]) == (303, "/sign-in")


def test_the_cookie_is_for_this_site_and_no_script_and_does_not_hold_the_token(world):
    answer = visit(world, "/sign-in", method="POST", data={"token": world.tokens["owner"]})
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith("__Host-hansa=")
    assert {"HttpOnly", "Secure", "SameSite=strict", "Path=/"} <= set(cookie.split("; "))
    assert world.tokens["owner"] not in cookie


def test_a_wrong_token_signs_nobody_in_and_is_not_shown(world):
    answer = visit(world, "/sign-in", method="POST", data={"token": "hansa_token_" + "w" * 43})
    assert answer.status_code == 401
    assert "set-cookie" not in answer.headers
    assert "w" * 43 not in answer.text


@pytest.mark.parametrize("origin", ["https://evil.example", "null", None, "https://["])
def test_a_form_from_elsewhere_is_refused(world, origin):
    for path in ("/sign-in", "/sign-out"):
        answer = visit(world, path, method="POST", origin=origin, data={"token": world.tokens["owner"]})
        assert answer.status_code == 403
        assert "set-cookie" not in answer.headers


def test_a_session_ends_with_time_and_with_its_token(world):
    cookie = signed_in(world, "auditor")
    assert visit(world, "/runs", cookie=cookie).status_code == 200
    token = next(each["id"] for each in world.ok("GET", "/tokens")["tokens"] if each["role"] == "auditor")
    world.ok("DELETE", f"/tokens/{token}")
    assert visit(world, "/runs", cookie=cookie).status_code == 303
    cookie = signed_in(world)
    world.clock.ahead = 3601
    assert visit(world, "/runs", cookie=cookie).status_code == 303


def test_a_session_is_good_where_it_was_opened_and_nowhere_else(world):
    cookie = signed_in(world)
    assert visit(world, "/runs", cookie=cookie, address="127.0.0.1").status_code == 200
    assert visit(world, "/runs", cookie=cookie, address="192.0.2.7").status_code == 303


def test_a_changed_session_is_none(world):
    content, key, signature = signed_in(world).partition("=")[2].split(".")
    for forged in (
        f"{content}A.{key}.{signature}",
        f"{content}.{key}.{'B' if signature[0] == 'A' else 'A'}{signature[1:]}",
        f"{content}.other.{signature}",
    ):
        assert visit(world, "/runs", cookie=f"__Host-hansa={forged}").status_code == 303


def test_a_session_survives_a_rotation_of_the_servers_key(world):
    cookie = signed_in(world)
    world.run(world.services.signer.rotate())
    assert visit(world, "/runs", cookie=cookie).status_code == 200


def test_pages_allow_no_script_and_no_frame_and_are_not_kept(released):
    cookie = signed_in(released)
    for path in ("/sign-in", "/runs", f"/runs/{released.run_id}", "/clients", "/nowhere"):
        answer = visit(released, path, cookie=cookie)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "script-src" not in policy
        assert "frame-ancestors 'none'" in policy
        assert answer.headers["cache-control"] == "no-store"
        assert "<script" not in answer.text


def test_runs_their_rounds_and_clients_are_shown(released):
    cookie = signed_in(released)
    runs = visit(released, "/runs", cookie=cookie).text
    assert "a job" in runs
    assert "1 of 3" in runs
    page = visit(released, f"/runs/{released.run_id}", cookie=cookie).text
    assert "training 1" in page
    assert "attempt 2" in page
    assert "1 late, 1 lost" in page
    assert page.count("<svg") > 2
    clients = visit(released, "/clients", cookie=cookie).text
    assert "hospitals" in clients
    assert "invited" in clients


def test_the_page_of_clients_says_when_each_was_last_seen(populated):
    one = populated.ok("GET", f"/clients/{populated.clients[0]}")
    population = populated.ok("GET", "/populations/hospitals")["id"]
    now = populated.clock.now()
    populated.services.board.callers.called(population, one["number"], now - 90)
    page = visit(populated, "/clients", cookie=signed_in(populated)).text
    rows = {name: page.partition(f">{name}</th>")[2].partition("</tr>")[0] for name in ("one", "two")}
    assert "1 min 3" in rows["one"]
    assert datetime.fromtimestamp(now - 90, UTC).strftime("%Y-%m-%d %H:%M:%S UTC") in rows["one"]
    assert "not seen" in rows["two"]
    assert "1 called in the last hour" in page
    populated.clock.ahead = 3550
    assert "0 called in the last hour" in visit(populated, "/clients", cookie=signed_in(populated)).text


def test_another_tenants_run_is_not_there(released):
    answer = visit(released, f"/runs/{released.run_id}", cookie=signed_in(released, "other"))
    assert answer.status_code == 404
    assert "a job" not in answer.text


def test_a_role_sees_what_it_may(released):
    cookie = signed_in(released, "analyst")
    assert visit(released, "/runs", cookie=cookie).status_code == 200
    assert visit(released, "/clients", cookie=cookie).status_code == 403


def test_who_may_not_read_clients_sees_a_runs_events_without_them(released):
    async def refused():
        async with released.services.store.transaction() as rows:
            tenant = (await rows.runs.get(released.run_id)).tenant
            detail = {"kind": "training", "name": "St. Example"}
            await rows.events.add(
                "report.refused", tenant=tenant, at=1.0, run=released.run_id, client="client-x", detail=detail
            )

    released.run(refused())
    for role, sees in (("analyst", False), ("site-administrator", True), ("auditor", True)):
        page = visit(released, f"/runs/{released.run_id}", cookie=signed_in(released, role)).text
        told = released.call("GET", f"/runs/{released.run_id}/events", by=role).text
        for text in (page, told):
            assert "report.refused" in text
            assert ("St. Example" in text, "client-x" in text) == (sees, sees)


def test_names_that_hold_markup_are_shown_as_they_are(populated):
    taken = populated.ok("POST", "/jobs", json=job(name="<b onload=x>bold</b>"))
    cookie = signed_in(populated)
    for path in ("/runs", f"/runs/{taken['run']['id']}"):
        page = visit(populated, path, cookie=cookie).text
        assert "<b onload" not in page
        assert "&lt;b onload=x&gt;" in page


def _playwright():
    """Return what opens a browser in a thread; without Chromium the test is skipped, or fails if CI is set."""
    if shutil.which("chromium") is None:
        reason = "Chromium is not installed: apt-get install chromium"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    return sync_playwright


@pytest.fixture
def served(make_world):
    """Return a world that granian serves in plain on loopback, from the event loop that its store belongs to."""
    from granian.constants import Interfaces
    from granian.server.embed import Server

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    world = make_world(tls="off", port=port)
    server = Server(
        world.app, address="127.0.0.1", port=port, interface=Interfaces.ASGI, websockets=False, log_enabled=False
    )
    world.url = f"http://127.0.0.1:{port}"
    world.server = server
    return world


def while_served(world, work):
    """Run blocking work in a thread while the world is served."""

    async def go():
        serving = asyncio.create_task(world.server.serve())
        await asyncio.sleep(0.3)
        try:
            return await asyncio.to_thread(work)
        finally:
            world.server.stop()
            await serving

    return world.run(go())


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_pages_look_as_they_should_in_a_browser(served, tmp_path_factory, width, scheme):
    sync_playwright = _playwright()
    served.ok("POST", "/populations", json={"name": "hospitals"})
    served.clients = [
        served.ok("POST", "/populations/hospitals/invitations", json={"name": name})["client"]
        for name in ("one", "two")
    ]
    served.ok("PUT", f"/models/{MODEL_SHA256}", content=MODEL)
    served.run_id = served.ok("POST", "/jobs", json=job(name="heart disease"))["run"]["id"]
    served.run(closed_rounds(served))
    population = served.ok("GET", "/populations/hospitals")["id"]
    served.services.board.callers.called(population, 1, served.clock.now() - 90)
    folder = tmp_path_factory.getbasetemp()
    problems = []

    def look():
        with sync_playwright() as playwright:
            chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
            context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
            page = context.new_page()
            page.on("console", lambda message: problems.append(message.text))
            page.on("pageerror", lambda error: problems.append(str(error)))
            page.goto(served.url)
            page.get_by_label("Token").fill(served.tokens["owner"])
            page.get_by_role("button", name="Sign in").click()
            page.wait_for_url("**/runs")
            page.screenshot(path=folder / f"runs-{width}.png", full_page=True)
            page.get_by_role("link", name="heart disease").click()
            page.wait_for_url("**/runs/run-*")
            page.screenshot(path=folder / f"run-{width}.png", full_page=True)
            overflow = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            bar = page.locator(".step i.included").first.bounding_box()
            page.get_by_role("link", name="Clients").click()
            page.get_by_text("min 3").wait_for()
            page.screenshot(path=folder / f"clients-{width}.png", full_page=True)
            wide = page.evaluate("[...document.querySelectorAll('.scroll')].map(e => e.scrollWidth - e.clientWidth)")
            page.get_by_role("button", name="Sign out").click()
            page.wait_for_url("**/sign-in")
            page.screenshot(path=folder / f"sign-in-{width}.png", full_page=True)
            chromium.close()
            return overflow, bar["width"], wide

    overflow, bar, wide = while_served(served, look)
    assert problems == []
    assert overflow == 0
    assert bar > 20
    assert wide == [0, 0]  # when clients were last seen is in sight on a telephone, too
