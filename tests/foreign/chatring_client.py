"""A client of Chatring in plain Python, written from docs/protocol.md alone, as an example.

    store = Store()                       # what a real client keeps on disk
    client = Client(url, lambda: token, store)
    client.connect()
    request = client.open(subject="bob")
    drive([client], lambda: request in client.answers, 5)
    cid = client.answers[request]["head"]["cid"]
    client.send(cid, b"hello, bob")
    drive([client], lambda: not store.outbox, 5)

One thread, no callbacks: `step` moves what there is to move and changes `store`; look there.
Numbers in the remarks are sections of the document.
"""

import os
import random
import select
import time
from dataclasses import dataclass, field

from frames import FRAME_BYTES_MAX, Binary, ProtocolError
from websocket import BINARY, TEXT, Closed, HandshakeFailed, WebSocket

ACK_PUSHES = 64
ACK_S = 1.0
BODY_BYTES_MAX = 65_536
HELLO_S = 10.0
PAUSE_MAX_S = 30.0
BUSY_DEFAULT_MS = 200

OUT_OF_ORDER = 44


# ---- what is kept between connections --------------------------------------------------------


@dataclass
class Message:
    """One message. A `text` push tells neither cmid, device nor ordinal: they stay None."""

    seq: int
    sender: int
    time_ms: int
    kind: int
    body: bytes
    cmid: str | None = None
    device: int | None = None
    ordinal: int | None = None


@dataclass
class Channel:
    """What is known of a channel: its head, its messages by seq, and which of those are stale."""

    head: dict | None = None
    newest: int = 0
    messages: dict[int, Message] = field(default_factory=dict)
    stale: set[int] = field(default_factory=set)

    def missing(self, first, last):
        """Ranges within first..=last whose messages are not held, or stale."""
        ranges, start = [], None
        for seq in range(first, last + 2):
            wanted = seq <= last and (seq not in self.messages or seq in self.stale)
            if wanted and start is None:
                start = seq
            elif not wanted and start is not None:
                ranges.append((start, seq - 1))
                start = None
        return ranges


@dataclass
class Draft:
    """A message in the outbox. Until it is answered it is sent again, always the same."""

    cid: str
    cmid: str
    base: int
    kind: int
    body: bytes


@dataclass
class Store:
    """What a client keeps; a real one has it on disk. Per device, not per user."""

    installation: str = field(default_factory=lambda: os.urandom(16).hex())
    history: str | None = None
    cursor: bytes = b""
    channels: dict[str, Channel] = field(default_factory=dict)
    outbox: list[Draft] = field(default_factory=list)
    marks: dict[str, tuple[int, int]] = field(default_factory=dict)  # cid -> read, received

    def channel(self, cid):
        return self.channels.setdefault(cid, Channel())


# ---- the session -----------------------------------------------------------------------------


