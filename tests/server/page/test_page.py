"""The page at `/`, partly in a real browser. Servers are processes, since NiceGUI serves one page per process."""

import html
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes.chromium import Browser, browsing, needs_chromium
from fakes.hostile import HOSTILE_SERVER, LORA, TEXT
from fakes.loop import MANIFEST, NAN_PROMPT, FakeLoop
from fakes.manifest import BANNER
from fakes.manifest import MANIFEST as TWO_PROFILES
from fakes.nginx import behind_nginx, needs_nginx
from fakes.processes import FAKE_SERVER, process, ready_url
from fakes.raw_client import read_to_end, upgraded
from fakes.server import serving
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from engine.plan.guide import Guide
from engine.sampling.noise import randn

PAGE = 24  # jobs in the gallery
RECONNECT = 1.0  # seconds after which a closed tab is dropped
SLOW = 100  # steps of an image that is still running when its test ends
FIRST, SECOND = "first-key", "second-key"
SOCKET = "/_nicegui_ws/socket.io/?EIO=4&transport=websocket"
FORGED = (  # CLIENT is the id of an open page
    '42["event",{}]',
    '42["event",{"client_id":1e400}]',
    '42["event",{"client_id":"CLIENT","id":[]}]',
    '42["ack",[]]',
    '42["ack",{"client_id":"CLIENT","next_message_id":"x"}]',
    '42["handshake",{"client_id":"CLIENT","tab_id":{}}]',
    '42["handshake",{"client_id":"CLIENT","tab_id":"a","document_id":[]}]',
    '42["javascript_response",{"client_id":[]}]',
    '42["log",{"client_id":"CLIENT","level":"error","message":"\\nforged"}]',
    '42["disconnect"]',
    '42["nothing",{}]',
    "42[]",
    "42[1]",
    "42{",
    "42" + "[" * 100_000,
    "4299999999999999999999[]",
    '42/other,["event",{}]',
    '451-["event",{}]',
    "43",
    "44",
    "40",
    "40/other,",
    "41",
    "5",
    "9",
    "x",
    "",
    b"\4binary",
)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with process(*FAKE_SERVER, "0.1", "1", "", "", "", "", str(RECONNECT), "127.0.0.1") as child:
        yield ready_url(child)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browsing(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


def tasks(url: str, **headers: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = httpx.get(f"{url}/v1/tasks", headers=headers).json()["tasks"]
    return found


def facts(browser: Browser) -> dict[str, str]:
    """The parameters that the page shows beside its image, once there is one."""

    def read() -> dict[str, str]:
        texts = browser.read("return [...document.querySelectorAll('.z-stage .z-facts > *')].map(e => e.innerText)")
        return dict(zip(texts[::2], texts[1::2], strict=True))

    browser.until(read, "an image on the stage")
    return read()


def on_stage(browser: Browser) -> str:
    """The source of the image on the stage."""
    return str(browser.read("return document.querySelector('.z-stage img')?.src"))


def width_on_stage(browser: Browser) -> int:
    """Width of the image's file in pixels; 0 before it is loaded."""
    return int(browser.read("return document.querySelector('.z-stage img')?.naturalWidth ?? 0"))


# around the page


def test_nicegui_is_not_imported_before_the_first_visit() -> None:
    program = "import sys, server.cli, server.http.server; sys.exit('nicegui' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_endpoints_are_the_same_with_the_page(url: str) -> None:
    with httpx.Client(base_url=url) as http:
        page = http.get("/")
        assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
        policy = page.headers["content-security-policy"]
        for part in ("default-src 'self'", "object-src 'none'", "base-uri 'none'", "form-action 'self'"):
            assert part in policy
        assert page.headers.get_list("x-content-type-options") == ["nosniff"]
        for path in ("/nothing", "/favicon.ico", "/_nicegui", "/v1"):
            assert http.get(path).json()["error"]["code"] == "not_found"
        assert http.get("/health").json()["status"] == "ok"
        paths = http.get("/openapi.json").json()["paths"]
        assert "/v1/tasks" in paths and "/" not in paths and not any("nicegui" in path for path in paths)


def test_application_without_the_page_answers_404() -> None:
    with serving(FakeLoop()) as url:
        assert httpx.get(url).json()["error"]["code"] == "not_found"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"sec-fetch-site": "same-origin"}, 200),
        ({"sec-fetch-site": "same-site"}, 403),  # another port of this machine, too
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"origin": "http://elsewhere.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://["}, 403),
        ({"origin": "https://generate.example", "host": "generate.example"}, 200),  # TLS ends at a proxy
        ({"origin": "https://generate.example", "x-forwarded-host": "generate.example"}, 200),
        ({"origin": "https://generate.example", "host": "Generate.Example:443"}, 200),
        ({"origin": "https://generate.example", "host": "generate.example:80"}, 403),
    ],
)
def test_requests_of_other_sites_for_the_page_s_files_are_403(url: str, headers: dict[str, str], status: int) -> None:
    file = httpx.get(f"{url}/_nicegui/{version('nicegui')}/static/nicegui.js", headers=headers)
    assert file.status_code == status
    if status == 403:
        error = file.json()["error"]
        assert error["code"] == "foreign_origin" and "expected http://" in error["message"]
        assert (headers.get("origin") or headers["sec-fetch-site"]) in error["message"]
        assert "access-control-allow-origin" not in file.headers


