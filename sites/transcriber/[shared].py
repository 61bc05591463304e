"""What all pages share lies in the folder above; here it is found when this folder is served as a site of its own."""

from pathlib import Path

from werkzeug.utils import send_file

from krait_ws import Request, Response, ResponseNotFound


def http(request: Request) -> Response:
    """Those three files, and no others."""
    name = request.params["shared"]
    if name not in ("demo.js", "favicon.svg", "style.css"):
        return ResponseNotFound()
    return send_file(Path(__file__).parents[1] / name, request.environ)
