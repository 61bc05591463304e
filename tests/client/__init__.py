"""Tests of krait_ws.client."""