def test_page_of_the_public_url_is_not_foreign_and_a_refused_one_is_logged() -> None:
    with process(*FAKE_SERVER, "0", "1", *[""] * 9, "https://generate.example/x") as child:
        url = ready_url(child).replace("http", "ws") + SOCKET
        with connect(url, origin="https://generate.example"), connect(url, origin=url[: url.index("/_")]):
            pass
        assert '"/x/_nicegui/' in httpx.get(ready := url.replace("ws", "http", 1).partition("/_")[0]).text
        with pytest.raises(InvalidStatus), connect(url, origin="https://other.example"):
            pass
        assert httpx.get(ready).status_code == 200
        child.terminate()
        line = child.communicate()[1]
    assert "got Origin: 'https://other.example', expected https://generate.example/x/." in line
    assert "--trusted-proxies; or set --public-url" in line and line.count("\n") == 1


def test_websocket_from_a_foreign_origin_is_refused(url: str) -> None:
    with connect(url.replace("http", "ws") + SOCKET, origin=url) as socket:
        assert str(socket.recv()).startswith("0")
    with (
        pytest.raises(InvalidStatus) as refused,
        connect(url.replace("http", "ws") + SOCKET, origin="http://evil.example"),
    ):
        pass
    assert refused.value.response.status_code == 403


@pytest.mark.parametrize("folder", ["static", "resources/x", "components"])
@pytest.mark.parametrize("up", ["../", "..%2f", "%2e%2e/"])
def test_path_outside_the_toolkit_s_files_is_404(url: str, folder: str, up: str) -> None:
    httpx.get(url)
    target = httpx.URL(url).copy_with(raw_path=f"/_nicegui/{version('nicegui')}/{folder}/{up * 12}etc/passwd".encode())
    answer = httpx.get(target)
    assert answer.status_code in (403, 404) and "root:" not in answer.text


def test_404_of_the_toolkit_creates_no_page() -> None:
    """Each page would stay in memory for a minute, and visitors would be refused in the meantime."""
    with process(*FAKE_SERVER, "0.1", "1", "", "", "", "", str(RECONNECT)) as child, httpx.Client() as http:
        url = ready_url(child)
        folder = f"/_nicegui/{version('nicegui')}/esm/"
        key = http.get(url).text.split(folder)[1].split("/")[0]
        for path in ("/_nicegui/nothing", f"{folder}{key}/%00", f"{folder}{key}/{'a' * 300}", f"{folder}{key}/nothing"):
            answers = [http.get(url + path) for _ in range(10)]
            assert {answer.status_code for answer in answers} == {404}
            assert answers[-1].json()["error"]["code"] == "not_found"
        assert http.get(url).status_code == 200


