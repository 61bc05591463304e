#!/usr/bin/env python3
"""Measure krait-ws and its peers side by side, and hold the figures against the targets of the project.

    python benchmarks/run.py [--rounds 5] [--seconds 3] [--name latest] [--only CASE]... [--quick]

Every round runs every case; cases, and within a case its servers, come in random order, each on a server started
afresh. The result is the median of the rounds, as results/<name>.json and results/<name>.md, with each target beside
what was measured. Ctrl-C ends it early, with what has been measured.

Figures on a shared machine drift: trust the ratios within one run, and CPU per message. krait-ws is that of the Python
that runs this script. Peers run in a virtual environment that is made in $BENCH_VENV (default ~/.cache/wsbench-venv)
from peers/requirements.txt; the load generator wsload.c is compiled beside it with $CC (default cc).
"""

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import platform
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
VENV = pathlib.Path(os.environ.get("BENCH_VENV", pathlib.Path.home() / ".cache" / "wsbench-venv"))
PEER_PACKAGES = (
    "aiohttp", "fastapi", "uvicorn", "uvloop", "picows", "websockets", "gevent", "gevent-websocket", "flask-sock",
    "simple-websocket",
)  # fmt: skip
KRAIT_PACKAGES = ("krait-ws", "gevent", "greenlet", "websockets", "werkzeug")
HEADERS = (
    "User-Agent: Mozilla/5.0 (X11; Linux x86_64) Gecko/20100101 Firefox/128.0\r\n"
    "Accept-Language: en-US,en;q=0.5\r\nAccept-Encoding: gzip, deflate, br\r\n"
    "Cache-Control: no-cache\r\nPragma: no-cache\r\n"
)
"""Five headers as a browser sends them, for the memory that a kept request costs."""


@dataclasses.dataclass(frozen=True)
class Case:
    """What is measured.

    Attributes:
        mode: Of wsload: echo, idle, handshake, broadcast; or held: echo beside held connections.
        arguments: Of wsload, behind the path and before the seconds.
        figure: The figure of the table, as wsload names it.
        servers: By name: a runs_on of krait-ws with the route, or a peer.
        held: Connections that are held open beside.
    """

    name: str
    title: str
    mode: str
    arguments: tuple
    figure: str
    servers: tuple
    held: int = 0
    needs: str = ""


@dataclasses.dataclass(frozen=True)
class Target:
    """``figure`` of ``server`` is at least (``at_most``: at most) ``factor`` times the best of ``peers``.

    Without peers ``factor`` is the figure itself.
    """

    case: str
    server: str
    factor: float
    peers: tuple = ()
    figure: str = ""
    at_most: bool = False
    peer_case: str = ""


THREADED = ("flask_sock_threaded", "websockets_threaded")
KRAIT = ("thread", "greenlet", "loop")

CASES = (
    Case("echo-100", "echo 32 B, 100 connections, 1 in flight", "echo", (100, 1, 32), "msgs_per_s",
         (*KRAIT, *THREADED, "aiohttp_uvloop", "fastapi_uvicorn", "gevent_websocket", "picows_uvloop")),
    Case("echo-100x16", "echo 32 B, 100 connections, 16 in flight", "echo", (100, 16, 32), "msgs_per_s",
         (*KRAIT, *THREADED, "aiohttp_uvloop", "picows_uvloop")),
    Case("echo-1000", "echo 32 B, 1,000 connections, 1 in flight", "echo", (1000, 1, 32), "msgs_per_s",
         (*KRAIT, "aiohttp_uvloop", "picows_uvloop")),
    Case("echo-1", "echo 32 B, 1 connection, 1 in flight", "echo", (1, 1, 32), "msgs_per_s",
         ("thread", "aiohttp_uvloop")),
    Case("echo-64k", "echo 64 KiB binary, 10 connections", "echo", (10, 1, 65536), "msgs_per_s",
         ("greenlet", "aiohttp_uvloop")),
    Case("echo-1m", "echo 1 MB binary, 4 connections", "echo", (4, 1, 1_000_000), "msgs_per_s",
         ("loop", "picows_uvloop", "aiohttp_uvloop")),
    Case("idle", "idle memory, 5,000 connections", "idle", (5000,), "rss_kb_per_conn", KRAIT),
    Case("handshakes", "handshakes through a function-form route script", "handshake", (64,), "handshakes_per_s",
         ("loop", "aiohttp_uvloop")),
    Case("fanout", "fan-out of 32 B to 5,000 connections", "broadcast", (5000, 2, 32), "msgs_per_s",
         ("fanout", "websockets_broadcast"), needs="broadcast"),
    Case("alone", "echo on 100 connections, nothing else connected", "echo", (100, 1, 32), "p99_us",
         ("thread", "greenlet")),
    Case("held", "echo on 100 connections beside 15,000 held", "echo", (100, 1, 32), "p99_us",
         ("thread", "greenlet"), held=15000),
)  # fmt: skip

