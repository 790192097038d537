"""The driver of a submitted job, on the cluster: carries out what its request in the store says, and tells its end.

Everything that it prints is kept in the store too: a cluster forgets its logs with its head (ray-project/ray 56506).
"""

import argparse
import io
import logging
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from typing import TextIO

from heliostat import __version__
from heliostat.config import relocked, secrets
from heliostat.errors import CancelledError, HeliostatError, SecretNotFoundError
from heliostat.observe.logs import configure_logging
from heliostat.observe.redaction import redact
from heliostat.observe.segments import SegmentWriter, utc_now
from heliostat.storage import Store, open_store
from heliostat_jobs.artifacts import check_artifact
from heliostat_jobs.cli.exit_codes import ExitCode, explain
from heliostat_jobs.kinds import JOB_KINDS, Job, JobResult
from heliostat_jobs.locks import pinned_manifests
from heliostat_jobs.submission import records
from heliostat_jobs.submission.records import Began, JobEnd

_FLUSH_S = 1.0
_PATIENCE_S = 1800.0
"""That an outage of the store may last."""
_LOOK_S = 5.0
"""Between looks whether somebody has asked for the end in the store."""

_log = logging.getLogger("heliostat_jobs.submission.entry")
"""By its name: this module is run as the main one."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out one submission; the exit status."""
    parser = argparse.ArgumentParser(prog="heliostat_jobs.submission.entry")
    parser.add_argument("--root", required=True)
    parser.add_argument("--kind", required=True, choices=sorted(JOB_KINDS))
    parser.add_argument("--name", required=True)
    parser.add_argument("--submission", required=True, type=int)
    parser.add_argument("--package", required=True)
    chosen = parser.parse_args(arguments)
    with suppress(SecretNotFoundError):  # the store's may be among them; what is missing is told below
        secrets.fill_environment()
    job = Job(open_store(chosen.root).patient(_PATIENCE_S), chosen.kind, chosen.name)
    began = Began(by=f"{socket.gethostname()} {os.getpid()}", version=__version__)
    if not records.write_began(job.store, chosen.submission, began):
        print("another driver has taken this submission on", file=sys.stderr)  # noqa: T201 -- a driver's log
        return ExitCode.FAILED
    with _kept(job.store, chosen.submission):
        configure_logging("info")
        _log.info("submission %d of %s %s begins, by heliostat %s", chosen.submission, job.kind, job.name, __version__)
        end = _carry_out(job, chosen.submission, chosen.package)
        records.write_end(job.store, chosen.submission, end)
    return end.exit_code


def _carry_out(job: Job, number: int, package: str) -> JobEnd:
    """The job's work, from its request to what there is to say of its end."""
    with _stopped_on_demand(job, number) as stopper:
        try:
            secrets.fill_environment()
            return _succeeded(job, _result(job, number, package))
        except BaseException as error:
            return _failed(error, stopper.is_asked)


def _result(job: Job, number: int, package: str) -> JobResult:
    request = records.read_request(job.store, number).model_copy(update={"package": package})
    if records.is_cancelled(job.store, number):
        raise KeyboardInterrupt
    for artifact in request.inputs.values():
        check_artifact(job.root, artifact, pinned_manifests(job.store))
    resolved = relocked(request.config, request.text, job.root.url)
    return JOB_KINDS[job.kind].carry_out(resolved, "auto", request)


def _succeeded(job: Job, result: JobResult) -> JobEnd:
    for line in result.summary():
        print(line)  # noqa: T201 -- the job's standard output is its log
    return JobEnd(
        outcome="succeeded",
        exit_code=ExitCode.OK,
        result=result.to_json(),
        artifacts=JOB_KINDS[job.kind].artifacts(job),
    )


def _failed(error: BaseException, is_asked: bool) -> JobEnd:
    if is_asked:
        error = CancelledError("the job was cancelled", "heliostat resume goes on from what is committed")
    else:
        print(redact("".join(traceback.format_exception(error))), file=sys.stderr)  # noqa: T201 -- as above
    known, status = explain(error)
    return JobEnd(
        outcome="cancelled" if is_asked else "failed",
        exit_code=ExitCode.INTERRUPTED if is_asked else status,
        code=known.code,
        fact=redact(known.fact),
        next_step=redact(known.next_step),
    )


@dataclass
class _Stopper:
    """Ends the job when somebody asks for it: by a signal, as Ray does, or in the store."""

    job: Job
    number: int
    is_asked: bool = False
    _closing: threading.Event = field(default_factory=threading.Event)
    _asked: threading.Event = field(default_factory=threading.Event)

    def ask(self, *_: object) -> None:
        """A signal came."""
        self._asked.set()

    def watch(self) -> None:
        """Wait for somebody to ask, save, and interrupt the main thread."""
        while not self._closing.is_set():
            if self._asked.wait(_LOOK_S) or self._is_cancelled():
                break
        if self._closing.is_set():
            return
        self.is_asked = True
        try:
            JOB_KINDS[self.job.kind].save(self.job.store)
        except Exception as error:  # whatever it is, the wish is that the job ends
            _log.warning("nothing could be saved before the end: %s", error)
        if not self._closing.is_set() and (main_thread := threading.main_thread().ident) is not None:
            signal.pthread_kill(main_thread, signal.SIGINT)

    def close(self) -> None:
        """The job came to its own end."""
        self._closing.set()
        self._asked.set()

    def _is_cancelled(self) -> bool:
        try:
            return records.is_cancelled(self.job.store, self.number)
        except HeliostatError as error:
            _log.debug("the store does not say whether to stop: %s", error)
            return False


@contextmanager
def _stopped_on_demand(job: Job, number: int) -> Iterator[_Stopper]:
    stopper = _Stopper(job, number)
    # Ray starts drivers with SIGINT blocked.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, stopper.ask)
    thread = threading.Thread(target=stopper.watch, name="stop-on-demand", daemon=True)
    thread.start()
    try:
        yield stopper
    finally:
        stopper.close()
        thread.join()


class _Kept(io.TextIOBase):
    """A stream whose whole lines go to the store as well, without secrets."""

    def __init__(self, stream: TextIO, writer: SegmentWriter) -> None:
        self._stream = stream
        self._writer = writer
        self._rest = ""
        self._lock = threading.Lock()

    def write(self, text: str) -> int:
        text = redact(text)
        self._stream.write(text)
        with self._lock:
            *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._writer.write({"time_utc": utc_now(), "text": line})
        return len(text)

    def flush(self) -> None:
        self._stream.flush()

    def isatty(self) -> bool:
        return False


@contextmanager
def _kept(store: Store, number: int) -> Iterator[None]:
    writer = SegmentWriter(store, records.log_prefix(number), _FLUSH_S)
    with (
        writer,
        redirect_stdout(_Kept(sys.stdout, writer)),
        redirect_stderr(_Kept(sys.stderr, writer)),
    ):
        yield


if __name__ == "__main__":
    sys.exit(main())
