"""Runs the Autobahn testsuite's fuzzing client against an echo site of krait-ws and judges what came out.

    python tests/conformance/run.py                            # everything: about 10 minutes for each runs_on
    python tests/conformance/run.py --quick                    # groups 1-7 and 10, handlers on threads: 10 seconds
    python tests/conformance/run.py --groups 5,6.4 --runs-on loop

Exit code 0: no case failed, every connection was closed cleanly, the server's log holds no error and the server still
stood at the end; or there is no Python 2.7 here, which a line says. 1: anything of that is not so. 2: the suite could
not be run.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import environment
import report

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CACHE = ROOT / ".autobahn"
DOCUMENT = ROOT / "docs" / "conformance.md"
RUNS_ON = ("thread", "greenlet", "loop")
QUICK_GROUPS = ("1", "2", "3", "4", "5", "6", "7", "10")
START_TIMEOUT = 20.0
STOP_TIMEOUT = 30.0


class Server:
    """``krait-ws serve`` as a user starts it, on a free port. Its log stands in ``log``."""

    def __init__(self, folder: Path, options: list[str]) -> None:
        self.log = folder / "server.log"
        settings = {name: value for name, value in os.environ.items() if not name.startswith("KRAIT_")}
        command = [sys.executable, "-m", "krait_ws", "serve", str(HERE / "site"), "--port", "0", *options]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                command, cwd=ROOT, env=settings, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True
            )
        self.address = self._read_address()

    def stop(self) -> str:
        """Ends it. Returns what was wrong with that, ``""`` when nothing."""
        if (code := self._process.poll()) is not None:
            return f"the server had ended with exit code {code} before it was told to"
        self._process.send_signal(signal.SIGTERM)
        try:
            code = self._process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return f"the server did not end within {STOP_TIMEOUT:g} s of SIGTERM"
        return f"the server ended with exit code {code}" if code else ""

    def _read_address(self) -> str:
        """From ``krait-ws serves … on http://127.0.0.1:40123 (…)``."""
        killer = threading.Timer(START_TIMEOUT, self._process.kill)
        killer.start()
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        killer.cancel()
        for word in line.split():
            if word.startswith("http://"):
                return word.removeprefix("http://")
        self._process.kill()
        self._process.wait()
        raise environment.InstallError(f"the server did not start:\n{self.log.read_text(errors='replace')[-2000:]}")


@contextmanager
def served(folder: Path, options: list[str]) -> Iterator[Server]:
    """A server that ends with the block, however that ends."""
    server = Server(folder, options)
    try:
        yield server
    finally:
        server.stop()


def run_suite(wstest: Path, runs_on: str, groups: list[str], minutes: float, options: list[str]) -> report.Result:
    """One run of the fuzzing client against one kind of controller."""
    folder = CACHE / "reports" / runs_on
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    started = time.monotonic()
    with served(folder, options) as server:
        spec = folder / "spec.json"
        url = f"ws://{server.address}/echo?runs_on={runs_on}"
        spec.write_text(
            json.dumps(
                {
                    "outdir": str(folder),
                    "servers": [{"agent": runs_on, "url": url}],
                    "cases": [rf"{group}\b*" for group in groups],  # the suite makes regular expressions of them
                    "exclude-cases": [],
                    "exclude-agent-cases": {},
                },
                indent=2,
            )
        )
        announced, group_seconds, complaint = _follow(wstest, spec, folder / "wstest.log", minutes)
        ended = server.stop()
    trouble = [*filter(None, (complaint, ended)), *report.trouble_in_log(server.log)]
    cases = report.read_cases(folder, runs_on, announced)
    return report.Result(runs_on, cases, time.monotonic() - started, group_seconds, trouble)


