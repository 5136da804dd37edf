"""A server with TLS that stands where a SuperLink stands, behind a gate."""

import ssl
import threading
from contextlib import contextmanager
from http.server import ThreadingHTTPServer

from fedbonsai.fleets.flower import certificates


@contextmanager
def link_of(folder, handler):
    """The port on which a handler answers while it lasts, and files of the authority, the certificate and its key."""
    certificates.make_server(folder, ["localhost"])
    files = [folder / name for name in (certificates.CA, certificates.SERVER, certificates.SERVER_KEY)]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files[1], files[2])
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port, files
    server.shutdown()
    server.server_close()
