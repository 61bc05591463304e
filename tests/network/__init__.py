"""Tests of ``krait_ws.network``: the parts alone, with a hub but mostly without a server."""