def _follow(wstest: Path, spec: Path, log: Path, minutes: float) -> tuple[list[str], dict[int, float], str]:
    """Runs the client. Returns the cases that it announced, the seconds that each group took and what was wrong with
    the client itself, ``""`` when nothing."""
    announced: list[str] = []
    seconds: dict[int, float] = {}
    group, since = 0, time.monotonic()
    client = subprocess.Popen(
        [wstest, "-m", "fuzzingclient", "-s", spec],
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
    )  # fmt: skip
    killer = threading.Timer(minutes * 60, client.kill)
    killer.start()
    try:
        assert client.stdout is not None
        with log.open("w") as copy:
            for line in client.stdout:
                copy.write(line)
                if line.startswith("Cases = "):
                    announced = [str(case) for case in ast.literal_eval(line.removeprefix("Cases = "))]
                elif line.startswith("Running test case ID "):
                    now_in = int(line.split()[4].split(".")[0])
                    if now_in != group:
                        now = time.monotonic()
                        seconds[group] = now - since
                        group, since = now_in, now
                        print(f"  group {group} {report.GROUPS.get(group, '')} …", flush=True)
        client.wait()
    finally:
        killer.cancel()
        client.kill()
        client.wait()
    seconds[group] = time.monotonic() - since
    complaint = ""
    if client.returncode < 0:
        complaint = f"the suite did not end within {minutes:g} minutes"
    elif client.returncode or not announced:
        complaint = f"the suite broke off:\n{log.read_text(errors='replace')[-2000:]}"
    return announced, seconds, complaint


def show(result: report.Result) -> None:
    """Prints tables and verdict of one run."""
    print(f"\n{report.table(result)}\n")
    if listed := report.remarkable(result):
        print(f"Not plainly OK:\n\n{listed}\n")
    if result.trouble:
        print("Trouble outside the cases, the server's log among it:\n")
        print("\n".join(f"  {line}" for line in result.trouble[:20]))
        print(f"  … and {len(result.trouble) - 20} lines more\n" if len(result.trouble) > 20 else "")
    failed = sum(not case.passed for case in result.cases)
    verdict = "passed" if result.passed else f"FAILED: {failed} cases, {len(result.trouble)} lines of trouble"
    print(f"runs_on = {result.runs_on}: {len(result.cases)} cases in {result.seconds:.0f} s, {verdict}", flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Runs the Autobahn testsuite against krait-ws.")
    every = ",".join(map(str, report.GROUPS))
    parser.add_argument("--groups", default=every, help=f"groups, sections or cases: 1,6.4,9.1.6 (default: {every})")
    parser.add_argument("--runs-on", default=",".join(RUNS_ON), help="kinds of controllers (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="groups 1-7 and 10, handlers on threads")
    parser.add_argument("--minutes", type=float, default=60, help="most that one run may take (default: %(default)g)")
    parser.add_argument("--serve", default="", metavar="FLAGS", help="further flags for krait-ws serve, in one word")
    parser.add_argument("--save", action="store_true", help=f"write the tables to {DOCUMENT.relative_to(ROOT)}")
    arguments = parser.parse_args()
    arguments.groups = list(QUICK_GROUPS) if arguments.quick else arguments.groups.split(",")
    arguments.runs_on = ["thread"] if arguments.quick else arguments.runs_on.split(",")
    if arguments.save and (arguments.groups != every.split(",") or arguments.runs_on != list(RUNS_ON)):
        parser.error("--save takes the whole run: without --quick, --groups and --runs-on")
    for runs_on in arguments.runs_on:
        if runs_on not in RUNS_ON:
            parser.error(f"--runs-on: {runs_on!r} is none of {', '.join(RUNS_ON)}")
    for group in arguments.groups:
        if not all(part.isdigit() for part in group.split(".")) or int(group.split(".")[0]) not in report.GROUPS:
            parser.error(f"--groups: {group!r} is no group; there are {every}")
    return arguments


def main() -> int:
    arguments = parse_arguments()
    python27 = environment.find_python27()
    if python27 is None:
        print("SKIPPED: no Python 2.7 here (python2.7 on the PATH, or one of pyenv); the Autobahn testsuite needs it")
        return 0
    CACHE.mkdir(exist_ok=True)
    results = []
    try:
        wstest = environment.wstest(python27, CACHE)
        for runs_on in arguments.runs_on:
            print(f"\nrunning against runs_on = {runs_on}", flush=True)
            results.append(run_suite(wstest, runs_on, arguments.groups, arguments.minutes, arguments.serve.split()))
            show(results[-1])
    except environment.InstallError as error:
        print(f"the testsuite could not be run: {error}", file=sys.stderr)
        return 2
    if arguments.save:
        report.save(results, f"Python {sys.version.split()[0]}, {time.strftime('%Y-%m-%d')}.", DOCUMENT)
    print(f"\nreports: {(CACHE / 'reports').relative_to(ROOT)}/*/index.html")
    return 0 if all(result.passed for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
