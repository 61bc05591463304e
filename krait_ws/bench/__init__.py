"""The load of ``krait-ws bench``: many WebSocket clients on one epoll loop, in plain Python.

``plan.py`` says what is to be done, ``link.py`` is one connection, ``load.py`` the loop, ``report.py`` the result. What
takes the time of such a program is left out: messages are masked once, echoes are compared with one ``memcmp`` for all
that a read brought, and frames are looked at only where a server sent something else.
"""