class Client:
    """A session that comes back. `token` is called for a fresh token at each attempt."""

    def __init__(self, url, token, store, codec=Binary, window=32):
        self.url, self.token, self.store = url, token, store
        self.codec_class, self.window = codec, window
        self.auto_ack = True  # tests withhold acks
        self.refused = []  # (draft, failure): what the user must be told
        self.errors = []  # failures of connections
        self.close_codes = []
        self.attempts = 0  # without a welcome since
        self.connect_at = None  # when to connect again; None: not by itself
        self.websocket = None
        self._reset()

    def _reset(self):
        """Everything that belongs to one connection."""
        self.welcome = None
        self.request = 0
        self.answers = {}  # request -> frame, of open, who, refresh, sign_out, range
        self.pushes = self.acked = 0
        self.ack_due = self.ping_due = self.silent_at = None
        self.syncing = None  # request of the sync that runs
        self.sync_at = None  # when to ask again for one that was refused
        self.synced = 0  # how many are complete
        self.behind = 0  # how often we were
        self.drain = None  # when we leave
        self.open_sends = {}  # request -> draft, ascending
        self.paused = {}  # cid -> time: sends again when all open ones are answered, and not before
        self.ranges = {}  # request -> (cid, from, to)

    # Connection (1, 5, 11).

    def connect(self):
        """Opens a connection; `hello` may go out before anything is heard."""
        self._reset()
        self.connect_at = None
        self.attempts += 1
        self.codec = self.codec_class()
        try:
            self.websocket = WebSocket(self.url, [self.codec.subprotocol])
        except (OSError, HandshakeFailed):
            self.connect_at = time.monotonic() + self._pause()
            return
        self.syncing = 0
        self.silent_at = time.monotonic() + HELLO_S
        self._say("hello", token=self.token(), installation=self.store.installation,
                  cursor=self.store.cursor, frame_bytes_max=FRAME_BYTES_MAX)

    def disconnect(self, code=1000):
        """Ends the connection for good, until `connect`."""
        self.connect_at = None
        if self.websocket:
            self.websocket.close(code)
            self.websocket = None

    def cut(self):
        """Loses the connection, as a network would, and comes back at once."""
        self.websocket.abort()
        self.websocket = None
        self.connect_at = time.monotonic()

    def ready(self):
        """Signed in and in sync."""
        return bool(self.welcome) and self.syncing is None and self.sync_at is None

    def step(self, timeout_s=0.0):
        """Does what is due, and waits up to `timeout_s` for the server."""
        now = time.monotonic()
        if self.websocket is None:
            if self.connect_at is not None and now >= self.connect_at:
                self.connect()
            return
        try:
            self._due(now)
            for message in self.websocket.pump(timeout_s):
                for frame in self.codec.decode(message):
                    getattr(self, "_on_" + frame["type"])(frame)
            self._pump_outbox(now)
        except Closed as closed:
            self._closed(closed.code)
        except ProtocolError:
            self.disconnect(1002)
            raise

    def _due(self, now):
        if now >= self.silent_at:
            self.websocket.abort()
            raise Closed(1006)
        if self.welcome is None:
            return
        if self.drain and now >= self.drain:
            raise self._leave(1001)
        if now >= self.ping_due:
            self.ping()
        if self.sync_at and now >= self.sync_at:
            self.sync()
        if self.auto_ack and self.ack_due and now >= self.ack_due:
            self.ack()

    def _leave(self, code):
        """Ends the connection as if the server had, with a code that says what comes next."""
        self.websocket.close(1000 if code == 1001 else code)
        return Closed(code)

    def _closed(self, code):
        """What to do after a close code (11)."""
        self.websocket = None
        self.close_codes.append(code)
        now = time.monotonic()
        if code == 1001:
            self.connect_at = self.drain or now + random.uniform(0, 5)
        elif code in (4000, 4003, 4008):  # `token` gives a new one
            self.connect_at = now if self.attempts < 2 else now + self._pause()
        elif code in (1006, 1005, 1011, 4001):
            self.connect_at = now + self._pause()
        # Else we are done, have a bug, or were replaced.

    def _pause(self):
        return random.uniform(0.5, 1) * min(PAUSE_MAX_S, 0.1 * 2**self.attempts)

    def _say(self, name, /, **fields):
        data = self.codec.encode({"type": name, **fields})
        self.websocket.send(data, TEXT if self.codec.is_text else BINARY)

    def _ask(self, name, /, **fields):
        self.request += 1
        self._say(name, request=self.request, **fields)
        return self.request

    def _on_welcome(self, frame):
        self.welcome, self.attempts = frame, 0
        if self.store.history != frame["history"]:
            self.store.channels.clear()
            self.store.cursor = b""
            for draft in self.store.outbox:  # what was seen of channels means nothing any more
                draft.base = 0
            self.store.history = frame["history"]
        self._heard()
        self.ping_due = time.monotonic() + 0.8 * frame["heartbeat_ms"] / 1000
        for cid in self.store.marks:  # until a head shows them (10)
            self._say_marks(cid)

    def _heard(self):
        self.silent_at = time.monotonic() + 2.5 * self.welcome["heartbeat_ms"] / 1000

    def _on_error(self, frame):
        self.errors.append(frame["error"])
        self.url = frame["error"].get("moved_to", self.url)

    def _on_drain(self, frame):
        wait_ms = frame["after_ms"] + random.uniform(0, frame["spread_ms"])
        self.drain = time.monotonic() + wait_ms / 1000

    # Requests (6). Each gives a number; the answer appears in `answers`.

    def open(self, subject=None, issuer="", uid=None):
        """Asks for the direct channel with a user."""
        user = {"uid": uid} if uid else {"issuer": issuer, "subject": subject}
        return self._ask("open", **{"with": user})

    def refresh(self, token):
        return self._ask("refresh", token=token)

    def sign_out(self, device=None):
        """Ends the sessions of one device, or all."""
        if device is None:
            return self._ask("sign_out", scope="everywhere")
        return self._ask("sign_out", scope="device", device=device)

    def who(self, cid, members=()):
        return self._ask("who", cid=cid, members=list(members))

    def range(self, cid, first, last, limit=0, descending=False):
        """Reads stored messages into the cache, asking on until all of them came."""
        direction = "descending" if descending else "ascending"
        fields = {"cid": cid, "from": first, "to": last, "limit": limit, "direction": direction}
        request = self._ask("range", **fields)
        self.ranges[request] = (cid, first, last)
        return request

    def _on_opened(self, frame):
        self._take_head(frame["head"])
        self.answers[frame["request"]] = frame

    def _on_done(self, frame):
        self.answers[frame["request"]] = frame

    _on_members = _on_done

    def _on_rows(self, frame):
        page, request = frame["page"], frame["request"]
        cid, first, last = self.ranges.pop(request)
        self._take_page(page)
        self.answers[request] = frame
        if page["gap"]:
            if page["from"] > first:
                self.range(cid, first, page["from"] - 1, descending=True)
            else:
                self.range(cid, page["to"] + 1, last)

    def _on_refused(self, frame):
        request, error = frame["request"], frame["error"]
        self.ranges.pop(request, None)
        draft = self.open_sends.pop(request, None)
        if request == self.syncing:
            self.syncing = None
            pause_ms = error.get("retry_after_ms", BUSY_DEFAULT_MS)
            self.sync_at = time.monotonic() + pause_ms / 1000
        elif draft is None:
            self.answers[request] = frame
        elif error["code"] == OUT_OF_ORDER:
            self._again(draft)
        elif 60 <= error["code"] < 80:
            self._again(draft, error.get("retry_after_ms", BUSY_DEFAULT_MS))
        else:
            self.store.outbox.remove(draft)
            self.refused.append((draft, error))

    # Sending (7).

    def send(self, cid, body, kind=0):
        """Puts a message into the outbox, which survives connections. Gives its cmid.

        What is too long or no text would end the connection: it is not taken."""
        limit = self.welcome["body_bytes_max"] if self.welcome else BODY_BYTES_MAX
        if len(body) > limit:
            raise ValueError(f"a body has at most {limit} bytes")
        if kind == 0:
            body.decode()
        draft = Draft(cid, uuid7(), self.store.channel(cid).newest, kind, body)
        self.store.outbox.append(draft)
        return draft.cmid

    def _pump_outbox(self, now):
        """Sends what waits: per channel in order, each naming the one before if that is open."""
        if not self.welcome or self.drain:
            return
        window = min(self.window, self.welcome["open_sends_max"])
        is_open = {draft.cmid for draft in self.open_sends.values()}
        last = {draft.cid: request for request, draft in self.open_sends.items()}
        for draft in self.store.outbox:
            if len(self.open_sends) >= window:
                break
            cid = draft.cid
            if draft.cmid in is_open:
                continue
            if cid in self.paused:
                if cid in last or now < self.paused[cid]:
                    continue
                del self.paused[cid]
            request = self._ask("send", cid=cid, cmid=draft.cmid, base=draft.base,
                                previous=last.get(cid), kind=draft.kind, body=draft.body)
            self.open_sends[request] = draft
            last[cid] = request

    def _again(self, draft, after_ms=0):
        """Has a draft sent again; its channel stands still until those behind it are answered."""
        self.paused[draft.cid] = time.monotonic() + after_ms / 1000

    def _on_unknown(self, frame):
        self._again(self.open_sends.pop(frame["request"]))

    def _on_continue(self, frame):
        draft = self.open_sends.pop(frame["request"])
        draft.base = frame["checked_to"]
        self._again(draft)

    def _on_sent(self, frame):
        draft = self.open_sends.pop(frame["request"])
        self.store.outbox.remove(draft)
        head = self.store.channel(draft.cid).head
        me = head["me"] if head else 0
        device = self.welcome["device"]
        self._take_message(draft.cid, Message(frame["seq"], me, frame["time_ms"], draft.kind,
                                              draft.body, draft.cmid, device))

    # Pushes, windows, acks (8).

    def ack(self):
        """Says how many pushes are in the store."""
        self._say("ack", pushes=self.pushes)
        self.acked, self.ack_due = self.pushes, None

    def ping(self):
        self._say("ping", pushes=self.pushes if self.auto_ack else self.acked)
        self.ping_due = time.monotonic() + 0.8 * self.welcome["heartbeat_ms"] / 1000

    def sync(self):
        """Pulls everything since the cursor."""
        self.sync_at = None
        self.syncing = self._ask("sync", cursor=self.store.cursor)
        return self.syncing

    def _pushed(self):
        self.pushes += 1
        if self.auto_ack and self.pushes - self.acked >= ACK_PUSHES:
            self.ack()
        elif self.ack_due is None:
            self.ack_due = time.monotonic() + ACK_S

    def _on_text(self, frame):
        self._pushed_message(frame["cid"], Message(frame["seq"], frame["sender"],
                                                   frame["time_ms"], 0, frame["body"]))

    def _on_entry(self, frame):
        self._pushed_message(frame["cid"], Message(**frame["row"]))

    def _pushed_message(self, cid, message):
        channel = self.store.channel(cid)
        before = channel.newest
        self._take_message(cid, message)
        self._pushed()
        if self.syncing is not None:
            return
        if channel.head is None:  # a channel that is new to us: its head comes with a sync
            self.sync()
        elif message.seq > before + 1:
            self.range(cid, before + 1, message.seq - 1)

    def _on_marker(self, frame):
        head = self.store.channel(frame["cid"]).head
        if head:
            for key in ("read", "read_ordinal", "received"):
                head[key] = max(head[key], frame[key])
        self._settle_marks(frame["cid"], frame)
        self._pushed()
        if head is None and self.syncing is None:
            self.sync()

    def _on_pong(self, frame):
        self._heard()
        if frame["pushes"] != self.pushes:  # lost on a stream: somebody has a bug
            raise self._leave(4000)

    def _on_behind(self, frame):
        self.behind += 1
        self.sync()

    # Sync (9).

    def _on_syncing(self, frame):
        self.syncing = frame["request"]
        if frame["cache"] == "replace":
            self.store.channels.clear()

    def _on_head(self, frame):
        self._take_head(frame["head"])

    def _on_page(self, frame):
        page = frame["page"]
        self._take_page(page)
        if page["gap"]:
            channel = self.store.channel(page["cid"])
            channel.stale |= {seq for seq in channel.messages if seq < page["from"]}

    def _on_page_end(self, frame):
        self._say("more", request=frame["request"])

    def _on_synced(self, frame):
        self.store.cursor = frame["cursor"]
        self.synced += 1
        if frame["request"] == self.syncing:
            self.syncing = None

    # The cache (9).

    def load(self, cid, first=1):
        """Reads what is missing or stale from `first` to the head."""
        channel = self.store.channel(cid)
        first = max(first, channel.head["floor"] if channel.head else 1)
        for start, end in channel.missing(first, channel.newest):
            self.range(cid, start, end)

    def _take_message(self, cid, message):
        channel = self.store.channel(cid)
        channel.messages.setdefault(message.seq, message)
        channel.newest = max(channel.newest, message.seq)

    def _take_head(self, head):
        channel = self.store.channel(head["cid"])
        channel.head = head
        channel.newest = max(channel.newest, head["head"])
        if head["rows"] == "stale":
            channel.stale |= {seq for seq in channel.messages if seq <= head["head"]}
        for seq in [seq for seq in channel.messages if seq < head["floor"]]:
            del channel.messages[seq]
            channel.stale.discard(seq)
        self._settle_marks(head["cid"], head)

    def _take_page(self, page):
        channel = self.store.channel(page["cid"])
        for seq in range(page["from"], page["to"] + 1):
            channel.messages.pop(seq, None)
            channel.stale.discard(seq)
        for row in page["rows"]:
            channel.messages[row["seq"]] = Message(**row)
        channel.newest = max(channel.newest, page["to"])

    # Markers (10).

    def mark(self, cid, read=0, received=0):
        """Says how far the user has read, this device received. 0 leaves one as it is."""
        old_read, old_received = self.store.marks.get(cid, (0, 0))
        self.store.marks[cid] = (max(read, old_read), max(received, old_received))
        self._say_marks(cid)

    def _say_marks(self, cid):
        read, received = self.store.marks[cid]
        self._say("mark", cid=cid, read=read, received=received)

    def _settle_marks(self, cid, shown):
        read, received = self.store.marks.get(cid, (None, None))
        if read is not None and shown["read"] >= read and shown["received"] >= received:
            del self.store.marks[cid]


def uuid7():
    """A UUIDv7 (RFC 9562): time, version, randomness."""
    value = int(time.time() * 1000) << 80 | 0x7 << 76 | random.getrandbits(12) << 64
    return f"{value | 0b10 << 62 | random.getrandbits(62):032x}"


def drive(clients, until, seconds):
    """Steps clients together until a condition holds; says whether it did in time."""
    end = time.monotonic() + seconds
    while not until():
        if time.monotonic() >= end:
            return False
        sockets = [client.websocket for client in clients if client.websocket]
        if sockets:
            writers = [socket for socket in sockets if socket.unsent]
            select.select(sockets, writers, [], 0.01)
        else:
            time.sleep(0.01)
        for client in clients:
            client.step()
    return True
