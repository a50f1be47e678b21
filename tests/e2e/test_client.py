"""scripts/client.py against a server that closes connections where a daemon would not: what is asked again, and what not."""

import json
import socket
import struct
import sys
import threading

import pytest

from daemon import ROOT

sys.path.insert(0, str(ROOT / "scripts"))
from client import Client  # noqa: E402

WHOLE = {"choices": [{"index": 0, "text": "a", "finish_reason": "stop"}], "usage": {"completion_tokens": 1}}
CHUNK = b'data: {"id": "a", "choices": [{"index": 0, "text": "a", "finish_reason": null}]}\n\n'


def read_request(connection):
    """False where the client closed it."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = connection.recv(65536)
        if not part:
            return False
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length:")[2].split()[0])
    while len(body) < length:
        body += connection.recv(65536)
    return True


def whole(connection):
    data = json.dumps(WHOLE).encode()
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(data) + data)


def cut(connection):
    """Of a stream its first event, and a reset."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n" % (len(CHUNK), CHUNK))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@pytest.fixture
def serve():
    """serve([answers], ...): a port whose first connection gives the first answers and closes, and so on; and the number
    of requests, as a list that grows."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(60)

    def begin(*connections):
        asked = []

        def run():
            for answers in connections:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return  # closed: a connection that nobody makes
                with connection:
                    for answer in answers:
                        if not read_request(connection):
                            break
                        asked.append(answer)
                        answer(connection)

        threading.Thread(target=run, daemon=True).start()
        return listener.getsockname()[1], asked

    yield begin
    listener.shutdown(socket.SHUT_RDWR)  # who waits in accept() is told
    listener.close()


def test_an_idle_connection_that_was_closed_is_opened_again(serve):
    port, asked = serve([whole, whole], [whole])
    client = Client(port)
    assert [client.ask("/", {}).texts for _ in range(3)] == [{0: "a"}] * 3
    assert len(asked) == 3
    client.close()


def test_a_stream_that_breaks_off_is_not_asked_for_again(serve):
    port, asked = serve([whole, cut], [whole])
    client = Client(port)
    client.ask("/", {})
    with pytest.raises(ConnectionResetError):
        client.ask("/", {"stream": True})
    assert asked == [whole, cut]
    client.close()
