"""Fuzzes what a peer can reach: the protocol state, the opening handshake and a real server.

    python tests/fuzz/fuzz_protocol.py --seconds 60 [--seed 1] [--only protocol,coverage,handshake,network]

``protocol`` makes frames, breaks some of them, and gives them whole, byte by byte and cut at random: no exception, no
hang, nothing kept or given beyond the limits, and the same outcome however the bytes are cut. What it finds valid must
be valid to ``websockets`` too, with the same messages. ``coverage`` does the same with inputs that atheris makes, where
it is installed. ``handshake`` gives odd values in a WSGI environ to the checks of an upgrade. ``network`` sends broken
requests and frames to a server on the loopback interface; then a polite client must still be served, and nothing may
have been logged as an error of krait-ws or printed as a traceback.

A failure prints the seed and a minimal reproduction, and ends with exit code 1.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable
from pathlib import Path

SHARES = {"protocol": 0.4, "coverage": 0.25, "handshake": 0.1, "network": 0.25}
"""Of the time that each part gets."""


def parts() -> dict[str, Callable[[float, int], bool]]:
    from tests.fuzz import handshake, network, protocol

    return {
        "protocol": protocol.fuzz_protocol,
        "coverage": protocol.fuzz_coverage,
        "handshake": handshake.fuzz_handshake,
        "network": network.fuzz_network,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--only", default=",".join(SHARES), help="some of " + ", ".join(SHARES))
    parser.add_argument("--atheris-child", metavar="CORPUS", help=argparse.SUPPRESS)
    options = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    seed = random.SystemRandom().randrange(1 << 31) if options.seed is None else options.seed
    if options.atheris_child:
        import atheris

        with atheris.instrument_imports(include=["krait_ws.protocol"]):
            from tests.fuzz import protocol
        protocol.run_atheris_child(int(options.seconds), seed, options.atheris_child)
        return 0
    print(f"seed: {seed}", flush=True)
    chosen = options.only.split(",")
    total = sum(SHARES[name] for name in chosen)
    results = [parts()[name](options.seconds * SHARES[name] / total, seed) for name in chosen]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
