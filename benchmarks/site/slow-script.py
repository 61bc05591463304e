"""A route script that blocks a second before it answers, as one with a slow database would."""

import time

from krait_ws import Response


def http(request):
    time.sleep(1)
    return Response("at last\n")
