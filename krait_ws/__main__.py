"""``python -m krait_ws`` is the ``krait-ws`` command."""

from krait_ws.cli import main

main()
