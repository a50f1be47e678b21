"""Raw, mostly malformed requests against the HTTP transport (tests/tool_httpd.c).

Every case is (name, bytes, expected status).  The request is sent as it is on its own connection, the write side stays
open, and the one response (or, for CLOSE, the silent end) is read.  Statuses above 399 must carry an error body, and
must end the connection where framing is lost.  After every case the server still answers.
"""

import json
import os
import pathlib
import signal
import socket
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = ROOT / os.environ.get("DAKD_BUILD", "build")


@pytest.fixture(scope="module")
def port():
    argv = [BUILD / "tests/tool_httpd", "--body-max", "65536", "--header-timeout-ms", "1000"]
    server = subprocess.Popen(argv, stdout=subprocess.PIPE)
    yield int(server.stdout.readline().split()[1])
    server.send_signal(signal.SIGTERM)
    assert server.wait(30) == 0


def exchange(port, request, pieces=1):
    """Sends the request, reads until the server closes or one response is whole; (status, headers, body, closed)."""
    with socket.create_connection(("127.0.0.1", port), 20) as s:
        try:
            size = max(1, -(-len(request) // pieces))
            for at in range(0, len(request), size):
                s.sendall(request[at : at + size])
        except ConnectionError:
            pass  # refused before the end of it: the response is still to be read
        data, closed = b"", False
        while not whole(data):
            piece = s.recv(65536)
            if not piece:
                closed = True
                break
            data += piece
        if data and not closed and b"\r\nConnection: close\r\n" in data:
            closed = s.recv(1) == b""
    if not data:
        return None, {}, b"", closed
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in lines[1:])}
    return int(lines[0].split()[1]), headers, body, closed


def whole(data):
    head, blank, body = data.partition(b"\r\n\r\n")
    if not blank:
        return False
    if head.startswith(b"HTTP/1.1 204"):
        return True
    for line in head.split(b"\r\n"):
        if line.lower().startswith(b"content-length:"):
            return len(body) >= int(line.split(b":")[1])
    return False


def get(line=b"GET /echo HTTP/1.1", *headers, host=b"Host: h"):
    lines = [line] + ([host] if host is not None else []) + list(headers)
    return b"\r\n".join(lines) + b"\r\n\r\n"


def post(*headers, body=b"", host=b"Host: h"):
    return get(b"POST /echo HTTP/1.1", *headers, host=host) + body


def chunks(body):
    return post(b"Transfer-Encoding: chunked", body=body)


