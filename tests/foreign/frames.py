"""The frames of Chatring, sections 2 to 4 of docs/protocol.md.

A frame is a dict in the shape of its JSON form, except that bodies are always `bytes` in `body`,
and cursors `bytes` too. `Binary` and `Json` turn what a client says into messages and messages into
what the server says. A connection needs a codec of its own: `Binary` keeps the aliases.
"""

import base64
import json

FRAME_BYTES_MAX = 73_728
U64 = 1 << 64

CHANNEL_KINDS = ["direct", "group", "broadcast"]
ROWS = ["unchanged", "follow", "stale"]
DURABILITIES = ["memory", "fsync", "replicated"]
CACHES = ["keep", "replace"]


class ProtocolError(Exception):
    """The server said what it may not."""


# ---- values ----------------------------------------------------------------------------------


def varint(number):
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def blob(data):
    return varint(len(data)) + data


def b64(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def unb64(text):
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


class Reader:
    """Takes values from the front of a frame's bytes."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def left(self):
        return len(self.data) - self.at

    def take(self, count):
        if count > self.left():
            raise ProtocolError("a frame is too short")
        self.at += count
        return self.data[self.at - count : self.at]

    def byte(self):
        return self.take(1)[0]

    def varint(self):
        value = 0
        for shift in range(0, 70, 7):
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if (byte == 0 and shift) or value >= U64:
                    break
                return value
        raise ProtocolError("not a varint in its shortest form")

    def change(self, before):
        """A difference, applied to the value before."""
        zigzag = self.varint()
        return (before + (zigzag >> 1 ^ -(zigzag & 1))) % U64

    def hex(self, count):
        return self.take(count).hex()

    def blob(self):
        return self.take(self.varint())

    def text(self):
        return self.blob().decode()

    def name(self, names):
        value = self.byte()
        if value >= len(names):
            raise ProtocolError(f"{value} is not one of {names}")
        return names[value]

    def flag(self):
        return self.name([False, True])

    def rest(self):
        return self.take(self.left())

    def tagged(self):
        """Tagged fields up to the end: a dict from tag to bytes. Unknown tags do no harm."""
        fields, last = {}, -1
        while self.left():
            tag = self.varint()
            if tag <= last:
                raise ProtocolError("tags do not ascend")
            fields[tag], last = self.blob(), tag
        return fields


# ---- chatring.v1 -----------------------------------------------------------------------------


class Binary:
    """`chatring.v1`."""

    subprotocol = "chatring.v1"
    is_text = False

    def __init__(self):
        self.said = {}  # cid -> alias, defined by us
        self.heard = []  # alias -> [cid, seq, time_ms], defined by the server

    def encode(self, frame):
        """One frame, which is also a message."""
        opcode, fields = getattr(self, "_say_" + frame["type"])(frame)
        return blob(bytes([opcode]) + fields)

    def decode(self, message):
        """The frames of a message."""
        reader, frames = Reader(message), []
        while reader.left():
            body = Reader(reader.blob())
            opcode = body.byte()
            hear = getattr(self, f"_hear_{opcode:02x}", None)
            if hear is None and opcode & 0x80:
                raise ProtocolError(f"unknown opcode {opcode:#x}")
            if hear is not None:
                frames.append(hear(body))
                if body.left():
                    raise ProtocolError(f"bytes are left after {frames[-1]}")
        return frames

    # What a client says.

    def _say_hello(self, f):
        fields = bytes.fromhex(f["installation"]) + varint(f.get("capabilities", 0))
        fields += varint(f["frame_bytes_max"]) + blob(f["token"].encode())
        return 0x81, fields + blob(f.get("cursor", b""))

    def _say_refresh(self, f):
        return 0x82, varint(f["request"]) + blob(f["token"].encode())

    def _say_open(self, f):
        user = f["with"]
        if "uid" in user:
            return 0x83, varint(f["request"]) + b"\1" + bytes.fromhex(user["uid"])
        names = blob(user.get("issuer", "").encode()) + blob(user["subject"].encode())
        return 0x83, varint(f["request"]) + b"\0" + names

    def _say_send(self, f):
        previous, kind = f.get("previous"), f.get("kind", 0)
        fields = varint(f["request"]) + self._reference(f["cid"]) + bytes.fromhex(f["cmid"])
        fields += varint(f.get("base", 0)) + varint(f["request"] - previous if previous else 0)
        if kind == 0:
            return 0x84, fields + f["body"]
        return 0x85, fields + bytes([kind]) + blob(b"") + f["body"]

    def _say_mark(self, f):
        marks = varint(f.get("read", 0)) + varint(f.get("received", 0))
        return 0x86, self._reference(f["cid"]) + marks

    def _say_ack(self, f):
        return 0x87, varint(f["pushes"])

    def _say_sync(self, f):
        return 0x88, varint(f["request"]) + blob(f.get("cursor", b""))

    def _say_more(self, f):
        return 0x89, varint(f["request"])

    def _say_range(self, f):
        fields = varint(f["request"]) + bytes.fromhex(f["cid"])
        fields += varint(f["from"]) + varint(f["to"]) + varint(f.get("limit", 0))
        return 0x8A, fields + (b"\1" if f.get("direction") == "descending" else b"\0")

    def _say_who(self, f):
        members = f.get("members", [])
        fields = varint(f["request"]) + bytes.fromhex(f["cid"]) + varint(len(members))
        return 0x8B, fields + b"".join(map(varint, members))

    def _say_sign_out(self, f):
        if f["scope"] == "everywhere":
            return 0x8C, varint(f["request"]) + b"\0"
        return 0x8C, varint(f["request"]) + b"\1" + varint(f["device"])

    def _say_ping(self, f):
        return 0x8D, varint(f["pushes"])

    def _reference(self, cid):
        if cid in self.said:
            return varint(self.said[cid] + 2)
        if len(self.said) == 4_096:
            return b"\0" + bytes.fromhex(cid)
        self.said[cid] = len(self.said)
        return b"\1" + bytes.fromhex(cid)

    # What a server says.

    def _place(self, r):
        """Reference, seq and time_ms, with their differences."""
        reference = r.varint()
        if reference <= 1:
            alias = [r.hex(8), 0, 0]
            if reference == 1:
                self.heard.append(alias)
        elif reference - 2 < len(self.heard):
            alias = self.heard[reference - 2]
        else:
            raise ProtocolError("unknown alias")
        alias[1], alias[2] = r.change(alias[1]), r.change(alias[2])
        return dict(zip(("cid", "seq", "time_ms"), alias))

    def _hear_c0(self, r):
        return {"type": "text", **self._place(r), "sender": r.varint(), "body": r.rest()}

    def _hear_c1(self, r):
        place = self._place(r)
        row = {"seq": place["seq"], "time_ms": place["time_ms"]}
        row |= {"sender": r.varint(), "ordinal": r.varint(), "kind": r.byte()}
        row |= {"device": r.varint(), "cmid": r.hex(16)}
        Reader(r.blob()).tagged()
        return {"type": "entry", "cid": place["cid"], "row": row | {"body": r.rest()}}

    def _hear_c2(self, r):
        return {"type": "sent", "request": r.varint(), **self._place(r)}

    def _hear_c3(self, r):
        marks = {"read": r.varint, "read_ordinal": r.varint, "received": r.varint}
        return {"type": "marker", "cid": r.hex(8)} | {key: read() for key, read in marks.items()}

    def _hear_c4(self, r):
        frame = {"type": "welcome", "uid": r.hex(8), "history": r.hex(8), "device": r.varint()}
        for key in ("time_ms", "heartbeat_ms", "window_pushes", "window_bytes", "frame_bytes_max",
                    "body_bytes_max", "open_sends_max"):
            frame[key] = r.varint()
        return self._end(r, frame | {"durability": r.name(DURABILITIES)})

    def _hear_c5(self, r):
        return self._end(r, {"type": "done", "request": r.varint()})

    def _hear_c6(self, r):
        return self._end(r, {"type": "opened", "request": r.varint(), "head": self._head(r)})

    def _hear_c7(self, r):
        return {"type": "refused", "request": r.varint(), "error": self._failure(r)}

    def _hear_c8(self, r):
        return self._end(r, {"type": "unknown", "request": r.varint()})

    def _hear_c9(self, r):
        frame = {"type": "continue", "request": r.varint(), "checked_to": r.varint()}
        return self._end(r, frame)

    def _hear_ca(self, r):
        frame = {"type": "syncing", "request": r.varint(), "cache": r.name(CACHES)}
        return self._end(r, frame)

    def _hear_cb(self, r):
        return self._end(r, {"type": "head", "head": self._head(r)})

    def _hear_cc(self, r):
        return self._end(r, {"type": "page", "page": self._page(r)})

    def _hear_cd(self, r):
        return self._end(r, {"type": "page_end", "request": r.varint()})

    def _hear_ce(self, r):
        return self._end(r, {"type": "synced", "request": r.varint(), "cursor": r.blob()})

    def _hear_cf(self, r):
        return self._end(r, {"type": "behind"})

    def _hear_d0(self, r):
        return self._end(r, {"type": "rows", "request": r.varint(), "page": self._page(r)})

    def _hear_d1(self, r):
        frame = {"type": "members", "request": r.varint(), "cid": r.hex(8), "members": []}
        for _ in range(r.varint()):
            member = {"number": r.varint(), "uid": r.hex(8)}
            frame["members"].append(member | {"issuer": r.text(), "subject": r.text()})
            Reader(r.blob()).tagged()
        return self._end(r, frame)

    def _hear_d2(self, r):
        return {"type": "pong", "pushes": r.varint(), "time_ms": r.varint()}

    def _hear_d3(self, r):
        return {"type": "error", "error": self._failure(r)}

    def _hear_40(self, r):
        frame = {"type": "drain", "after_ms": r.varint(), "spread_ms": r.varint()}
        return self._end(r, frame)

    def _end(self, r, frame):
        r.tagged()  # nothing is defined there yet
        return frame

    def _head(self, r):
        head = {"cid": r.hex(8), "kind": r.name(CHANNEL_KINDS)}
        if r.flag():
            head["peer"] = r.hex(8)
        for key in ("me", "head", "ordinal", "floor", "read", "read_ordinal", "received"):
            head[key] = r.varint()
        return head | {"rows": r.name(ROWS)}

    def _page(self, r):
        page = {"cid": r.hex(8), "from": r.varint(), "to": r.varint(), "gap": r.flag()}
        rows, seq, time_ms, ordinal = [], page["from"], 0, 0
        for _ in range(r.varint()):
            seq += r.varint()
            time_ms, ordinal = r.change(time_ms), r.change(ordinal)
            row = {"seq": seq, "ordinal": ordinal, "sender": r.varint(), "kind": r.byte()}
            row |= {"device": r.varint(), "cmid": r.hex(16), "time_ms": time_ms}
            Reader(r.blob()).tagged()
            rows.append(row | {"body": r.blob()})
            seq += 1
        return page | {"rows": rows}

    def _failure(self, r):
        failure, fields = {"code": r.varint()}, r.tagged()
        if 1 in fields:
            failure["text"] = fields[1].decode()
        if 2 in fields:
            failure["retry_after_ms"] = Reader(fields[2]).varint()
        if 3 in fields:
            failure["moved_to"] = fields[3].decode()
        return failure


# ---- chatring.v1.json ------------------------------------------------------------------------


class Json:
    """`chatring.v1.json`."""

    subprotocol = "chatring.v1.json"
    is_text = True
    known = {
        "text", "entry", "sent", "marker", "welcome", "done", "opened", "refused", "unknown",
        "continue", "syncing", "head", "page", "page_end", "synced", "behind", "rows", "members",
        "pong", "error", "drain",
    }  # fmt: skip

    def encode(self, frame):
        """One frame, which is also a message."""
        frame = dict(frame)
        if "cursor" in frame:
            frame["cursor"] = b64(frame["cursor"])
        if "body" in frame and frame.get("kind", 0) == 0:
            frame["text"] = frame.pop("body").decode()
        elif "body" in frame:
            frame["body"] = b64(frame["body"])
        return json.dumps(frame, separators=(",", ":")).encode()

    def decode(self, message):
        """The frames of a message."""
        value = json.loads(message)
        frames = []
        for frame in value if isinstance(value, list) else [value]:
            if frame["type"] in self.known:
                frames.append(self._normal(frame))
            elif frame.get("skip") is not True:
                raise ProtocolError(f"unknown type {frame['type']}")
        return frames

    def _normal(self, frame):
        if "cursor" in frame:
            frame["cursor"] = unb64(frame["cursor"])
        page = frame.get("page", {})
        for holder in (frame, frame.get("row", {}), *page.get("rows", [])):
            if holder.get("body") is not None:
                holder["body"] = unb64(holder["body"])
            elif "text" in holder:
                holder["body"] = holder.pop("text").encode()
        return frame
