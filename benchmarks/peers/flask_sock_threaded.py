"""Echo on Flask-Sock with the threaded development server: one OS thread a connection."""

import logging
import sys

from flask import Flask
from flask_sock import Sock

logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
app = Flask(__name__)
sock = Sock(app)


@sock.route("/")
def echo(ws):
    while True:
        ws.send(ws.receive())


app.run("127.0.0.1", int(sys.argv[1]), threaded=True)