CL5 = b"Content-Length: 5"
TE = b"Transfer-Encoding: chunked"
CASES = [
    # request line
    ("no version", b"GET /echo\r\nHost: h\r\n\r\n", 400),
    ("http/0.9", b"GET /echo\r\n\r\n", 400),
    ("empty method", b" /echo HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    ("two spaces before target", get(b"GET  /echo HTTP/1.1"), 400),
    ("two spaces before version", get(b"GET /echo  HTTP/1.1"), 400),
    ("tab as separator", get(b"GET\t/echo HTTP/1.1"), 400),
    ("tab before version", get(b"GET /echo\tHTTP/1.1"), 400),
    ("space in target", get(b"GET /ec ho HTTP/1.1"), 400),
    ("trailing space", get(b"GET /echo HTTP/1.1 "), 400),
    ("leading space", get(b" GET /echo HTTP/1.1"), 400),
    ("lower-case protocol", get(b"GET /echo http/1.1"), 400),
    ("wrong protocol", get(b"GET /echo HTTQ/1.1"), 400),
    ("icy protocol", get(b"SOURCE /echo ICE/1.0"), 400),
    ("rtsp protocol", get(b"DESCRIBE /echo RTSP/1.0"), 400),
    ("no digits in version", get(b"GET /echo HTTP/x.y"), 400),
    ("long minor", get(b"GET /echo HTTP/1.11"), 400),
    ("long major", get(b"GET /echo HTTP/11.1"), 400),
    ("no minor", get(b"GET /echo HTTP/1"), 400),
    ("http/1.2", get(b"GET /echo HTTP/1.2"), 505),
    ("http/2.0", get(b"GET /echo HTTP/2.0"), 505),
    ("http/0.9 spelled", get(b"GET /echo HTTP/0.9"), 505),
    ("http/3.0", get(b"GET /echo HTTP/3.0"), 505),
    ("h2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    ("unknown method", get(b"BREW /echo HTTP/1.1"), 501),
    ("lower-case method", get(b"get /echo HTTP/1.1"), 501),
    ("method with a suffix", get(b"GETX /echo HTTP/1.1"), 501),
    ("method with a paren", get(b"GE(T /echo HTTP/1.1"), 400),
    ("method with a NUL", get(b"GE\0T /echo HTTP/1.1"), 400),
    ("method with a high byte", get(b"G\xc9T /echo HTTP/1.1"), 400),
    ("connect", get(b"CONNECT h:80 HTTP/1.1"), 405),
    ("connect to a path", get(b"CONNECT /echo HTTP/1.1"), (400, 405)),
    ("trace", get(b"TRACE /echo HTTP/1.1"), 405),
    ("bare LF line ends", b"GET /echo HTTP/1.1\nHost: h\n\n", 400),
    ("bare LF after the request line", b"GET /echo HTTP/1.1\nHost: h\r\n\r\n", 400),
    ("bare CR after the request line", b"GET /echo HTTP/1.1\rHost: h\r\n\r\n", 400),
    ("CR CR LF", b"GET /echo HTTP/1.1\r\r\nHost: h\r\n\r\n", 400),
    ("bare LF before the request", b"\n" + get(), 400),
    ("tls hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64), 400),
    ("binary", bytes(range(256)), 400),
    ("nul bytes", bytes(64), 400),
    ("json first", b'{"a":1}\r\n\r\n', 400),
    # target
    ("relative target", get(b"GET echo HTTP/1.1"), 400),
    ("star with get", get(b"GET * HTTP/1.1"), 400),
    ("fragment", get(b"GET /echo#x HTTP/1.1"), 400),
    ("cut escape", get(b"GET /echo% HTTP/1.1"), 400),
    ("short escape", get(b"GET /echo%4 HTTP/1.1"), 400),
    ("escape not hex", get(b"GET /echo%4g HTTP/1.1"), 400),
    ("escaped NUL", get(b"GET /echo%00 HTTP/1.1"), 400),
    ("escaped CR LF", get(b"GET /echo%0d%0a HTTP/1.1"), 400),
    ("escaped DEL", get(b"GET /echo%7f HTTP/1.1"), 400),
    ("escaped invalid UTF-8", get(b"GET /%ff HTTP/1.1"), 400),
    ("escaped overlong UTF-8", get(b"GET /%c0%af HTTP/1.1"), 400),
    ("escaped surrogate", get(b"GET /%ed%a0%80 HTTP/1.1"), 400),
    ("query with a cut escape", get(b"GET /echo?a=%1 HTTP/1.1"), 400),
    ("query name with a cut escape", get(b"GET /echo?%=1 HTTP/1.1"), 400),
    ("query with an escaped NUL", get(b"GET /echo?a=%00 HTTP/1.1"), 400),
    ("query with invalid UTF-8", get(b"GET /echo?a=%80 HTTP/1.1"), 400),
    ("too many parameters", get(b"GET /echo?" + b"&".join(b"a=1" for _ in range(33)) + b" HTTP/1.1"), 400),
    ("raw high byte in target", get(b"GET /\xc3\xa9 HTTP/1.1"), 400),
    ("raw control in target", get(b"GET /ec\x01ho HTTP/1.1"), 400),
    ("raw DEL in target", get(b"GET /ec\x7fho HTTP/1.1"), 400),
    ("userinfo in target", get(b"GET http://u@h/echo HTTP/1.1"), 400),
    ("other scheme", get(b"GET ftp://h/echo HTTP/1.1"), 400),
    ("no authority", get(b"GET http:///echo HTTP/1.1"), 400),
    ("scheme alone", get(b"GET http:// HTTP/1.1"), 400),
    ("authority form with get", get(b"GET h:80 HTTP/1.1"), 400),
    ("long target", get(b"GET /" + b"a" * 20000 + b" HTTP/1.1"), 414),
    ("endless target", b"GET /" + b"a" * 40000, 414),
    ("endless method", b"A" * 40000, 414),
    # header lines
    ("no host", get(host=None), 400),
    ("two hosts", get(b"GET /echo HTTP/1.1", b"Host: h"), 400),
    ("two hosts, other case", get(b"GET /echo HTTP/1.1", b"hOST: other"), 400),
    ("two hosts on 1.0", get(b"GET /echo HTTP/1.0", b"Host: x"), 400),
    ("host list", get(host=b"Host: a, b"), 400),
    ("host with a space", get(host=b"Host: a b"), 400),
    ("host with a slash", get(host=b"Host: a/b"), 400),
    ("host with userinfo", get(host=b"Host: u@h"), 400),
    ("space before the colon", get(b"GET /echo HTTP/1.1", b"X : y"), 400),
    ("tab before the colon", get(b"GET /echo HTTP/1.1", b"X\t: y"), 400),
    ("space before the name", get(b"GET /echo HTTP/1.1", b" X: y"), 400),
    ("space before the first name", get(host=b" Host: h"), 400),
    ("space in the name", get(b"GET /echo HTTP/1.1", b"X Y: z"), 400),
    ("no colon", get(b"GET /echo HTTP/1.1", b"Xyz"), 400),
    ("empty name", get(b"GET /echo HTTP/1.1", b": y"), 400),
    ("name with a paren", get(b"GET /echo HTTP/1.1", b"X(: y"), 400),
    ("name with a slash", get(b"GET /echo HTTP/1.1", b"X/Y: y"), 400),
    ("name with a high byte", get(b"GET /echo HTTP/1.1", b"X\xe9: y"), 400),
    ("name with a NUL", get(b"GET /echo HTTP/1.1", b"X\0: y"), 400),
    ("folded value", get(b"GET /echo HTTP/1.1", b"X: a", b" b"), 400),
    ("folded with a tab", get(b"GET /echo HTTP/1.1", b"X: a", b"\tb"), 400),
    ("folded transfer coding", post(b"Transfer-Encoding:", b" chunked", body=b"0\r\n\r\n"), 400),
    ("folded content length", post(b"Content-Length: 1", b" 0", body=b"0123456789"), 400),
    ("value with a NUL", get(b"GET /echo HTTP/1.1", b"X: a\0b"), 400),
    ("value with a bell", get(b"GET /echo HTTP/1.1", b"X: a\x07b"), 400),
    ("value with a DEL", get(b"GET /echo HTTP/1.1", b"X: a\x7fb"), 400),
    ("value with a bare CR", get(b"GET /echo HTTP/1.1", b"X: a\rb"), 400),
    ("value with a bare LF", get(b"GET /echo HTTP/1.1", b"X: a\nY: b"), 400),
    ("header hidden behind a bare CR", get(b"GET /echo HTTP/1.1", b"X: a\rContent-Length: 5"), 400),
    ("blank line of LF", b"GET /echo HTTP/1.1\r\nHost: h\r\n\n", 400),
    ("blank line of CR", b"GET /echo HTTP/1.1\r\nHost: h\r\n\r\r\n", 400),
    ("large header", get(b"GET /echo HTTP/1.1", b"X: " + b"y" * 20000), 431),
    ("endless name", b"GET /echo HTTP/1.1\r\n" + b"x" * 40000, 431),
    ("many headers", get(b"GET /echo HTTP/1.1", *[b"X: y"] * 200), 431),
    # framing
    ("length and coding", post(CL5, TE, body=b"0\r\n\r\n"), 400),
    ("coding and length", post(TE, CL5, body=b"0\r\n\r\n"), 400),
    ("two equal lengths", post(CL5, CL5, body=b"hello"), 400),
    ("two unequal lengths", post(CL5, b"Content-Length: 6", body=b"hello!"), 400),
    ("length list", post(b"Content-Length: 5, 5", body=b"hello"), 400),
    ("negative length", post(b"Content-Length: -5", body=b"hello"), 400),
    ("signed length", post(b"Content-Length: +5", body=b"hello"), 400),
    ("hex length", post(b"Content-Length: 0x5", body=b"hello"), 400),
    ("fraction", post(b"Content-Length: 5.0", body=b"hello"), 400),
    ("exponent", post(b"Content-Length: 1e1", body=b"hello"), 400),
    ("spaced length", post(b"Content-Length: 5 5", body=b"hello"), 400),
    ("empty length", post(b"Content-Length:", body=b"hello"), 400),
    ("length not a number", post(b"Content-Length: five", body=b"hello"), 400),
    ("length overflow", post(b"Content-Length: 18446744073709551621", body=b"hello"), (400, 413)),
    ("length wraps 64 bits", post(b"Content-Length: 99999999999999999999999", body=b"x"), (400, 413)),
    ("length over the limit", post(b"Content-Length: 65537"), 413),
    ("length far over the limit", post(b"Content-Length: 9223372036854775807"), 413),
    ("coding on 1.0", get(b"POST /echo HTTP/1.0", TE) + b"0\r\n\r\n", 400),
    ("gzip coding", post(b"Transfer-Encoding: gzip", body=b"x"), 501),
    ("gzip, chunked", post(b"Transfer-Encoding: gzip, chunked", body=b"0\r\n\r\n"), 501),
    ("chunked, gzip", post(b"Transfer-Encoding: chunked, gzip", body=b"0\r\n\r\n"), 400),
    ("chunked, chunked", post(b"Transfer-Encoding: chunked, chunked", body=b"0\r\n\r\n"), 400),
    ("identity coding", post(b"Transfer-Encoding: identity", body=b"x"), 501),
    ("xchunked", post(b"Transfer-Encoding: xchunked", body=b"0\r\n\r\n"), 501),
    ("quoted chunked", post(b'Transfer-Encoding: "chunked"', body=b"0\r\n\r\n"), 501),
    ("chunked with a parameter", post(b"Transfer-Encoding: chunked;a=b", body=b"0\r\n\r\n"), 501),
    ("vertical tab before chunked", post(b"Transfer-Encoding: \x0bchunked", body=b"0\r\n\r\n"), 400),
    ("empty coding", post(b"Transfer-Encoding:", body=b"0\r\n\r\n"), (400, 501)),
    ("two codings", post(TE, TE, body=b"0\r\n\r\n"), 400),
    ("two codings, one identity", post(TE, b"Transfer-Encoding: identity", body=b"0\r\n\r\n"), 400),
    ("space before the coding's colon", post(b"Transfer-Encoding : chunked", body=b"0\r\n\r\n"), 400),
    ("gzip body", post(CL5, b"Content-Encoding: gzip", body=b"hello"), 415),
    ("unknown expectation", post(CL5, b"Expect: a-pony", body=b"hello"), 417),
    ("two expectations", post(CL5, b"Expect: 100-continue", b"Expect: 100-continue", body=b"hello"), 417),
    # chunks
    ("chunk size not hex", chunks(b"g\r\nx\r\n0\r\n\r\n"), 400),
    ("empty chunk size", chunks(b"\r\nx\r\n0\r\n\r\n"), 400),
    ("signed chunk size", chunks(b"+1\r\nx\r\n0\r\n\r\n"), 400),
    ("negative chunk size", chunks(b"-1\r\nx\r\n0\r\n\r\n"), 400),
    ("0x chunk size", chunks(b"0x1\r\nx\r\n0\r\n\r\n"), 400),
    ("space before the chunk size", chunks(b" 1\r\nx\r\n0\r\n\r\n"), 400),
    ("chunk size overflow", chunks(b"1" + b"0" * 16 + b"\r\nx"), (400, 413)),
    ("huge chunk size", chunks(b"7fffffffffffffff\r\nx"), 413),
    ("chunk over the limit", chunks(b"10001\r\n"), 413),
    ("chunks over the limit together", chunks(b"8000\r\n" + b"x" * 0x8000 + b"\r\n8001\r\n"), 413),
    ("bare LF after the chunk size", chunks(b"1\nx\r\n0\r\n\r\n"), 400),
    ("bare CR after the chunk size", chunks(b"1\rx\r\n0\r\n\r\n"), 400),
    ("chunk longer than its size", chunks(b"1\r\nxy\r\n0\r\n\r\n"), 400),
    ("chunk without its end", chunks(b"1\r\nx0\r\n\r\n"), 400),
    ("bare LF after the chunk", chunks(b"1\r\nx\n0\r\n\r\n"), 400),
    ("bare LF after the last size", chunks(b"0\n\r\n"), 400),
    ("bare LF at the end", chunks(b"0\r\n\n"), 400),
    ("control in an extension", chunks(b"1;a=\x01\r\nx\r\n0\r\n\r\n"), 400),
    ("LF in an extension", chunks(b"1;a\nb\r\nx\r\n0\r\n\r\n"), 400),
    ("endless extension", chunks(b"1;" + b"a" * 60000), 400),
    ("endless zeros", chunks(b"0" * 60000 + b"1\r\nx\r\n0\r\n\r\n"), 400),
    ("trailer without a colon", chunks(b"0\r\nabc\r\n\r\n"), 400),
    ("folded trailer", chunks(b"0\r\nA: b\r\n c\r\n\r\n"), 400),
    ("trailer with a bare CR", chunks(b"0\r\nA: b\rC: d\r\n\r\n"), 400),
    ("trailer with a NUL", chunks(b"0\r\nA: \0\r\n\r\n"), 400),
    ("many trailers", chunks(b"0\r\n" + b"A: b\r\n" * 200 + b"\r\n"), 400),
    ("endless trailer", chunks(b"0\r\nA: " + b"b" * 60000), 400),
    # incomplete: answered when the time is over
    ("head cut", b"GET /echo HTTP/1.1\r\nHost: h\r\n", 408),
    ("body cut", post(CL5, body=b"hell"), 408),
    ("chunk cut", chunks(b"5\r\nhel"), 408),
    ("trailers cut", chunks(b"0\r\n"), 408),
    ("silence", b"", None),
]

# Unusual and right.
GOOD = [
    ("plain", get()),
    ("leading blank lines", b"\r\n\r\n" + get()),
    ("empty host", get(host=b"Host:")),
    ("no space after the colon", get(host=b"Host:h")),
    ("blanks around the value", get(host=b"Host: \t h \t ")),
    ("high bytes in a value", get(b"GET /echo HTTP/1.1", b"X: \xc3\xa9")),
    ("empty value", get(b"GET /echo HTTP/1.1", b"X:")),
    ("http/1.0 without a host", get(b"GET /echo HTTP/1.0", host=None)),
    ("absolute form", get(b"GET http://other/echo HTTP/1.1")),
    ("odd names", get(b"GET /echo HTTP/1.1", b"!#$%&'*+-.^_`|~09az: y")),
    ("zero length", post(b"Content-Length: 0")),
    ("leading zeros in the length", post(b"Content-Length: 0005", body=b"hello")),
    ("body with get", get(b"GET /echo HTTP/1.1", CL5) + b"hello"),
    ("upper-case coding", post(b"Transfer-Encoding: CHUNKED", body=b"5\r\nhello\r\n0\r\n\r\n")),
    ("chunk extension", chunks(b'5;a;b="c;d"\r\nhello\r\n0\r\n\r\n')),
    ("upper and lower hex", chunks(b"A\r\n0123456789\r\na\r\n0123456789\r\n0\r\n\r\n")),
    ("trailers", chunks(b"1\r\nx\r\n0\r\nA: b\r\nC: d\r\n\r\n")),
    ("upgrade offered", get(b"GET /echo HTTP/1.1", b"Connection: Upgrade", b"Upgrade: h2c")),
    ("identity body", post(CL5, b"Content-Encoding: identity", body=b"hello")),
]


def test_there_are_enough_cases():
    assert len(CASES) >= 120 and len({name for name, *_ in CASES}) == len(CASES)


@pytest.mark.parametrize("name,request_bytes,expected", CASES, ids=[c[0] for c in CASES])
def test_malformed(port, name, request_bytes, expected):
    for pieces in (1, 7) if len(request_bytes) < 1000 and expected not in (408, None) else (1,):
        status, headers, body, closed = exchange(port, request_bytes, pieces)
        assert status == expected or isinstance(expected, tuple) and status in expected
        if status is None:
            assert closed
            continue
        error = json.loads(body)["error"]
        assert error["message"] and error["type"] and error["code"] and error["param"] is None
        if status != 405 or name.startswith("connect"):
            assert headers["connection"] == "close" and closed
    alive(port)


@pytest.mark.parametrize("name,request_bytes", GOOD, ids=[c[0] for c in GOOD])
def test_unusual_but_right(port, name, request_bytes):
    for pieces in (1, 7):
        assert exchange(port, request_bytes, pieces)[0] == 200


def alive(port):
    status, _, body, _ = exchange(port, get(b"GET /stats HTTP/1.1"))
    assert status == 200
    stats = json.loads(body)
    assert stats["active"] == 1 and stats["held"] == 0
