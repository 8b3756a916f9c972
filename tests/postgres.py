"""A real PostgreSQL for tests: one server per session and xdist worker, and a fresh database for each test.

The server listens on a Unix socket in a folder of its own, nowhere else. It keeps no promise to outlive the machine
(fsync is off), and every other one: a server that is killed comes back with all that was committed.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tutelage.store.engine import Store

ENGINES = ["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)]
"""What tests of the store run on. The second half of them waits for the slow part, which `.ci/run` does."""

SETTINGS = {
    "listen_addresses": "",
    "fsync": "off",
    "full_page_writes": "off",
    "max_connections": "300",
    "shared_buffers": "64MB",
    "log_min_messages": "fatal",
}


def binaries() -> Path | None:
    """The folder of PostgreSQL's programs, of the newest version here; None without one."""
    for folder in sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda each: int(each.parent.name))[::-1]:
        if (folder / "initdb").is_file() and (folder / "postgres").is_file():
            return folder
    found = shutil.which("initdb")
    return Path(found).resolve().parent if found and shutil.which("postgres") else None


def missing() -> str:
    """Why there can be no server here; "" where there can be one."""
    try:
        import psycopg  # noqa: F401
    except ImportError:
        return "psycopg is not installed: pip install 'psycopg[binary]'"
    return "" if binaries() else "PostgreSQL is not installed: apt-get install postgresql"


def demand() -> None:
    """Skip the test that asks where there is no PostgreSQL; in CI it fails instead."""
    if why := missing():
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(why)


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGINT)  # PR_SET_PDEATHSIG: no server outlives tests that were killed


class Server:
    """A server of its own: `start`, `stop` and `kill` it at will; `close` removes it."""

    def __init__(self) -> None:
        bin = binaries()
        assert bin is not None
        self._bin = bin
        self._process: subprocess.Popen[bytes] | None = None
        self._names = (f"test_{number}" for number in itertools.count(1))
        self.folder = Path(tempfile.mkdtemp(prefix="tutelage-pg-"))  # a socket's path must be short
        self._user: dict[str, object] = {}
        if os.geteuid() == 0:  # PostgreSQL refuses to run as root
            known = {each.pw_name: each for each in pwd.getpwall()}
            who = known.get("postgres") or known["nobody"]
            os.chown(self.folder, who.pw_uid, who.pw_gid)
            self._user = {"user": who.pw_uid, "group": who.pw_gid, "extra_groups": []}
        self.data = self.folder / "data"
        line: list[str | Path] = [self._bin / "initdb", "--no-sync", "--auth=trust", "--username=postgres"]
        self._call([*line, "--encoding=UTF8", "--locale=C.UTF-8", f"--pgdata={self.data}"])
        self.start()

    def _call(self, line: list[str | Path]) -> None:
        done = subprocess.run(line, capture_output=True, text=True, cwd=self.folder, **self._user)  # type: ignore[call-overload]
        assert done.returncode == 0, done.stdout + done.stderr

    def start(self) -> None:
        """Run, and return once it answers."""
        line = [str(self._bin / "postgres"), "-D", str(self.data), "-k", str(self.folder)]
        for name, value in SETTINGS.items():
            line += ["-c", f"{name}={value}"]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                line, stdout=log, stderr=log, cwd=self.folder, preexec_fn=_die_with_parent, **self._user
            )  # type: ignore[call-overload]
        until = time.monotonic() + 60
        while not self._answers():
            assert self._process.poll() is None and time.monotonic() < until, (self.folder / "log").read_text()
            time.sleep(0.02)

    def _answers(self) -> bool:
        import psycopg

        try:
            psycopg.connect(self._conninfo(), connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True

    def stop(self, how: int = signal.SIGINT) -> None:
        """End it: SIGINT breaks what is under way off, SIGQUIT ends without a last checkpoint (a crash)."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(how)
            self._process.wait(60)

    def close(self) -> None:
        """End it and remove all it held."""
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _conninfo(self, database: str = "postgres") -> str:
        return f"host={self.folder} user=postgres dbname={database}"

    def url(self, database: str) -> str:
        """The address of a database, as service.yaml names it."""
        return f"postgresql://postgres@/{database}?host={self.folder}"

    def create(self, name: str = "", template: str = "template0") -> str:
        """Make a database, a copy of another if one is named; returns its address."""
        import psycopg

        name = name or next(self._names)
        with psycopg.connect(self._conninfo(), autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        return self.url(name)

    def drop(self, url: str) -> None:
        """Remove a database, whoever is still connected to it."""
        import psycopg

        with psycopg.connect(self._conninfo(), autocommit=True) as connection:
            connection.execute(f'DROP DATABASE "{url.partition("@/")[2].partition("?")[0]}" WITH (FORCE)')


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Server]:
    """The session's server."""
    demand()
    server = Server()
    yield server
    server.close()


@pytest.fixture(scope="session")
def postgres_template(postgres_server: Server, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of a database with our tables and no rows: copying it is quicker than making them."""
    from tutelage.store import engine

    engine.open(tmp_path_factory.mktemp("template"), url=postgres_server.create("ready")).close()
    return "ready"


@pytest.fixture
def postgres_empty(postgres_server: Server) -> Iterator[str]:
    """The address of a database that holds nothing."""
    url = postgres_server.create()
    yield url
    postgres_server.drop(url)


@pytest.fixture
def postgres(postgres_server: Server, postgres_template: str) -> Iterator[str]:
    """The address of a database of this test alone, with our tables in it."""
    url = postgres_server.create(template=postgres_template)
    yield url
    postgres_server.drop(url)


@pytest.fixture(params=ENGINES)
def fresh(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A root's folder that nobody has opened: the database it names is empty."""
    if request.param == "postgresql":
        (tmp_path / "service.yaml").write_text(f"database: {request.getfixturevalue('postgres_empty')}\n")
    return tmp_path


@pytest.fixture(params=ENGINES)
def database(request: pytest.FixtureRequest) -> str:
    """The address of a fresh database for `engine.open(root, url=database)`: "" is SQLite in the root."""
    return str(request.getfixturevalue("postgres")) if request.param == "postgresql" else ""


@pytest.fixture
def home(tmp_path: Path, database: str) -> Path:
    """A root's folder whose store lies in SQLite, and again in PostgreSQL: service.yaml says so."""
    if database:
        (tmp_path / "service.yaml").write_text(f"database: {database}\n")
    return tmp_path


@pytest.fixture
def store(home: Path) -> Iterator[Store]:
    """An open store, once in SQLite and once in PostgreSQL."""
    from tutelage.store import engine

    with engine.open(home) as made:
        yield made


@pytest.fixture(scope="session", autouse=True)
def everywhere(request: pytest.FixtureRequest) -> Iterator[None]:
    """With TESTS_ON=postgresql each root that names no database gets one of its own there, in whichever test."""
    if os.environ.get("TESTS_ON") != "postgresql":
        yield
        return
    from tutelage.core.artifact import Root

    server, template = (request.getfixturevalue(name) for name in ("postgres_server", "postgres_template"))
    named, made, one_at_a_time = Root.database, dict[str, str](), threading.Lock()

    def database(root: Root) -> str:
        if given := named.fget(root):  # type: ignore[attr-defined]
            return str(given)
        with one_at_a_time:
            place = str(root.path.resolve())
            if place not in made:
                made[place] = server.create(template=template)
            return made[place]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Root, "database", property(database))
        yield
