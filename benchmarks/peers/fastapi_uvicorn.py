"""Echo on FastAPI and uvicorn with uvloop, compression off."""

import sys

import uvicorn
from fastapi import FastAPI, WebSocket, WebSocketDisconnect

app = FastAPI()


@app.websocket("/")
async def echo(ws: WebSocket):
    await ws.accept()
    try:
        while True:
            message = await ws.receive()
            if message["type"] == "websocket.disconnect":
                return
            if message.get("text") is not None:
                await ws.send_text(message["text"])
            else:
                await ws.send_bytes(message["bytes"])
    except WebSocketDisconnect:
        pass


uvicorn.run(
    app, host="127.0.0.1", port=int(sys.argv[1]), log_level="critical", ws_per_message_deflate=False, loop="uvloop"
)
