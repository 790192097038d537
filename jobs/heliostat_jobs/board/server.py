"""A small server of the page, for this machine: read only, behind a token, and with nothing from anywhere else.

The token is part of the address that is printed; the first visit turns it into a cookie that no script reads. Browsers
send cookies to all ports of a machine alike, so other servers on this one see it too. The name that the browser asks
for is checked, since a page elsewhere could let a name of its own point here, and so is which page asks.
"""

import asyncio
import hmac
import logging
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from aiohttp import web

from heliostat.errors import ObjectNotFoundError
from heliostat.observe.redaction import redact
from heliostat.observe.segments import encode_line
from heliostat.storage import Store
from heliostat_jobs.board import views
from heliostat_jobs.board.followed import Memory
from heliostat_jobs.kinds import JOB_KINDS, Job

HOST = "127.0.0.1"
_HTTP_PORT = 80
_SHUTDOWN_S = 1.0
_STATIC = {"index.html": "text/html", "board.js": "text/javascript", "board.css": "text/css"}
_OWN_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_REPORT_POLICY = "sandbox; default-src 'none'; img-src data:; style-src 'unsafe-inline'; frame-ancestors 'none'"
_SAMPLES = 24

_log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Board:
    """The page of one root.

    Args:
        root: That it shows.
        port: Of loopback; 0 takes a free one.
        token: That a visitor has to know.
    """

    root: Store
    port: int = 0
    token: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    _memory: Memory = field(default_factory=Memory)
    _one_at_a_time: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(1))

    @property
    def url(self) -> str:
        """Where the page is, with its token."""
        return f"http://{HOST}:{self.port}/?token={self.token}"

    async def serve(self, ready: Callable[[str], None], until: Awaitable[object]) -> None:
        """Serve the page.

        Args:
            ready: Told the address, once somebody answers there.
            until: Serve until this is done.
        """
        runner = web.AppRunner(self.app(), access_log=None, shutdown_timeout=_SHUTDOWN_S)
        await runner.setup()
        site = web.TCPSite(runner, HOST, self.port)
        await site.start()
        try:
            self.port = int(runner.addresses[0][1])
            ready(self.url)
            await until
        finally:
            await runner.cleanup()

    def app(self) -> web.Application:
        """The routes; all of them only read."""
        app = web.Application(middlewares=[self._guarded])
        app.router.add_get("/", self._index)
        app.router.add_get("/static/{name}", self._static)
        app.router.add_get("/api/jobs", self._jobs)
        app.router.add_get("/api/jobs/{kind}/{name}", self._job)
        app.router.add_get("/api/datasets/{name}/samples", self._samples)
        app.router.add_get("/reports/{kind}/{name}/{key:.+}", self._report)
        return app

    @web.middleware
    async def _guarded(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            response = self._refused(request) or await handler(request)
        except web.HTTPException as error:  # no such page, or no such method
            response = web.json_response({"error": error.reason}, status=error.status)
        except ObjectNotFoundError as error:
            response = web.json_response({"error": redact(str(error))}, status=404)
        except Exception as error:  # whatever the store holds: the page says it, and stays
            _log.debug("the page could not be made", exc_info=error)
            response = web.json_response({"error": views.fault(error)}, status=502)
        response.headers.setdefault("Content-Security-Policy", _OWN_POLICY)
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        response.headers["Cache-Control"] = "no-store"
        return response

    def _refused(self, request: web.Request) -> web.Response | None:
        if request.host not in {f"{name}{port}" for name in (HOST, "localhost") for port in self._ports()}:
            return web.json_response({"error": "this page is served for this machine only"}, status=421)
        if request.path != "/" and request.headers.get("Sec-Fetch-Site") in ("same-site", "cross-site"):
            return web.json_response({"error": "another page asks for this"}, status=403)
        given = request.query.get("token") or request.cookies.get(self._cookie, "")
        if not hmac.compare_digest(given.encode(errors="replace"), self.token.encode()):
            return web.json_response({"error": "open the address that heliostat board has printed"}, status=401)
        return None

    def _ports(self) -> tuple[str, ...]:
        return (f":{self.port}", "") if self.port == _HTTP_PORT else (f":{self.port}",)

    @property
    def _cookie(self) -> str:
        return f"heliostat_board_{self.port}"  # cookies do not know ports: of two boards each has its own

    async def _index(self, request: web.Request) -> web.StreamResponse:
        response = _file("index.html")
        if "token" in request.query:  # the page takes it out of the address at once
            response.set_cookie(self._cookie, self.token, httponly=True, samesite="Strict", path="/")
        return response

    async def _static(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        return _file(name) if name in _STATIC else _not_found()

    async def _jobs(self, request: web.Request) -> web.StreamResponse:
        lines = await asyncio.to_thread(views.job_lines, self.root, self._memory)
        return _json({"root": self.root.url, "jobs": lines})

    async def _job(self, request: web.Request) -> web.StreamResponse:
        if (job := await asyncio.to_thread(self._job_of, request)) is None:
            return _not_found()
        return _json(await asyncio.to_thread(views.job_details, job, self._memory))

    async def _report(self, request: web.Request) -> web.StreamResponse:
        job, key = await asyncio.to_thread(self._job_of, request), request.match_info["key"]
        if job is None or key not in await asyncio.to_thread(views.report_keys, job):
            return _not_found()
        page = await asyncio.to_thread(job.store.get, key)
        return web.Response(body=page, content_type="text/html", headers={"Content-Security-Policy": _REPORT_POLICY})

    async def _samples(self, request: web.Request) -> web.StreamResponse:
        async with self._one_at_a_time:
            tiles = await asyncio.to_thread(views.sample_images, self.root, request.match_info["name"], _SAMPLES)
        return _json({"tiles": tiles})

    def _job_of(self, request: web.Request) -> Job | None:
        kind, name = request.match_info["kind"], request.match_info["name"]
        if kind not in JOB_KINDS or name not in self.root.folders(JOB_KINDS[kind].folder):
            return None
        return Job(self.root, kind, name)


def _json(told: dict[str, Any]) -> web.Response:
    """JSON as browsers read it: what is not finite is null."""
    return web.Response(body=encode_line(told), content_type="application/json")


def _not_found() -> web.Response:
    return web.json_response({"error": "there is no such thing"}, status=404)


def _file(name: str) -> web.Response:
    text = files("heliostat_jobs").joinpath("board", "static", name).read_text(encoding="utf-8")
    return web.Response(text=text, content_type=_STATIC[name])
