"""Fuzzes the protocol state: with made frames, and with the inputs that atheris finds."""

from __future__ import annotations

import importlib.util
import random
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

from tests.fuzz.checks import SETUPS, Setup, check, memory_problem
from tests.fuzz.common import Failure, minimal, no_hang, report
from tests.fuzz.inputs import Frames


def failure_of(setup: Setup, data: bytes, cut_seed: int) -> str | None:
    """What is wrong with the handling of ``data``, ``None`` for nothing."""
    try:
        with no_hang():
            check(setup, data, random.Random(cut_seed))
    except Failure as failure:
        return str(failure)
    except Exception:
        return traceback.format_exc()
    return None


def report_protocol(setup: Setup, data: bytes, cut_seed: int, seed: int) -> None:
    data = minimal(lambda shorter: failure_of(setup, shorter, cut_seed) is not None, data)
    what = failure_of(setup, data, cut_seed) or "nothing any more"
    report(
        what,
        seed,
        f"    from tests.fuzz.checks import Setup, check\n"
        f"    check({setup!r}, bytes.fromhex({data.hex()!r}), random.Random({cut_seed}))",
    )


def fuzz_protocol(seconds: float, seed: int) -> bool:
    source = random.Random(seed)
    frames = Frames(source)
    deadline = time.monotonic() + seconds
    cases = 0
    while time.monotonic() < deadline:
        setup = source.choice(SETUPS)
        cut_seed = source.randrange(1 << 32)
        data = frames.make(setup) if source.random() < 0.95 else source.randbytes(source.choice((3, 30, 300)))
        cases += 1
        if failure_of(setup, data, cut_seed) is not None:
            report_protocol(setup, data, cut_seed, seed)
            return False
        if cases % 50 == 0 and (problem := memory_problem(setup, data)):
            report(problem, seed, f"    {setup!r}, bytes.fromhex({data.hex()!r})")
            return False
    print(f"protocol: {cases} inputs")
    return True


def fuzz_coverage(seconds: float, seed: int) -> bool:
    if importlib.util.find_spec("atheris") is None:
        print("coverage: atheris is not installed")
        return True
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder, "corpus")
        corpus.mkdir()
        source = random.Random(seed)
        frames = Frames(source)
        for number in range(200):
            index = source.randrange(len(SETUPS))
            made = frames.make(SETUPS[index])[:2000]
            (corpus / str(number)).write_bytes(bytes((index & 0xFF, source.randrange(256))) + made)
        script = str(Path(__file__).with_name("fuzz_protocol.py"))
        command = [sys.executable, script, "--atheris-child", str(corpus)]
        command += ["--seconds", str(int(seconds)), "--seed", str(seed)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 120, check=False)
        inputs = [line for line in done.stderr.splitlines() if line.startswith("Done ")]
        if done.returncode:
            print(done.stdout[-3000:] or done.stderr[-3000:])
            return False
        print(f"coverage: {inputs[-1] if inputs else 'done'}, {len(list(corpus.iterdir())) - 200} new inputs")
    return True


def run_atheris_child(seconds: int, seed: int, corpus: str) -> None:
    """Runs until the time is over or an input fails. Ends the process."""
    import atheris

    def one_input(given: bytes) -> None:
        if len(given) < 2:
            return
        setup = SETUPS[given[0] % len(SETUPS)]
        if failure_of(setup, given[2:], given[1]) is not None:
            report_protocol(setup, given[2:], given[1], seed)
            sys.stdout.flush()
            raise Failure("see above")

    options = [f"-max_total_time={seconds}", f"-seed={seed or 1}", "-max_len=4000", f"-artifact_prefix={corpus}/../"]
    atheris.Setup([sys.argv[0], *options, corpus], one_input)
    atheris.Fuzz()
