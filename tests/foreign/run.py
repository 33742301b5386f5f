"""Goal: docs/protocol.md is enough to write a client in another language.
Method: the client beside this file, written from that document alone, talks to a real server.

    python3 tests/foreign/run.py target/debug/chatring

prints a line for each scenario and `N passed, M failed`, and exits with 0 if none failed. Only the
standard library is used. Everything ends within 60 s.
"""

import copy
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

from chatring_client import Client, Draft, Store, drive
from frames import Binary, Json, unb64, varint
from websocket import BINARY, TEXT, Closed, HandshakeFailed, WebSocket

RUN_S_MAX = 240
# Not the defaults, so that clients must take what `welcome` says.
CONFIG = """[limits]
frame_bytes_max = 100_000
window_pushes = 200
"""
READY_S_MAX = 30
WAIT_S = 60
SCENARIOS = []


def scenario(function):
    SCENARIOS.append(function)
    return function


class Server:
    """A server process with a folder of its own."""

    def __init__(self, executable):
        self.executable = executable
        self.folder = tempfile.TemporaryDirectory(prefix="chatring-foreign-")
        self.data = str(Path(self.folder.name) / "data")
        self.ready_file = Path(self.folder.name) / "ready.json"
        self.config = Path(self.folder.name) / "chatring.toml"
        self.config.write_text(CONFIG)
        self.ready, self.process, self.tokens = {}, None, {}
        self.start()

    def start(self):
        """Starts it; again at the same addresses."""
        self.ready_file.unlink(missing_ok=True)
        address = [self.ready.get(key, "//127.0.0.1:0").split("/")[2] for key in ("ws", "http")]
        log = open(Path(self.folder.name) / "log", "ab")
        self.process = subprocess.Popen(
            [self.executable, "serve", "--data", self.data, "--shards", "2", "--listen", address[0],
             "--http", address[1], "--ready-file", str(self.ready_file),
             "--config", str(self.config)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        log.close()
        end = time.monotonic() + READY_S_MAX
        while not self.ready_file.exists():
            assert self.process.poll() is None, "the server ended at its start"
            assert time.monotonic() < end, "the server is not ready"
            time.sleep(0.01)
        self.ready = json.loads(self.ready_file.read_text())

    def end(self, sig):
        self.process.send_signal(sig)
        return self.process.wait(10)

    def log(self):
        return (Path(self.folder.name) / "log").read_text()

    def token(self, user, fresh=False):
        if fresh or user not in self.tokens:
            command = [self.executable, "token", "--data", self.data, "--user", user]
            output = subprocess.run(command, check=True, capture_output=True, text=True)
            self.tokens[user] = output.stdout.strip()
        return self.tokens[user]

    def client(self, user, codec=Binary, store=None, **options):
        """A session of a user that is ready."""
        store = store or Store()
        client = Client(self.ready["ws"], lambda: self.token(user), store, codec, **options)
        client.connect()
        wait([client], client.ready)
        return client


def wait(clients, until, seconds=WAIT_S):
    assert drive(clients, until, seconds), f"not within {seconds} s"


def answer(client, request):
    wait([client], lambda: request in client.answers)
    return client.answers[request]


def direct(client, peer):
    """The id of the direct channel with a user."""
    frame = answer(client, client.open(subject=peer))
    assert frame["type"] == "opened", frame
    return frame["head"]["cid"]


def pair(server, name, codecs=(Binary, Binary)):
    """Two users who know each other, and their channel."""
    a = server.client(name + "-a", codecs[0])
    b = server.client(name + "-b", codecs[1])
    cid = direct(a, name + "-b")
    assert direct(b, name + "-a") == cid
    return a, b, cid


def bodies(client, cid):
    """What a client holds of a channel, in order; nothing may be missing or stale."""
    channel = client.store.channel(cid)
    assert not channel.missing(1, channel.newest), channel.missing(1, channel.newest)
    return [channel.messages[seq].body for seq in sorted(channel.messages)]


def holds(client, cid, count):
    return lambda: len(client.store.channel(cid).messages) >= count


def idle(client):
    return lambda: not client.store.outbox and client.ready() and not client.ranges


def afresh(server, user, cid, codec=Binary):
    """What a client that knows nothing reads of a channel."""
    client = server.client(user, codec)
    client.load(cid)
    wait([client], idle(client))
    client.disconnect()
    return bodies(client, cid)


def stop(*clients):
    for client in clients:
        client.disconnect()


# ---- scenarios -------------------------------------------------------------------------------


@scenario
def examples_of_the_document(_server):
    text = (Path(__file__).parent / "../../docs/protocol.md").read_text()
    blocks = re.findall(r"```hex (client|server)\n(.*?)```\s*```json\n(.*?)```", text, re.S)
    assert len(blocks) >= 15
    for side, hexadecimal, plain in blocks:
        lines = [line.split("#")[0] for line in hexadecimal.splitlines()]
        data = bytes.fromhex("".join(lines))
        if side == "server":
            frames = Json().decode(plain)
            for frame in frames:  # said in JSON only
                for key in ("name", "class"):
                    frame.get("error", {}).pop(key, None)
            assert Binary().decode(data) == frames
            continue
        frames, binary = json.loads(plain), Binary()
        for frame in frames if isinstance(frames, list) else [frames]:
            if "text" in frame:
                frame["body"] = frame.pop("text").encode()
            elif "body" in frame:
                frame["body"] = unb64(frame["body"])
            if "cursor" in frame:
                frame["cursor"] = unb64(frame["cursor"])
            said = binary.encode(frame)
            assert data.startswith(said), frame
            data = data[len(said) :]
        assert not data


def chat(server, name, codecs):
    a, b, cid = pair(server, name, codecs)
    said = []
    for turn in range(10):
        speaker, other = (a, b) if turn % 2 == 0 else (b, a)
        body = f"turn {turn} \N{GRINNING FACE} \"quoted\"\n\0".encode()
        kind = 0
        if turn >= 8:
            body, kind = bytes(range(256)) * turn, 1
        said.append(body)
        speaker.send(cid, body, kind)
        count = turn + 1
        wait([a, b], lambda: holds(a, cid, count)() and holds(b, cid, count)())
    assert bodies(a, cid) == said and bodies(b, cid) == said
    for client in (a, b):
        me = client.store.channel(cid).head["me"]
        messages = client.store.channel(cid).messages
        mine = [seq for seq, message in messages.items() if message.sender == me]
        assert sorted(mine) == [1, 3, 5, 7, 9] if client is a else [2, 4, 6, 8, 10], mine
        assert all(abs(message.time_ms / 1000 - time.time()) < 60 for message in messages.values())
    a.ping()
    a.silent_at = time.monotonic() + 5
    before = a.silent_at
    wait([a], lambda: a.silent_at != before)
    stop(a, b)


@scenario
def two_users_chat_in_binary(server):
    chat(server, "bin", (Binary, Binary))


@scenario
def two_users_chat_in_json(server):
    chat(server, "json", (Json, Json))


@scenario
def two_users_chat_in_binary_and_json(server):
    chat(server, "mix", (Binary, Json))
    chat(server, "xim", (Json, Binary))


def cut_in_the_middle(server, name, codecs):
    a, b, cid = pair(server, name, codecs)
    expected = [f"message {number}".encode() for number in range(300)]
    for body in expected:
        a.send(cid, body)
    for count in (60, 150, 240):  # lost while up to 32 are open
        wait([a, b], lambda: len(a.store.outbox) <= 300 - count)
        assert a.open_sends
        a.cut()
    wait([a, b], lambda: idle(a)() and holds(b, cid, 300)())
    assert bodies(b, cid) == expected
    a.load(cid)
    wait([a], idle(a))
    assert bodies(a, cid) == expected
    assert not a.refused and not a.errors
    stop(a, b)
    assert afresh(server, name + "-b", cid, codecs[0]) == expected


@scenario
def three_hundred_pipelined_survive_cuts_in_binary(server):
    cut_in_the_middle(server, "cut", (Binary, Json))


@scenario
def three_hundred_pipelined_survive_cuts_in_json(server):
    cut_in_the_middle(server, "tuc", (Json, Binary))


@scenario
def a_session_resumes_from_its_cursor_and_from_nothing(server):
    for codec in (Binary, Json):
        a, b, cid = pair(server, "resume" + codec.__name__, (Binary, codec))
        for number in range(40):
            a.send(cid, b"%d" % number)
        wait([a, b], lambda: idle(a)() and holds(b, cid, 40)())
        b.sync()
        wait([b], b.ready)
        b.disconnect()
        saved = copy.deepcopy(b.store)
        assert saved.cursor
        for number in range(40, 60):
            a.send(cid, b"%d" % number)
        wait([a], idle(a))
        expected = [b"%d" % number for number in range(60)]

        user = "resume" + codec.__name__ + "-b"
        again = server.client(user, codec, saved)
        again.load(cid)
        wait([again], idle(again))
        assert bodies(again, cid) == expected
        head = again.store.channel(cid).head
        assert head["head"] == 60 and head["ordinal"] - head["read_ordinal"] == 60, head
        stop(a, again)
        assert afresh(server, user, cid, codec) == expected


@scenario
def a_second_device_sees_all_that_the_first_does(server):
    a, b, cid = pair(server, "second", (Binary, Json))
    phone = server.client("second-a", Json)
    assert phone.welcome["device"] != a.welcome["device"]
    for number in range(20):
        (a, b, phone)[number % 3].send(cid, b"%d" % number)
    everybody = [a, b, phone]
    wait(everybody, lambda: all(holds(client, cid, 20)() for client in everybody))
    assert bodies(a, cid) == bodies(b, cid) == bodies(phone, cid)
    assert sorted(bodies(a, cid), key=int) == [b"%d" % number for number in range(20)]

    b.send(cid, b"read me")
    wait(everybody, lambda: all(holds(client, cid, 21)() for client in everybody))
    a.mark(cid, read=21, received=21)
    wait(everybody, lambda: (phone.store.channel(cid).head or {}).get("read") == 21)
    a.cut()
    wait([a], lambda: a.ready() and not a.store.marks)  # said again until a head shows it
    head = a.store.channel(cid).head
    assert head["read"] == 21 and head["read_ordinal"] == 21, head
    stop(a, b, phone)


@scenario
def the_same_installation_takes_the_place_of_the_session_before(server):
    a, b, cid = pair(server, "twice")
    twin = server.client("twice-a", Json, copy.deepcopy(a.store))
    wait([a], lambda: a.close_codes == [4009])
    assert a.connect_at is None and twin.welcome["device"] == 1
    stop(b, twin)


@scenario
def who_does_not_ack_is_behind_and_pulls(server):
    for codec in (Binary, Json):
        a, b, cid = pair(server, "behind" + codec.__name__, (Binary, codec))
        b.auto_ack = False
        for number in range(900):
            a.send(cid, b"%d" % number)
        # At the window's end comes `behind`; the client syncs, and so on until it has all.
        wait([a, b], lambda: idle(a)() and b.store.channel(cid).newest == 900 and b.ready())
        assert b.behind >= 1, "never behind"
        b.auto_ack = True
        b.ack()
        b.load(cid)
        wait([b], idle(b))
        expected = [b"%d" % number for number in range(900)]
        assert bodies(b, cid) == expected
        a.send(cid, b"and on")
        wait([a, b], holds(b, cid, 901))  # pushes go on
        stop(a, b)


@scenario
def channels_and_members_are_told(server):
    a, b, cid = pair(server, "who", (Binary, Json))
    for client, other in ((a, b), (b, a)):
        head = client.store.channel(cid).head
        assert head["kind"] == "direct" and head["peer"] == other.welcome["uid"], head
        by_uid = answer(client, client.open(uid=other.welcome["uid"]))
        assert by_uid["head"]["cid"] == cid
        members = answer(client, client.who(cid))["members"]
        assert {member["subject"] for member in members} == {"who-a", "who-b"}
        assert {member["number"] for member in members} == {0, 1}
        one = answer(client, client.who(cid, [head["me"], 7]))["members"]
        assert [member["uid"] for member in one] == [client.welcome["uid"]], one
    for number in range(7):
        a.send(cid, b"%d" % number)
    wait([a, b], idle(a))
    fresh = server.client("who-b", Json)
    for client in (a, b, fresh):
        page = answer(client, client.range(cid, 2, 6, limit=2))["page"]
        assert (page["from"], page["to"], page["gap"]) == (2, 3, True), page
        page = answer(client, client.range(cid, 2, 99, limit=2, descending=True))["page"]
        assert (page["from"], page["to"], page["gap"]) == (6, 7, True), page
        assert [row["seq"] for row in page["rows"]] == [6, 7]
        wait([client], idle(client))
    stop(a, b, fresh)


@scenario
def more_requests_than_may_be_open_are_busy(server):
    for codec in (Binary, Json):
        a = server.client("many", codec)
        welcome = a.welcome
        assert (welcome["frame_bytes_max"], welcome["window_pushes"]) == (100_000, 200), welcome
        asked = [a.open(subject="nobody") for _ in range(200)]
        wait([a], lambda: all(request in a.answers for request in asked))
        errors = [a.answers[request]["error"] for request in asked]
        codes = [error["code"] for error in errors]
        assert codes[:64] == [41] * 64 and set(codes) <= {41, 60}, codes
        assert all(error.get("retry_after_ms") for error in errors if error["code"] == 60)
        stop(a)


@scenario
def what_is_asked_wrongly_is_refused(server):
    for codec in (Binary, Json):
        a, b, cid = pair(server, "wrong" + codec.__name__, (codec, codec))
        code = lambda request: answer(a, request)["error"]["code"]
        assert code(a.open(subject="nobody")) == 41
        assert code(a.open(uid="00000000000000ff")) == 41
        assert code(a.open(subject="wrong" + codec.__name__ + "-a")) == 42
        assert code(a.who("00000000000000ff")) == 40
        assert code(a.range("00000000000000ff", 1, 2)) == 40
        assert code(a.refresh("no token")) == 20
        assert code(a.refresh(server.token("another"))) in range(20, 40)
        assert answer(a, a.refresh(server.token("wrong" + codec.__name__ + "-a")))["type"] == "done"

        for bad in (b"x" * (a.welcome["body_bytes_max"] + 1), b"\xff not UTF-8"):
            try:
                a.send(cid, bad)
                raise AssertionError("taken")
            except ValueError:
                pass
        a.send("00000000000000ff", b"to nowhere")
        a.send(cid, b"of a kind that has no meaning yet", 2)
        cmid = a.send(cid, b"y" * a.welcome["body_bytes_max"])
        wait([a], idle(a))
        refused = {draft.cid + str(draft.kind): error["code"] for draft, error in a.refused}
        assert refused == {"00000000000000ff0": 40, cid + "2": 47}, refused
        a.store.outbox.append(Draft(cid, cmid, 0, 0, b"another body"))
        wait([a], idle(a))
        assert a.refused[-1][1]["code"] == 48, a.refused[-1]
        newest = a.store.channel(cid).newest
        a.store.outbox.append(Draft(cid, cmid, 0, 0, b"y" * a.welcome["body_bytes_max"]))
        wait([a], idle(a))
        assert a.store.channel(cid).newest == newest
        wait([b], holds(b, cid, newest))

        # More open at once than the server takes: some are "busy", and all come in the end.
        a.welcome["open_sends_max"], a.window = 1_000, 1_000
        for number in range(600):
            a.send(cid, b"%d" % number)
        count = newest + 600
        wait([a, b], lambda: idle(a)() and idle(b)() and b.store.channel(cid).newest == count)
        b.load(cid)
        wait([b], idle(b))
        assert bodies(b, cid)[newest:] == [b"%d" % number for number in range(600)]
        stop(a, b)


def ending(server, codec, *messages, opcode=None, hello=True):
    """Says something raw; gives the code of the error frame and the close code."""
    socket = WebSocket(server.ready["ws"], [codec.subprotocol])
    opcode = opcode or (TEXT if codec.is_text else BINARY)
    parser, errors = codec(), []
    if hello:
        token = hello if isinstance(hello, str) else server.token("raw")
        socket.send(codec().encode({"type": "hello", "token": token, "frame_bytes_max": 131_072,
                                    "installation": os.urandom(16).hex()}),
                    TEXT if codec.is_text else BINARY)
    for message in messages:
        socket.send(message, opcode)
    end = time.monotonic() + 5
    try:
        while time.monotonic() < end:
            for message in socket.pump(0.1):
                frames = parser.decode(message)
                errors += [f["error"]["code"] for f in frames if f["type"] == "error"]
    except Closed as closed:
        return errors, closed.code
    socket.abort()
    return errors, None


@scenario
def what_breaks_the_protocol_ends_the_connection(server):
    frame = lambda data: varint(len(data)) + data
    send = lambda body: frame(b"\x84\1\0" + bytes(8) + bytes(16) + b"\0\0" + body)
    cases = [
        ("varint not shortest", Binary, [frame(b"\x87\x80\x00")], [1], 4004),
        ("left-over bytes", Binary, [frame(b"\x87\x01\x01")], [1], 4004),
        ("an empty frame", Binary, [b"\x00"], [1], 4004),
        ("a frame cut short", Binary, [b"\x05\x87"], [1], 4004),
        ("unknown opcode", Binary, [frame(b"\xfe")], [3], 4004),
        ("unknown alias", Binary, [frame(b"\x86\x02\x01\x01")], [4], 4004),
        ("a second hello", Json, [b'{"type":"hello","token":"x","installation":"%s"}'
         % (b"00" * 16)], [5], 4004),
        ("not JSON", Json, [b"hello?"], [1], 4004),
        ("a key twice", Json, [b'{"type":"ack","pushes":0,"pushes":0}'], [1], 4004),
        ("unknown type", Json, [b'{"type":"sing"}'], [3], 4004),
        ("more acked than pushed", Binary, [frame(b"\x87\x05")], [47], 4004),
        ("a frame too large", Binary, [frame(b"\x84" + b"x" * 100_000)], [2], 1009),
        ("a body too large", Binary, [send(b"x" * 65_537)], [2], 1009),
        ("a text that is none", Binary, [send(b"\xff")], [1], 4004),
        ("request numbers that do not ascend", Json, [b'{"type":"range","request":0,"cid":"%s"'
         b',"from":1,"to":1}' % (b"00" * 8)], [5], 4004),
    ]  # fmt: skip
    found = []
    for name, codec, messages, errors, code in cases:
        got = ending(server, codec, *messages)
        if got != (errors, code):
            found.append(f"{name}: {got} instead of {(errors, code)}")
    got = ending(server, Binary, b"text", opcode=TEXT)
    if got[1] != 1003:
        found.append(f"text in binary: {got}")
    got = ending(server, Json, b"\x00", opcode=BINARY)
    if got[1] != 1003:
        found.append(f"binary in JSON: {got}")
    for codec in (Binary, Json):
        got = ending(server, codec, hello="a.b.c")
        if got != ([20], 4003):
            found.append(f"bad token: {got}")
        got = ending(server, codec, codec().encode({"type": "ping", "pushes": 0}), hello=False)
        if got != ([5], 4004):
            found.append(f"ping before hello: {got}")
    assert not found, "\n".join(found)


@scenario
def what_is_unknown_but_skippable_is_skipped(server):
    a = server.client("skip")
    a.websocket.send(b"\x03\x41ab", BINARY)
    answer(a, a.open(subject="skip"))
    j = server.client("skip", Json)
    j.websocket.send(b'[{"type":"sing","skip":true},{"type":"ack","pushes":0,"tune":1}]', TEXT)
    j.websocket.send(b"[]", TEXT)
    answer(j, j.open(subject="skip"))
    assert not a.close_codes and not j.close_codes
    stop(a, j)
    for path, subprotocol in (("/v1/ws", "chat"), ("/v2", "chatring.v1")):
        try:
            WebSocket(server.ready["ws"].replace("/v1/ws", path), [subprotocol])
            raise AssertionError("accepted")
        except HandshakeFailed as failed:
            assert failed.status == (400 if path == "/v1/ws" else 404), failed


@scenario
def signing_out_ends_sessions(server):
    a = server.client("leaver")
    phone = server.client("leaver", Json)
    frame = answer(a, a.sign_out(device=phone.welcome["device"]))
    assert frame["type"] == "done", frame
    wait([a, phone], lambda: phone.close_codes)
    assert phone.close_codes == [4003], phone.close_codes
    phone.connect_at = None
    barred = Client(a.url, a.token, phone.store)
    barred.connect()
    wait([barred], lambda: barred.close_codes)
    assert barred.errors[0]["code"] == 22 and barred.close_codes == [4003]

    other = server.client("leaver", Json)
    a.sign_out()
    wait([a, other], lambda: a.close_codes and other.close_codes)
    assert a.close_codes == other.close_codes == [4003]
    late = Client(a.url, a.token, Store())
    late.connect()
    wait([late], lambda: late.close_codes)
    assert late.errors[0]["code"] == 22, late.errors
    time.sleep(1.1)  # tokens count in seconds
    server.token("leaver", fresh=True)
    wait([a], a.ready)
    stop(a)


@scenario
def a_draining_server_is_left_and_found_again(server):
    a, b, cid = pair(server, "drain", (Binary, Json))
    a.send(cid, b"before")
    wait([a, b], holds(b, cid, 1))
    server.process.send_signal(signal.SIGTERM)
    wait([a, b], lambda: a.close_codes and b.close_codes, 6)
    assert a.close_codes == b.close_codes == [1001], (a.close_codes, b.close_codes)
    assert a.drain and b.drain, "no drain"
    assert server.process.wait(6) == 0
    a.send(cid, b"meanwhile")
    server.start()
    wait([a, b], lambda: idle(a)() and holds(b, cid, 2)())
    assert bodies(b, cid) == [b"before", b"meanwhile"]

    for number in range(100):
        a.send(cid, b"%d" % number)
    wait([a, b], lambda: len(a.store.outbox) < 70)
    server.end(signal.SIGKILL)
    drive([a, b], lambda: a.websocket is None and b.websocket is None, 5)
    server.start()
    wait([a, b], lambda: idle(a)() and idle(b)() and b.store.channel(cid).newest >= 102)
    b.load(cid)
    wait([b], idle(b))
    assert bodies(b, cid)[2:] == [b"%d" % number for number in range(100)]
    assert not a.refused
    stop(a, b)


# ---- running them ----------------------------------------------------------------------------


def late(*_):
    raise TimeoutError(f"not done within {RUN_S_MAX} s")


def main():
    executable, only = os.path.abspath(sys.argv[1]), sys.argv[2:]
    passed = failed = 0
    signal.signal(signal.SIGALRM, late)
    signal.alarm(RUN_S_MAX - 2)
    server = None
    try:
        server = Server(executable)
        for function in SCENARIOS:
            if only and not any(word in function.__name__ for word in only):
                continue
            start = time.monotonic()
            try:
                function(server)
                passed, verdict = passed + 1, "ok"
            except Exception as error:
                failed, verdict = failed + 1, "FAILED"
                traceback.print_exc()
                if isinstance(error, TimeoutError):
                    break
            print(f"{function.__name__}: {verdict}, {time.monotonic() - start:.1f} s", flush=True)
    except Exception:
        failed += 1
        traceback.print_exc()
    finally:
        signal.alarm(0)
        if server:
            if server.process.poll() is None:
                server.process.kill()
                server.process.wait()
            if failed:
                sys.stderr.write("---- log of the server ----\n" + server.log())
            server.folder.cleanup()
    print(f"{passed} passed, {failed} failed")
    sys.exit(1 if failed or not passed else 0)


if __name__ == "__main__":
    main()
