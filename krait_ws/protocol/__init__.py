"""RFC 6455 without I/O: bytes in, messages and bytes out. Knows no socket, thread, gevent or logging."""
