"""Signs the requests of a run in, and aims some of them at what is there.

The server is at CHATRING_HTTP. Without CHATRING_SIGNED_IN nothing is signed in.
"""

import json
import os
import secrets
import urllib.request

import schemathesis

HTTP = os.environ["CHATRING_HTTP"]
PASSWORD = "correct horse battery"
# What ends the log-in that it is asked with has a user of its own, who logs in anew each time.
ENDING = {
    "DELETE /v1/me",
    "DELETE /v1/sessions",
    "DELETE /v1/sessions/current",
    "DELETE /v1/me/devices/{id}",
    "PUT /v1/me/password",
}


def ask(method, path, body=None, token=None):
    headers = {"Content-Type": "application/json"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(HTTP + path, data, headers, method=method)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.loads(answer.read() or b"null")


def log_in(handle):
    body = {"handle": handle, "password": PASSWORD, "installation": secrets.token_hex(16)}
    return ask("POST", "/v1/sessions", body)["access_token"]


def world():
    """Three users; two of them have a channel with messages."""
    for handle in ["tester", "other", "leaver"]:
        ask("POST", "/v1/accounts", {"handle": handle, "password": PASSWORD})
    token = log_in("tester")
    channel = ask("POST", "/v1/channels", {"kind": "direct", "with": "other"}, token)["id"]
    for n in range(3):
        ask("POST", f"/v1/channels/{channel}/messages", {"text": f"message {n}"}, token)
    return token, channel


if os.environ.get("CHATRING_SIGNED_IN"):
    TOKEN, CHANNEL = world()

    @schemathesis.auth(refresh_interval=None)
    class LogIns:
        def get(self, case, context):
            return log_in("leaver") if context.operation.label in ENDING else TOKEN

        def set(self, case, data, context):
            case.headers["Authorization"] = f"Bearer {data}"

    @schemathesis.hook
    def map_path_parameters(context, path_parameters):
        # Every other request is about what is there.
        if path_parameters and secrets.randbits(1):
            path = context.operation.path
            if path.startswith("/v1/channels/{id}"):
                path_parameters["id"] = CHANNEL
            elif "{handle}" in path:
                path_parameters["handle"] = "other"
        return path_parameters

    @schemathesis.hook
    def map_query(context, query):
        # Long polls are right to wait, but nobody has the time.
        if query and isinstance(query.get("wait_ms"), int) and 20 < query["wait_ms"] <= 60_000:
            query["wait_ms"] = 20
        return query
