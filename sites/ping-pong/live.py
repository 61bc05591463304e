"""Script form: the whole file runs, top to bottom, for each request to /ping-pong/live.

It speaks the subprotocol `pingpong` only. Where it sets no response krait-ws refuses: 400 for an upgrade with
another subprotocol or none, 426 for a plain HTTP request, for which `websockets.request` is None.
"""

from _demos.pingpong import PingPong

from krait_ws import websockets

request = websockets.request

if request is not None and "pingpong" in (request.protocols or []):
    websockets.response = websockets.WebsocketsResponse(PingPong(), "pingpong")