TARGETS = (
    Target("echo-100", "thread", 3, THREADED),
    Target("echo-100", "greenlet", 1.2, ("aiohttp_uvloop",)),
    Target("echo-100", "greenlet", 2, ("fastapi_uvicorn",)),
    Target("echo-100", "greenlet", 2, ("gevent_websocket",)),
    Target("echo-100", "loop", 2, ("aiohttp_uvloop",)),
    Target("echo-100", "loop", 1.1, ("picows_uvloop",)),
    Target("echo-100x16", "thread", 15, THREADED),
    Target("echo-100x16", "thread", 2.5, ("aiohttp_uvloop",)),
    Target("echo-100x16", "greenlet", 3, ("aiohttp_uvloop",)),
    Target("echo-100x16", "greenlet", 2, ("picows_uvloop",)),
    Target("echo-100x16", "loop", 3, ("aiohttp_uvloop",)),
    Target("echo-100x16", "loop", 2, ("picows_uvloop",)),
    Target("echo-1000", "greenlet", 1.3, ("aiohttp_uvloop",)),
    Target("echo-1000", "loop", 0.9, ("picows_uvloop",)),
    Target("echo-1000", "thread", 0.6, ("aiohttp_uvloop",)),
    Target("echo-1", "thread", 1.0, ("aiohttp_uvloop",)),
    Target("echo-1", "thread", 1.0, ("aiohttp_uvloop",), figure="p99_us", at_most=True),
    Target("echo-64k", "greenlet", 1.0, ("aiohttp_uvloop",)),
    Target("echo-1m", "loop", 1.0, ("picows_uvloop",)),
    Target("echo-1m", "loop", 1.0, ("aiohttp_uvloop",)),
    Target("idle", "thread", 20, at_most=True),
    Target("idle", "greenlet", 12, at_most=True),
    Target("idle", "loop", 8, at_most=True),
    Target("handshakes", "loop", 1.0, ("aiohttp_uvloop",)),
    Target("fanout", "fanout", 2, ("websockets_broadcast",)),
    Target("held", "thread", 2, ("thread",), at_most=True, peer_case="alone"),
    Target("held", "greenlet", 2, ("greenlet",), at_most=True, peer_case="alone"),
)

UNITS = {
    "msgs_per_s": "msgs/s",
    "p99_us": "µs p99",
    "rss_kb_per_conn": "KB a connection",
    "handshakes_per_s": "handshakes/s",
}
COLUMNS = ("msgs_per_s", "handshakes_per_s", "rss_kb_per_conn", "p50_us", "p99_us", "cpu_us_per_msg", "sys_us_per_msg")


# ---- what is needed


def compiled(name):
    """The path of a program of C here, compiled when its source is newer."""
    VENV.mkdir(parents=True, exist_ok=True)
    program = VENV / f"krait-{name}"
    source = HERE / f"{name}.c"
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        subprocess.run([os.environ.get("CC", "cc"), "-O2", "-o", program, source], check=True)
    return program


