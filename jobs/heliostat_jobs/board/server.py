"""A small server of the page, for this machine: read only, behind a token, and with nothing from anywhere else.

The token is part of the address that is printed; the first visit turns it into a cookie that no script reads and no
other site sends. The name that the browser asks for is checked too, since a page elsewhere could let a name of its own
point here.
"""

import asyncio
import hmac
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from importlib.resources import files

from aiohttp import web

from heliostat.errors import HeliostatError, ObjectNotFoundError
from heliostat.observe.redaction import redact
from heliostat.storage import Store
from heliostat_jobs.board import views
from heliostat_jobs.kinds import JOB_KINDS, Job

HOST = "127.0.0.1"
_COOKIE = "heliostat_board"
_STATIC = {"index.html": "text/html", "board.js": "text/javascript", "board.css": "text/css"}
_OWN_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_REPORT_POLICY = "sandbox; default-src 'none'; img-src data:; style-src 'unsafe-inline'; frame-ancestors 'none'"
_SAMPLES = 24

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
        runner = web.AppRunner(self.app(), access_log=None)
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
        if request.host not in (f"{HOST}:{self.port}", f"localhost:{self.port}"):
            return web.Response(status=421, text="this page is served for this machine only")
        given = request.query.get("token") or request.cookies.get(_COOKIE, "")
        if not hmac.compare_digest(given.encode(), self.token.encode()):
            return web.Response(
                status=401, text="the address of this page holds a token, which heliostat board printed"
            )
        try:
            response = await handler(request)
        except ObjectNotFoundError as error:
            response = web.json_response({"error": redact(str(error))}, status=404)
        except HeliostatError as error:
            response = web.json_response({"error": redact(str(error))}, status=502)
        response.headers.setdefault("Content-Security-Policy", _OWN_POLICY)
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        response.headers["Cache-Control"] = "no-store"
        return response

    async def _index(self, request: web.Request) -> web.StreamResponse:
        if "token" in request.query:  # so that it is neither in the history nor in a copied address
            response = web.Response(status=303, headers={"Location": "/"})
            response.set_cookie(_COOKIE, self.token, httponly=True, samesite="Strict", path="/")
            return response
        return _file("index.html")

    async def _static(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        return _file(name) if name in _STATIC else web.Response(status=404)

    async def _jobs(self, request: web.Request) -> web.StreamResponse:
        lines = await asyncio.to_thread(views.job_lines, self.root)
        return web.json_response({"root": self.root.url, "jobs": lines})

    async def _job(self, request: web.Request) -> web.StreamResponse:
        if (job := self._job_of(request)) is None:
            return web.Response(status=404)
        return web.json_response(await asyncio.to_thread(views.job_details, job))

    async def _report(self, request: web.Request) -> web.StreamResponse:
        job, key = self._job_of(request), request.match_info["key"]
        if job is None or key not in await asyncio.to_thread(views.report_keys, job):
            return web.Response(status=404)
        page = await asyncio.to_thread(job.store.get, key)
        return web.Response(body=page, content_type="text/html", headers={"Content-Security-Policy": _REPORT_POLICY})

    async def _samples(self, request: web.Request) -> web.StreamResponse:
        tiles = await asyncio.to_thread(views.sample_images, self.root, request.match_info["name"], _SAMPLES)
        return web.json_response({"tiles": tiles})

    def _job_of(self, request: web.Request) -> Job | None:
        kind, name = request.match_info["kind"], request.match_info["name"]
        if kind not in JOB_KINDS or name not in self.root.folders(JOB_KINDS[kind].folder):
            return None
        return Job(self.root, kind, name)


def _file(name: str) -> web.Response:
    text = files("heliostat_jobs").joinpath("board", "static", name).read_text(encoding="utf-8")
    return web.Response(text=text, content_type=_STATIC[name])