def test_forged_packets_of_visitors_are_not_logged() -> None:
    with process(*FAKE_SERVER, "0.1", "1") as child:
        url = ready_url(child)
        client = client_of(httpx.get(url))
        for packet in FORGED:
            with connect(url.replace("http", "ws") + SOCKET) as socket, suppress(ConnectionClosed):
                socket.recv()
                socket.send("40")
                assert socket.recv().startswith("40")
                for _ in range(3):
                    socket.send(packet.replace("CLIENT", client) if isinstance(packet, str) else packet)
                socket.ping().wait(5)
        assert httpx.get(url).status_code == 200
        child.terminate()
        assert child.communicate()[1] == ""


def test_forged_values_of_inputs_leave_a_line_each_and_no_traceback() -> None:
    with process(*FAKE_SERVER, "0.1", "1") as child:
        url = ready_url(child)
        page = httpx.get(url)
        client = client_of(page)
        elements = re.search(r"parseElements\(String\.raw`(.*?)`\)", page.text, re.DOTALL)
        assert elements
        query = f"&client_id={client}&implicit_handshake=true&tab_id=1&document_id=1&next_message_id=0"
        count = 0
        with connect(url.replace("http", "ws") + SOCKET + query) as socket:
            socket.send("40")
            for number, element in json.loads(html.unescape(elements[1])).items():
                for event in element.get("events", []):
                    names = {"client_id": client, "id": int(number), "listener_id": event["listener_id"]}
                    socket.send("42" + json.dumps(["event", names | {"args": ['{"value": {}}', "[]"]}]))
                    count += 1
            socket.ping().wait(5)
            time.sleep(0.5)
        child.terminate()
        lines = child.communicate()[1].splitlines()
        assert count > 10 and 0 < len(lines) <= count
        assert all(line.startswith("An event of the page failed with ") for line in lines)


def test_socket_of_another_protocol_is_closed_and_polling_is_404(url: str) -> None:
    assert httpx.get(url + SOCKET.replace("websocket", "polling")).status_code == 404
    for path in ("/_nicegui_ws/other", "/_nicegui_ws/", "/_nicegui/other"):
        with pytest.raises(InvalidStatus), connect(url.replace("http", "ws") + path):
            pass


def test_invalid_utf_8_closes_the_page_s_socket_with_1007_and_without_a_traceback() -> None:
    with process(*FAKE_SERVER, "0.1", "1") as child:
        with upgraded(ready_url(child), SOCKET) as client:
            client.sendall(b"\x81\x82\0\0\0\0\xff\xfe")
            assert b"\x88\x02\x03\xef" in read_to_end(client)
        child.terminate()
        assert "Traceback" not in child.communicate()[1]


def client_of(page: httpx.Response) -> str:
    """The toolkit's id of a page."""
    found = re.search(r"client_id\W+([0-9a-f-]{36})", page.text)
    assert found
    return found[1]


def can_connect(url: str, client: str) -> bool:
    query = f"&client_id={client}&implicit_handshake=true&tab_id=1&document_id={client}&next_message_id=0"
    with connect(url.replace("http", "ws") + SOCKET + query) as socket:
        socket.recv()
        socket.send("40")
        return str(socket.recv()).startswith("40")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"sec-fetch-dest": "document", "sec-fetch-site": "cross-site"}, 200),  # a link
        ({"sec-fetch-dest": "iframe", "sec-fetch-site": "same-origin"}, 200),
        ({"sec-fetch-dest": "iframe", "sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-dest": "image", "sec-fetch-site": "same-origin"}, 403),
        ({"sec-fetch-dest": "script"}, 403),
        ({"sec-fetch-dest": "empty"}, 403),
        ({"accept": "image/avif,image/webp,*/*;q=0.8"}, 403),
        ({"accept": "text/html,application/xhtml+xml,image/avif,*/*;q=0.8"}, 200),
    ],
)
def test_page_is_for_navigation_only(url: str, headers: dict[str, str], status: int) -> None:
    answer = httpx.get(url, headers=headers)
    assert answer.status_code == status
    assert "frame-ancestors 'self'" in answer.headers["content-security-policy"]
    if status == 403:
        assert answer.json()["error"]["code"] == "not_a_navigation"