def peer_python():
    """The Python of the peers' virtual environment, made at the first call."""
    python = VENV / "bin" / "python"
    if not (VENV / "ready").exists():
        print(f"making the peers' virtual environment in {VENV}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
        requirements = HERE / "peers" / "requirements.txt"
        subprocess.run([python, "-m", "pip", "-q", "install", "-r", requirements], check=True)
        (VENV / "ready").touch()
    return python


def tree(pid):
    """The process and all its descendants."""
    found = [pid]
    for parent in found:
        for task in pathlib.Path(f"/proc/{parent}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                found += [int(child) for child in task.read_text().split()]
    return found


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """A running server in a process group of its own; a context manager that ends it."""

    def __init__(self, name, options=(), environment=()):
        self.port = free_port()
        if (HERE / "peers" / f"{name}.py").exists():
            self.path = "/"
            command = [peer_python(), HERE / "peers" / f"{name}.py", self.port]
        elif (HERE / f"{name}.c").exists():
            self.path = "/"
            command = [compiled(name), self.port]
        else:
            self.path = f"/{name}"
            command = [sys.executable, "-m", "krait_ws", "serve", HERE / "site", "--port", self.port, *options]
        self._process = subprocess.Popen(
            [str(part) for part in command],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd=HERE,
            env={**os.environ, "KRAIT_MAX_CONNECTIONS": "30000", **dict(environment)},
        )
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                break
            except OSError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    self.stop()
                    raise RuntimeError(f"{name} did not start") from None
                time.sleep(0.05)
        time.sleep(0.3)

    @property
    def pids(self):
        return tree(self._process.pid)

    def stop(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


def load_command(mode, server, path, arguments, seconds):
    command = [compiled("wsload"), mode, "127.0.0.1", server.port, path, *arguments, seconds]
    if mode == "echo" and arguments[2] > 10000:
        command.append("binary")
    return [str(part) for part in command]


def load(mode, server, path, arguments, seconds, headers=""):
    """The figures of one run of wsload, by name.

    Raises:
        RuntimeError: It failed.
    """
    environment = {**os.environ, "SRVPID": ",".join(map(str, server.pids)), "WSHEADERS": headers}
    command = load_command(mode, server, path, arguments, seconds)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds + 120)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "wsload failed")
    pairs = dict(pair.split("=") for pair in done.stdout.split())
    return {name: float(value) for name, value in pairs.items() if name != "mode"}


@contextlib.contextmanager
def held(server, path, count):
    """Connections that are open and say nothing meanwhile."""
    if not count:
        yield
        return
    process = subprocess.Popen(
        load_command("idle", server, path, (count,), 600), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        line = process.stderr.readline()
        if line.strip() != "open":
            raise RuntimeError(f"cannot hold {count} connections: {line.strip()}")
        yield
    finally:
        process.kill()
        process.wait()


def measure(case, name, seconds):
    """One run of a case on one server."""
    with Server(name) as server:
        path = f"/idle-{name}" if case.mode == "idle" else server.path
        held_path = f"/idle-{name}" if case.held else server.path
        with held(server, held_path, case.held):
            return load(case.mode, server, path, case.arguments, seconds, HEADERS if case.mode == "idle" else "")


def is_missing(case):
    """Why a case cannot be run, or an empty string."""
    if case.needs:
        code = f"import krait_ws.websockets as w; raise SystemExit(not hasattr(w, {case.needs!r}))"
        if subprocess.run([sys.executable, "-c", code], cwd=HERE).returncode:
            return f"krait_ws.websockets.{case.needs} is not there yet"
    return ""


# ---- the result


def versions(python, packages):
    code = (
        "import sys, json, importlib.metadata as m\nr = {'python': sys.version.split()[0]}\n"
        "for p in sys.argv[1:]:\n try: r[p] = m.version(p)\n except m.PackageNotFoundError: pass\nprint(json.dumps(r))"
    )
    out = subprocess.run([str(python), "-c", code, *packages], capture_output=True, text=True, check=True, cwd=HERE)
    return json.loads(out.stdout)


def machine():
    """What the figures were made on; no name and no path of the machine."""
    model = ""
    with contextlib.suppress(OSError):
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    facts = {
        "cpu": model or platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory),
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
    }
    with contextlib.suppress(OSError):
        control = pathlib.Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()
        facts["congestion_control"] = control
    return facts


def commit():
    git = shutil.which("git")
    if not git:
        return ""
    out = subprocess.run([git, "-C", HERE, "describe", "--always", "--dirty"], capture_output=True, text=True)
    return out.stdout.strip()


def median_of(runs):
    """The median of each figure over the runs."""
    names = set.intersection(*(set(run) for run in runs)) if runs else set()
    return {name: statistics.median(run[name] for run in runs) for name in sorted(names)}


def judge(target, cases):
    """What a target asks and what was measured; ``None`` when a figure is missing."""
    by_name = {case.name: case for case in CASES}
    figure = target.figure or by_name[target.case].figure
    own = cases.get(target.case, {}).get(target.server, {}).get(figure)
    others = cases.get(target.peer_case or target.case, {})
    peers = [others[peer][figure] for peer in target.peers if figure in others.get(peer, {})]
    if own is None or len(peers) < len(target.peers):
        return None
    peer = (min if target.at_most else max)(peers) if peers else 1.0
    ratio = own / peer if peer else 0.0
    names = " / ".join(target.peers)
    if target.peer_case:
        names = f"{names} ({target.peer_case})"
    return {
        "case": target.case,
        "server": target.server,
        "figure": figure,
        "measured": own,
        "peers": names,
        "peer": peer if peers else None,
        "ratio": ratio,
        "factor": target.factor,
        "at_most": target.at_most,
        "met": ratio <= target.factor if target.at_most else ratio >= target.factor,
    }


def number(value):
    return f"{value:,.0f}" if value >= 100 else f"{value:,.1f}"


def markdown(result):
    """The result as a page."""
    lines = [f"# Benchmark `{result['name']}`", ""]
    facts = result["machine"]
    lines += [
        f"{facts['cpu']}, {facts['cores']} cores, {facts['memory_gib']} GiB, {facts['system']}; {result['date']}; "
        f"{result['rounds']} rounds of {result['seconds']:g} s; commit {result['commit'] or 'unknown'}.",
        "",
        f"    {result['command']}",
        "",
        "krait-ws: " + ", ".join(f"{k} {v}" for k, v in result["versions"]["krait"].items()) + ".",
        "",
        "Peers: " + ", ".join(f"{k} {v}" for k, v in result["versions"]["peers"].items()) + ".",
        "",
        "## Targets",
        "",
        "| case | krait-ws | measured | peer | ratio | target | |",
        "| --- | --- | ---: | --- | ---: | ---: | --- |",
    ]
    titles = {case.name: case.title for case in CASES}
    for row in result["targets"]:
        sign = "≤" if row["at_most"] else "≥"
        unit = UNITS[row["figure"]]
        peer = f"{row['peers']}: {number(row['peer'])}" if row["peer"] is not None else ""
        ratio = f"{row['ratio']:.2f} ×" if row["peer"] is not None else ""
        asked = f"{sign} {row['factor']:g}" + (" ×" if row["peer"] is not None else f" {unit}")
        lines.append(
            f"| {titles[row['case']]} | {row['server']} | {number(row['measured'])} {unit} | {peer} | {ratio} "
            f"| {asked} | {'met' if row['met'] else '**not met**'} |"
        )
    met = sum(row["met"] for row in result["targets"])
    lines += ["", f"{met} of {len(result['targets'])} met."]
    lines += [f"\nSkipped: {name}: {why}." for name, why in result["skipped"].items()]
    lines += ["", "## Medians", ""]
    for case in CASES:
        servers = result["cases"].get(case.name)
        if not servers:
            continue
        columns = [c for c in COLUMNS if any(figures.get(c) for figures in servers.values())]
        lines += [
            f"### {case.title}",
            "",
            "| server | " + " | ".join(columns) + " |",
            "| --- |" + " ---: |" * len(columns),
        ]
        for name, figures in servers.items():
            lines.append(f"| {name} | " + " | ".join(number(figures.get(column, 0.0)) for column in columns) + " |")
        lines.append("")
    if result["failures"]:
        lines += ["## Failures", "", *(f"- {failure}" for failure in result["failures"]), ""]
    return "\n".join(lines).rstrip() + "\n"


class Progress:
    """One line that says how far it is; plain lines where the output is no terminal."""

    def __init__(self, total):
        self.total = total
        self.done = 0
        self.began = time.monotonic()
        self.live = sys.stderr.isatty()

    def show(self, text):
        spent = time.monotonic() - self.began
        left = spent / self.done * (self.total - self.done) if self.done else 0
        bar = "#" * (24 * self.done // self.total)
        line = f"[{bar:<24}] {self.done}/{self.total}, {left / 60:4.1f} min left  {text}"
        if self.live:
            print(f"\r\x1b[K{line[: shutil.get_terminal_size().columns - 1]}", end="", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)

    def end(self):
        if self.live:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def run(cases, rounds, seconds):
    """All rounds: the runs of each case and server, and what failed."""
    runs = {case.name: {name: [] for name in case.servers} for case in cases}
    failures = []
    progress = Progress(rounds * sum(len(case.servers) for case in cases))
    last = ""
    plan = [
        (turn, case, name)
        for turn in range(rounds)
        for case in random.sample(cases, len(cases))
        for name in random.sample(case.servers, len(case.servers))
    ]
    try:
        for turn, case, name in plan:
            progress.show(f"round {turn + 1}: {case.name} on {name}   (last: {last})")
            try:
                figures = measure(case, name, seconds)
                runs[case.name][name].append(figures)
                last = f"{case.name} {name} {number(figures[case.figure])} {UNITS[case.figure]}"
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                failures.append(f"{case.name} on {name}, round {turn + 1}: {error}")
                last = failures[-1]
            progress.done += 1
    except KeyboardInterrupt:
        failures.append(f"ended early, after {progress.done} of {progress.total} runs")
    progress.end()
    return runs, failures


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--name", default="latest", help="of the result's files in results/")
    parser.add_argument("--only", action="append", metavar="CASE", help=", ".join(case.name for case in CASES))
    parser.add_argument("--quick", action="store_true", help="one round of one second: a look, no result")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.seconds = 1, 1.0
    unknown = set(arguments.only or ()) - {case.name for case in CASES}
    if unknown:
        parser.error(f"no such case: {', '.join(sorted(unknown))}")
    wanted = [case for case in CASES if not arguments.only or case.name in arguments.only]
    if arguments.only and "held" in arguments.only and "alone" not in arguments.only:
        wanted += [case for case in CASES if case.name == "alone"]  # the ratio needs it
    skipped = {case.name: why for case in wanted if (why := is_missing(case))}
    for name, why in skipped.items():
        print(f"skipped: {name}: {why}", file=sys.stderr)
    wanted = [case for case in wanted if case.name not in skipped]
    compiled("wsload")
    peers = peer_python()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored in the background
    measured = commit()  # now: somebody may go on working while this runs
    runs, failures = run(wanted, arguments.rounds, arguments.seconds)
    cases = {case: {name: median_of(done) for name, done in servers.items() if done} for case, servers in runs.items()}
    result = {
        "name": arguments.name,
        "date": time.strftime("%Y-%m-%d"),
        "command": " ".join(["python", "benchmarks/run.py", *sys.argv[1:]]),
        "commit": measured,
        "rounds": arguments.rounds,
        "seconds": arguments.seconds,
        "machine": machine(),
        "versions": {"krait": versions(sys.executable, KRAIT_PACKAGES), "peers": versions(peers, PEER_PACKAGES)},
        "targets": [row for target in TARGETS if (row := judge(target, cases))],
        "skipped": skipped,
        "failures": failures,
        "cases": cases,
        "runs": runs,
    }
    folder = HERE / "results"
    folder.mkdir(exist_ok=True)
    (folder / f"{arguments.name}.json").write_text(json.dumps(result, indent=1) + "\n")
    page = markdown(result)
    (folder / f"{arguments.name}.md").write_text(page)
    print(page)
    print(f"written: benchmarks/results/{arguments.name}.json and .md", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
