"""The handler's downloads: public addresses only, also after redirects; bounded in size and in time."""

import importlib.util
import ipaddress
import socket
import ssl
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

HANDLER = Path(__file__).resolve().parents[2] / "hub_cards" / "handler.py"
specification = importlib.util.spec_from_file_location("handler", HANDLER)
handler = importlib.util.module_from_spec(specification)
specification.loader.exec_module(handler)

REFUSED = [
    "0.0.0.0", "10.1.2.3", "127.0.0.1", "127.9.9.9", "169.254.169.254", "172.16.0.1",
    "192.168.1.1", "100.64.0.1", "192.0.2.1", "198.18.0.1", "224.0.0.1", "240.0.0.1",
    "255.255.255.255", "::", "::1", "fe80::1", "fc00::1", "ff02::1",
    "2001:db8::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::",
    "2002:a00:1::", "fe80::1%eth0",
]  # fmt: skip


@pytest.mark.parametrize("address", REFUSED)
def test_addresses_that_are_not_public_are_refused(address):
    assert not handler.is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "64:ff9b::808:808", "::ffff:8.8.8.8"])
def test_public_addresses_pass(address):
    assert handler.is_public(address)


class Pages(BaseHTTPRequestHandler):
    """/ok answers, /to?URL redirects, /loop for ever, /drip and /huge never end, /cut promises more than it sends."""

    def do_GET(self):
        path, _, query = self.path.partition("?")
        if path in ("/to", "/loop"):
            self.send_response(302)
            self.send_header("Location", query or "/loop")
            return self.end_headers()
        self.send_response(404 if path == "/missing" else 200)
        if path in ("/ok", "/cut"):
            self.send_header("Content-Length", "5" if path == "/ok" else "500")
        self.end_headers()
        if path in ("/ok", "/cut"):
            self.wfile.write(b"video")
        while path in ("/drip", "/huge"):
            self.wfile.write(b"." if path == "/drip" else b"." * 65536)
            self.wfile.flush()
            time.sleep(0.05 if path == "/drip" else 0)

    def log_message(self, *arguments):
        """Quiet."""


class QuietServer(ThreadingHTTPServer):
    """A client that hangs up is what these tests are about."""

    def handle_error(self, request, address):
        """Quiet."""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """An https server on 127.0.0.1 with a certificate made for this run: (address, client context)."""
    folder = tmp_path_factory.mktemp("tls")
    key, certificate = str(folder / "key.pem"), str(folder / "certificate.pem")
    make = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost"
    subprocess.run([*make.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True)
    server = QuietServer(("127.0.0.1", 0), Pages)
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(certificate, key)
    server.socket = serving.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"https://localhost:{server.server_port}", ssl.create_default_context(cafile=certificate)
    server.shutdown()
    server.server_close()


def get(site, path, **options):
    """Download from the test server, whose loopback address is allowed here, and only here."""
    address, context = site
    arguments = {"max_bytes": 10**6, "seconds": 120, "allow": is_loopback, "context": context, **options}
    return handler.download(address + path, **arguments)


def is_loopback(address):
    return ipaddress.ip_address(address).is_loopback


def refusal(site, path, **options):
    with pytest.raises(handler.RequestError) as caught:
        get(site, path, **options)
    return caught.value


def test_downloads_and_follows_redirects(site):
    assert get(site, "/ok") == b"video"
    assert get(site, "/to?/ok") == b"video"
    assert get(site, f"/to?{site[0]}/ok") == b"video"


BAD_TARGETS = ["http://localhost/ok", "file:///etc/passwd", "https://user@localhost/ok", "https://169.254.169.254/",
               "https://localhost:99999/ok", "https://[::1/ok", "//169.254.169.254/ok"]  # fmt: skip


@pytest.mark.parametrize("target", BAD_TARGETS)
def test_redirects_are_checked_like_the_first_address(site, target):
    assert refusal(site, f"/to?{target}").code == "address_refused"


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.1", "127.1", "2130706433", "0x7f000001", "[::1]", "[::ffff:7f00:1]", "0"]
)
def test_spellings_of_loopback_are_refused(site, host):
    port = site[0].rpartition(":")[2]
    with pytest.raises(handler.RequestError) as caught:
        handler.download(f"https://{host}:{port}/ok", 100, 5, context=site[1])
    assert caught.value.code in ("address_refused", "download_failed")  # "does not resolve" is a refusal as well


def test_one_private_address_among_public_ones_refuses_the_name(site, monkeypatch):
    answers = [(2, 1, 6, "", (address, 443)) for address in ("8.8.8.8", "10.0.0.7")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: answers)
    monkeypatch.setattr(socket, "create_connection", lambda *a, **k: pytest.fail("connected before the check"))
    with pytest.raises(handler.RequestError, match=r"10\.0\.0\.7"):
        handler.download("https://mixed.example/clip.mp4", 100, 5)


def test_a_rebinding_name_is_looked_up_once_and_the_checked_address_is_used(site, monkeypatch):
    """The name's second answer would be the metadata service; the connection goes to the first, literal, address."""
    answers = iter([[(2, 1, 6, "", ("8.8.8.8", 443))], [(2, 1, 6, "", ("169.254.169.254", 443))]])
    reached = []

    def connect(address, timeout):
        reached.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: next(answers))
    monkeypatch.setattr(socket, "create_connection", connect)
    with pytest.raises(handler.RequestError, match="ConnectionRefusedError"):
        handler.download("https://rebinding.example/clip.mp4", 100, 5)
    assert reached == [("8.8.8.8", 443)]


def test_the_certificate_is_checked_against_the_name(site):
    assert refusal(site, "/ok", context=ssl.create_default_context()).code == "download_failed"


def test_size_time_and_redirects_are_bounded(site):
    assert refusal(site, "/huge", max_bytes=200_000).code == "too_large"
    assert refusal(site, "/drip", seconds=3).code == "too_slow"  # enough to connect on a busy machine
    # the dripping server itself never ends: that this line is reached is the test
    assert "redirects" in str(refusal(site, "/loop"))


@pytest.mark.parametrize("path", ["/missing?ök", "/missing?a b", "/missing?%zz", "/missing?a\r\nX-Injected: 1"])
def test_odd_characters_are_escaped_and_never_a_crash(site, path):
    """The handler turns anything but a RequestError into "internal": an odd address must not look like our fault."""
    assert "answered 404" in str(refusal(site, path))


def test_failures_are_named(site):
    assert "404" in str(refusal(site, "/missing"))
    assert "495 bytes early" in str(refusal(site, "/cut"))