def test_new_pages_replace_the_oldest_that_wait_for_their_connections() -> None:
    with process(*FAKE_SERVER, "0.1", "1", "", "", "", "", str(RECONNECT)) as child:
        url = ready_url(child)
        first = client_of(httpx.get(url))
        for _ in range(300):
            assert httpx.get(url, headers={"sec-fetch-dest": "image"}).status_code == 403
        assert can_connect(url, first)  # requests that are no navigation have replaced nothing
        opened = [client_of(httpx.get(url)) for _ in range(30)]
        assert not can_connect(url, opened[0]) and can_connect(url, opened[-20]) and can_connect(url, opened[-1])


def test_offered_sizes_are_supported_by_the_plans() -> None:
    from server.page.form import sizes

    for manifest in (MANIFEST, TWO_PROFILES):
        offered = sizes(manifest, Guide())
        assert manifest.default_size in offered and len(offered) == len(set(offered)) > 3
        for size in offered:
            manifest.profile_for(size)
    assert {(512, 512), (256, 256), (288, 224), (224, 288)} <= set(offered)
    assert sizes(replace(TWO_PROFILES, profiles=(BANNER,)), Guide()) == [(1024, 64)]
    guide = Guide(sizes=("128x96", "4096x64"))  # the second is beyond the plans
    assert sizes(TWO_PROFILES, guide) == [TWO_PROFILES.default_size, (128, 96)]


def test_seed_that_a_browser_cannot_hold_is_taken_over_as_one_with_the_same_noise() -> None:
    from server.page.form import exact_seed

    assert [exact_seed(seed) for seed in (0, 2**53 - 1, 2**63 + 7, 2**64 - 1)] == [0, 2**53 - 1, 7, 2**32 - 1]
    for seed in (2**63 + 7, 2**64 - 1):
        assert (randn(exact_seed(seed), (16, 8, 8)) == randn(seed, (16, 8, 8))).all()


# on the page


