"""The page of a root: who may read it, what can be read, and that a real browser shows it."""

import asyncio
import http.client
import json
import shutil
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from support.projects import store_images
from support.simulated_runs import event
from support.written_runs import write_run

from heliostat.storage.local import LocalStore
from heliostat_jobs.board.server import Board

HOSTILE = "<img src=x onerror=document.body.dataset.harmed=1>"


@contextmanager
def served(root: LocalStore) -> Iterator[Board]:
    board = Board(root)
    loop = asyncio.new_event_loop()
    ready, stop = threading.Event(), asyncio.Event()
    thread = threading.Thread(
        target=lambda: loop.run_until_complete(board.serve(lambda url: ready.set(), stop.wait())), daemon=True
    )
    thread.start()
    assert ready.wait(30)
    try:
        yield board
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(30)
        loop.close()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> LocalStore:
    root = LocalStore(tmp_path_factory.mktemp("root"))
    store_images(root)
    write_run(root, "calm")
    write_run(root, "odd", 4, event("attempt_ended", 1e5, 9, cause=HOSTILE))
    root.put("runs/calm/reports/report.html", b"<h1>a report</h1>")
    root.put("runs/calm/reports/numbers.json", b"{}")
    root.put("runs/calm/secret.html", b"not a report")
    return root


@pytest.fixture(scope="module")
def board(root: LocalStore) -> Iterator[Board]:
    with served(root) as board:
        yield board


def ask(
    board: Board, path: str, headers: Mapping[str, str] | None = None, method: str = "GET", *, with_token: bool = True
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", board.port, timeout=30)
    cookie = {"Cookie": f"heliostat_board_{board.port}={board.token}"} if with_token else {}
    try:
        connection.request(method, path, headers={**cookie, **(headers or {})})
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


def test_server__wants_its_token_and_keeps_it_out_of_the_address(board: Board) -> None:
    assert ask(board, "/", with_token=False)[0] == 401
    assert ask(board, "/api/jobs", with_token=False)[0] == 401
    assert ask(board, "/api/jobs", {"Cookie": f"heliostat_board_{board.port}=wrong"}, with_token=False)[0] == 401
    assert ask(board, "/?token=wrong", with_token=False)[0] == 401
    url = urlsplit(board.url)
    status, headers, _ = ask(board, f"/?{url.query}", with_token=False)
    assert status == 200
    assert "HttpOnly" in headers["Set-Cookie"]
    assert "SameSite=Strict" in headers["Set-Cookie"]


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1", "127.0.0.1:1"])
def test_server__answers_to_its_own_name_only(board: Board, host: str) -> None:
    assert ask(board, "/api/jobs", {"Host": host})[0] == 421


def test_server__answers_no_other_page_and_no_odd_cookie(board: Board) -> None:
    for site in ("cross-site", "same-site"):
        assert ask(board, "/api/jobs", {"Sec-Fetch-Site": site})[0] == 403
    odd = {"Cookie": f'heliostat_board_{board.port}="\\377"'}
    assert ask(board, "/api/jobs", odd, with_token=False)[0] == 401


def test_server__what_is_damaged_is_named_and_hides_nothing_else(tmp_path: Path) -> None:
    root = LocalStore(tmp_path)
    write_run(root, "good")
    write_run(root, "torn")
    root.put("runs/torn/events/0001/00000001.jsonl", b'{"time_utc": ')
    root.put("runs/lost/commits/00000001.json", b"[]")
    root.put("curations/odd/result.json", b'{"share": NaN}')
    with served(root) as board:
        lines = json.loads(ask(board, "/api/jobs")[2])["jobs"]
        states = {job["name"]: job["state"] for job in lines}
        assert states == {
            "good": "run without a cluster",
            "torn": "run without a cluster",
            "lost": "unreadable",
            "odd": "finished",
        }
        assert json.loads(ask(board, "/api/jobs/pretrain/good")[2])["curve"]
        for path in ("/api/jobs/pretrain/torn", "/api/jobs/pretrain/lost"):
            status, headers, body = ask(board, path)
            assert status == 502
            assert headers["Content-Security-Policy"]
            assert "Traceback" not in json.loads(body)["error"]
        assert json.loads(ask(board, "/api/jobs/curate/odd")[2])["result"] == {"share": None}


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_server__only_reads(board: Board, method: str) -> None:
    assert ask(board, "/api/jobs", method=method)[0] == 405


@pytest.mark.parametrize(
    "path",
    [
        "/static/server.py",
        "/static/..%2fserver.py",
        "/reports/pretrain/calm/secret.html",
        "/reports/pretrain/calm/reports/numbers.json",
        "/reports/pretrain/calm/..%2f..%2fdatasets/tiny/manifest.json",
        "/reports/pretrain/..%2fcalm/reports/report.html",
        "/reports/nothing/calm/reports/report.html",
        "/api/jobs/pretrain/nobody",
        "/api/jobs/nothing/calm",
        "/api/jobs/pretrain/..%2f..",
    ],
)
def test_server__shows_nothing_but_jobs_and_their_reports(board: Board, path: str) -> None:
    assert ask(board, path)[0] == 404


def test_server__a_report_is_shown_without_scripts_and_apart_from_the_page(board: Board) -> None:
    status, headers, page = ask(board, "/reports/pretrain/calm/reports/report.html")
    assert (status, page) == (200, b"<h1>a report</h1>")
    assert headers["Content-Security-Policy"].startswith("sandbox; default-src 'none'")


def test_server__tells_what_a_run_did(board: Board) -> None:
    status, headers, body = ask(board, "/api/jobs")
    assert status == 200
    assert "script-src 'self'" in headers["Content-Security-Policy"]
    assert {job["name"]: job["state"] for job in json.loads(body)["jobs"]} == dict.fromkeys(
        ("calm", "odd"), "run without a cluster"
    )
    run = json.loads(ask(board, "/api/jobs/pretrain/calm")[2])
    assert run["reports"] == ["reports/report.html"]
    assert run["steps"] == 400
    assert len(run["curve"]) <= 2 * 400
    assert run["spans"][0]["begin"] < run["spans"][-1]["end"]
    assert sum(run["seconds"].values()) == pytest.approx(run["spans"][-1]["end"] - run["spans"][0]["begin"])
    tiles = json.loads(ask(board, "/api/datasets/tiny/samples")[2])["tiles"]
    assert tiles[0]["src"].startswith("data:image/")


def test_page__is_drawn_by_a_browser_and_runs_nothing_that_the_store_holds(board: Board, tmp_path: Path) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("there is no chromium on this machine")

    def dom(page: str) -> str:
        options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}", "--timeout=20000"]
        command = [chromium, *options, "--virtual-time-budget=6000", "--dump-dom", f"{board.url}#{page}"]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout

    home = dom("")
    assert 'data-drawn="home"' in home
    assert '<a href="#pretrain/odd">odd</a>' in home
    odd = dom("pretrain/odd")
    assert 'data-drawn="pretrain/odd"' in odd
    assert odd.count("<polyline") == 3
    assert 'class="workers"' in odd
    assert odd.count('<img src="data:image/') >= 1
    assert "onerror" in odd  # as text
    assert "data-harmed" not in odd
    assert "not up to date" not in odd
