"""As much of RFC 6455 as a Chatring client needs, on a socket that never blocks."""

import base64
import hashlib
import os
import select
import socket
from urllib.parse import urlsplit

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
MESSAGE_BYTES_MAX = 262_144
HEAD_BYTES_MAX = 8_192
ACCEPT_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class HandshakeFailed(Exception):
    """The server answered the upgrade with something else; `status` is its HTTP status."""

    def __init__(self, status, text):
        super().__init__(f"HTTP {status}: {text}")
        self.status = status


class Closed(Exception):
    """The connection has ended. `code` is the close code, 1006 if there was none."""

    def __init__(self, code, reason=""):
        super().__init__(f"closed with {code} {reason}".rstrip())
        self.code = code


class WebSocket:
    """A client's end. `send` only queues; `pump` moves bytes and gives whole messages."""

    def __init__(self, url, subprotocols, timeout_s=5.0):
        parts = urlsplit(url)
        self.socket = socket.create_connection((parts.hostname, parts.port or 80), timeout_s)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        key = base64.b64encode(os.urandom(16))
        self.socket.sendall(
            f"GET {parts.path or '/'} HTTP/1.1\r\nHost: {parts.netloc}\r\n"
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Key: {key.decode()}\r\n"
            f"Sec-WebSocket-Protocol: {', '.join(subprotocols)}\r\n\r\n".encode()
        )
        head, self.received = self._read_head()
        lines = head.decode("latin-1").split("\r\n")
        status = int(lines[0].split(" ")[1])
        if status != 101:
            self.socket.close()
            raise HandshakeFailed(status, lines[0])
        fields = {}
        for line in lines[1:]:
            name, _, value = line.partition(":")
            fields[name.strip().lower()] = value.strip()
        accept = base64.b64encode(hashlib.sha1(key + ACCEPT_GUID).digest()).decode()
        self.subprotocol = fields.get("sec-websocket-protocol")
        if fields.get("sec-websocket-accept") != accept or self.subprotocol not in subprotocols:
            self.socket.close()
            raise HandshakeFailed(status, "not the WebSocket that was asked for")
        self.socket.setblocking(False)
        self.unsent = bytearray()
        self.message = None  # fragments so far
        self.ended = None  # what the next `pump` raises

    def fileno(self):
        """For `select`."""
        return self.socket.fileno()

    def send(self, payload, opcode):
        """Queues one message, masked as a client must."""
        head = bytearray([0x80 | opcode])
        if len(payload) < 126:
            head.append(0x80 | len(payload))
        elif len(payload) < 1 << 16:
            head.append(0x80 | 126)
            head += len(payload).to_bytes(2, "big")
        else:
            head.append(0x80 | 127)
            head += len(payload).to_bytes(8, "big")
        mask = os.urandom(4)
        self.unsent += head + mask + _masked(payload, mask)

    def pump(self, timeout_s):
        """Waits up to `timeout_s`, moves bytes both ways, gives the messages that are whole.

        Raises `Closed` after the last message."""
        if self.ended:
            self._flush()
            self.abort()
            raise self.ended
        try:
            self._flush()
            writers = [self] if self.unsent else []
            readable, _, _ = select.select([self], writers, [], timeout_s)
            self._flush()
            if readable:
                data = self.socket.recv(1 << 16)
                if not data:
                    raise Closed(1006)
                self.received += data
        except BlockingIOError:
            pass
        except OSError:
            raise Closed(1006) from None
        messages = []
        try:
            while (frame := self._take_frame()) is not None:
                self._handle(*frame, messages)
        except Closed as closed:
            self.ended = closed  # the next call says it
        return messages

    def close(self, code=1000):
        """Says goodbye; does not wait for the answer."""
        try:
            self.send(code.to_bytes(2, "big"), CLOSE)
            self._flush()
        except OSError:
            pass
        self.abort()

    def abort(self):
        """Cuts the connection without a word."""
        self.socket.close()

    def _read_head(self):
        data = b""
        while b"\r\n\r\n" not in data:
            chunk = self.socket.recv(4096)
            if not chunk or len(data) > HEAD_BYTES_MAX:
                self.socket.close()
                raise HandshakeFailed(0, "no answer")
            data += chunk
        head, _, rest = data.partition(b"\r\n\r\n")
        return head, bytearray(rest)

    def _flush(self):
        try:
            while self.unsent:
                del self.unsent[: self.socket.send(self.unsent)]
        except BlockingIOError:
            pass
        except OSError:
            if not self.ended:
                raise

    def _take_frame(self):
        data = self.received
        if len(data) < 2:
            return None
        length, start = data[1] & 0x7F, 2
        if length >= 126:
            start = 4 if length == 126 else 10
            length = int.from_bytes(data[2:start], "big")
        if data[0] & 0x70 or data[1] & 0x80 or length > MESSAGE_BYTES_MAX:
            raise Closed(1002, "the server broke RFC 6455")
        if len(data) < start + length:
            return None
        payload = bytes(data[start : start + length])
        fin, opcode = data[0] & 0x80, data[0] & 0x0F
        del data[: start + length]
        return fin, opcode, payload

    def _handle(self, fin, opcode, payload, messages):
        if opcode == PING:
            self.send(payload, PONG)
        elif opcode == CLOSE:
            code = int.from_bytes(payload[:2], "big") if len(payload) >= 2 else 1005
            self.send(payload[:2], CLOSE)
            raise Closed(code, payload[2:].decode("utf-8", "replace"))
        elif opcode in (TEXT, BINARY, CONTINUATION):
            if opcode != CONTINUATION:
                self.message = bytearray()
            self.message += payload
            if len(self.message) > MESSAGE_BYTES_MAX:
                raise Closed(1009)
            if fin:
                messages.append(bytes(self.message))
                self.message = None


def _masked(payload, mask):
    size = len(payload)
    pad = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(payload, "big") ^ int.from_bytes(pad, "big")).to_bytes(size, "big")