@pytest.mark.slow
@needs_chromium
def test_image_is_generated_with_previews_and_again_with_its_seed(url: str, browser: Browser) -> None:
    browser.visit(url)
    browser.generate("a cat on a mat")
    browser.until(lambda: on_stage(browser).startswith("data:image/png"), "a preview of it")
    shown = facts(browser)
    assert "/v1/images/" in on_stage(browser)
    browser.until(lambda: width_on_stage(browser) == 128, "the image")
    task = tasks(url)[0]
    metadata = task["result"]["metadata"][0]
    assert task["prompt"] == "a cat on a mat" and shown["Seed"] == str(metadata["seed"]) and shown["Steps"] == "8"
    assert browser.field("Seed").get_attribute("value") == ""
    browser.click(".z-stage button", "Reuse this seed")
    browser.until(lambda: browser.field("Seed").get_attribute("value") == shown["Seed"], "the seed in the form")
    browser.write("Steps", "3")
    browser.click(".z-generate", "Generate")
    browser.until(lambda: facts(browser).get("Steps") == "3", "the other image")
    assert facts(browser)["Seed"] == shown["Seed"]
    browser.until(lambda: len(browser.all("button.z-tile")) == 2, "both in the gallery")
    loaded = browser.read("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert len(loaded) > 10 and all(name.startswith((url, "data:")) for name in loaded)
    assert browser.driver.get_log("browser") == []  # nothing refused by the content security policy either


@pytest.mark.slow
@needs_chromium
def test_closed_tab_leaves_its_tasks_running_and_cancel_ends_one(url: str, browser: Browser) -> None:
    def status() -> dict[str, str]:
        return {task["prompt"]: task["status"] for task in tasks(url)[:3]}

    browser.visit(url)
    browser.write("Steps", str(SLOW))
    browser.generate("one")
    browser.find(".z-stage .z-progress", "step ")
    browser.generate("two")
    browser.find(".z-stage .z-progress", "1 ahead in the queue")
    first = browser.driver.current_window_handle
    browser.driver.switch_to.new_window("tab")
    second = browser.driver.current_window_handle
    browser.visit(url)
    browser.find(".z-tile", "two")
    assert not browser.all(".z-stage .z-generating") and not browser.all(".z-progress")
    browser.generate("three")
    browser.find(".z-stage .z-progress", " ahead in the queue")
    browser.driver.switch_to.window(first)
    assert "three" not in browser.find(".z-stage").text
    browser.driver.close()
    browser.driver.switch_to.window(second)
    browser.click(".z-stage button", "Cancel")
    browser.until(lambda: not browser.all(".z-stage .z-generating"), "an empty stage")
    time.sleep(RECONNECT + 0.5)
    assert status()["three"] == "cancelled"
    assert status()["two"] in ("pending", "running") and status()["one"] != "cancelled"
    browser.find(".z-tile", "two").find_element("tag name", "button").click()
    browser.until(lambda: status()["two"] == "cancelled", "the end of the other tab's task")
    httpx.delete(f"{url}/v1/task/{tasks(url)[2]['task_id']}")  # the next test would wait for it


@pytest.mark.slow
@needs_chromium
def test_errors_are_shown_beside_the_form(url: str, browser: Browser) -> None:
    browser.visit(url)
    browser.click(".q-select")
    browser.click(".q-menu .q-item", "Other size")
    browser.write("Width", "100")
    browser.generate("a cat")
    browser.find(".z-error", "width must be a multiple of 16, got 100")
    browser.write("Width", "128")
    browser.generate(" ")
    browser.find(".z-error", "prompt must not be empty")
    browser.generate(NAN_PROMPT)
    browser.find(".z-form .z-error", "the latents hold NaN")
    assert not browser.all(".z-stage .z-generating")
    browser.generate("a cat")
    assert facts(browser)["Size"] == "128 × 96"
    assert "NaN" not in browser.find(".z-form").text


@pytest.mark.slow
@needs_chromium
def test_gallery_shows_one_page_of_jobs_at_a_time(browser: Browser) -> None:
    def shown() -> list[str]:
        prompts = browser.read("return [...document.querySelectorAll('.z-tile .z-two')].map(e => e.innerText)")
        return [str(prompt) for prompt in prompts]

    with process(*FAKE_SERVER, "0", "1") as child:
        url = ready_url(child)
        for number in range(PAGE + 3):
            httpx.post(f"{url}/v1/generate", json={"prompt": f"image {number}"})
        browser.visit(url)
        newest = [f"image {number}" for number in reversed(range(3, PAGE + 3))]
        oldest = ["image 2", "image 1", "image 0"]
        browser.until(lambda: shown() == newest, "the newest jobs")
        browser.click("button", "Older images")
        browser.until(lambda: shown() == oldest, "the others")
        httpx.post(f"{url}/v1/generate", json={"prompt": "one more"})
        browser.click("button", "Newest images")
        browser.until(lambda: shown() == ["one more", *newest[:-1]], "the newest jobs again")


@pytest.mark.slow
@needs_chromium
def test_scripts_in_prompts_and_names_are_shown_as_text(browser: Browser) -> None:
    def check() -> None:
        assert browser.read("return [typeof ran, document.title]") == ["undefined", TEXT]
        assert not browser.all("img[src='x'], svg[onload], .z-columns script, [onerror]")

    def filled(text: str) -> bool:
        return browser.field("Prompt").get_attribute("value") == text

    with process(*HOSTILE_SERVER) as child:
        url = ready_url(child)
        browser.visit(url)
        browser.find(".z-name", TEXT)
        browser.find(".z-form .z-quiet", TEXT)
        for example in ("a cat", TEXT):
            browser.click(".z-examples button", example)
            browser.until(partial(filled, example), "the example in the form")
        assert httpx.get(f"{url}/v1/model_info").json()["examples"] == ["a cat", TEXT]
        browser.click("[aria-label=LoRA]")
        browser.click(".q-menu .q-item", LORA)
        browser.click(".q-expansion-item", "Advanced")
        browser.click("[aria-label='Negative prompt']")
        browser.write("Negative prompt", TEXT)
        browser.write("Guidance", "2")
        browser.generate(TEXT + " and" * 30)
        shown = facts(browser)
        assert (shown["LoRA"], shown["Negative"]) == (LORA, TEXT)
        assert shown["Model"].startswith(TEXT) and shown["Prompt cut to"].startswith(TEXT)
        assert browser.find(".z-stage img").get_attribute("alt").startswith(TEXT)
        check()
        browser.visit(url)
        browser.click("button.z-tile", TEXT)
        browser.find(".z-viewer .z-prompt", TEXT)
        saved = browser.find(".z-viewer a", "Save").get_attribute("download")
        assert re.fullmatch(r"v1-images-job_\w+-0\.png", saved)
        source = browser.find(".z-viewer img").get_attribute("src")
        image = httpx.get(source)
        assert image.headers["content-type"] == "image/png" and image.content.startswith(b"\x89PNG")
        check()
        browser.click(".z-viewer button", "Reuse this seed")
        browser.until(
            lambda: (browser.field("Prompt").get_attribute("value") or "").startswith(TEXT), "the prompt again"
        )
        check()


@pytest.mark.slow
@needs_chromium
def test_images_and_frames_of_another_site_do_not_lock_the_page(url: str, browser: Browser, tmp_path: Path) -> None:
    frame = f'<iframe src="{url}"></iframe>'
    images = "".join(f'<img src="{url}?{number}" onerror="failed++">' for number in range(300))
    (tmp_path / "index.html").write_text(f"<script>failed = 0</script>{frame}{images}")
    with process("-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", str(tmp_path)) as site:
        port = site.stdout.readline().split("port ")[1].split()[0]
        browser.driver.get(f"http://localhost:{port}")
        browser.until(lambda: browser.read("return failed") == 300, "all images")
        browser.driver.switch_to.frame(0)
        assert not browser.all(".z-generate, textarea")
        browser.driver.switch_to.default_content()
    browser.driver.get_log("browser")  # the next test reads its own
    browser.visit(url)
    browser.generate("after the images")
    browser.find(".z-stage .z-facts", "Seed")


@pytest.mark.slow
@needs_chromium
@needs_nginx
def test_page_works_behind_nginx_with_a_prefix(url: str, browser: Browser, tmp_path: Path) -> None:
    with behind_nginx(url, tmp_path, prefix="/generate") as proxied:
        browser.visit(f"{proxied}/")
        browser.generate("through a proxy")
        browser.find(".z-stage .z-facts", "Seed")
        assert on_stage(browser).startswith(f"{proxied}/v1/images/")
        browser.until(lambda: width_on_stage(browser) == 128, "the image")
        browser.driver.get("about:blank")


@pytest.mark.slow
@needs_chromium
def test_without_a_shared_history_the_gallery_shows_the_images_of_this_browser(browser: Browser) -> None:
    def shown() -> list[str]:
        prompts = browser.read("return [...document.querySelectorAll('.z-tile .z-two')].map(e => e.innerText)")
        return [str(prompt) for prompt in prompts]

    with process(*FAKE_SERVER, "0", "1", *[""] * 10, "0", "0", "") as child:
        url = ready_url(child)
        httpx.post(f"{url}/v1/generate", json={"prompt": "of another visitor"})
        browser.visit(url)
        browser.generate("mine")
        browser.until(lambda: shown() == ["mine"], "the image in the gallery")
        browser.generate("mine, too")
        browser.until(lambda: shown() == ["mine, too", "mine"], "both")
        browser.visit(url)
        browser.until(lambda: shown() == ["mine, too", "mine"], "both after a reload")
        browser.read("localStorage.setItem('zimage-tasks', '[1, \\'x')")
        browser.visit(url)
        browser.find(".z-right", "Your images will appear here.")
        browser.read("localStorage.clear()")
        assert child.poll() is None


@pytest.mark.slow
@needs_chromium
@needs_nginx
@pytest.mark.parametrize(
    ("prefix", "left_out", "text"),
    [
        ("", ("proxy_set_header Host $http_host;", "proxy_set_header X-Forwarded-Host $http_host;"), "its host is"),
        ("/generate", ("proxy_set_header X-Forwarded-Prefix $zimage_prefix;",), "at /generate, but the server"),
    ],
)
def test_page_says_which_address_the_proxy_did_not_pass_on(
    url: str, browser: Browser, tmp_path: Path, prefix: str, left_out: tuple[str, ...], text: str
) -> None:
    with behind_nginx(url, tmp_path, prefix=prefix, changes=dict.fromkeys(left_out, "")) as proxied:
        browser.driver.get(f"{proxied}/")
        shown = browser.find("#z-address", text).text
        assert "--trusted-proxies" in shown and "--public-url" in shown
        browser.driver.get("about:blank")
    browser.driver.get_log("browser")  # the next test reads its own
    browser.visit(url)
    assert not browser.all("#z-address")


@pytest.mark.slow
@needs_chromium
def test_page_requires_a_key_and_counts_its_requests(browser: Browser) -> None:
    with process(*FAKE_SERVER, "0.05", "1", "", f"{FIRST} {SECOND}", "3/hour", "1") as child:
        url = ready_url(child)
        browser.visit(url)
        assert not browser.all("textarea")
        enter(browser, "wrong")
        browser.find(".z-error", "not valid")
        enter(browser, FIRST)
        browser.write("Steps", str(SLOW))
        browser.generate("mine")
        browser.find(".z-progress", "step ")
        browser.click(".z-generate", "Generate")
        browser.find(".z-error", "The queue is full, with 1 unfinished jobs")
        assert " s." in browser.find(".z-error").text
        browser.click(".z-stage button", "Cancel")
        browser.until(lambda: not browser.all(".z-stage .z-generating"), "its end")
        browser.write("Steps", "2")
        browser.click(".z-generate", "Generate")
        browser.find(".z-tile", "mine")
        browser.click(".z-generate", "Generate")
        browser.find(".z-error", "The rate of 3/hour is exceeded")
        body, mine = {"prompt": "a cat"}, {"x-api-key": FIRST}
        assert httpx.post(f"{url}/v1/generate", json=body, headers=mine).status_code == 429
        assert [task["status"] for task in tasks(url, **mine)] == ["done", "cancelled"]
        browser.visit(url)
        browser.find("textarea")  # the browser remembers
        browser.find(".z-tile", "mine")
        browser.click("button", "Forget key")
        browser.until(lambda: not browser.all("textarea"), "the question for a key")
        enter(browser, SECOND)
        browser.find(".z-right", "Your images will appear here.")
        assert not browser.all(".z-tile")


def enter(browser: Browser, key: str) -> None:
    browser.write("API key", key)
    browser.click(".z-generate", "Enter")
