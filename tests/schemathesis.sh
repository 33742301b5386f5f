#!/usr/bin/env bash
# Runs schemathesis against the description that a server gives of its own HTTP API: no answer of
# status 5xx, and none that the description does not have. Once without a token, once signed in.
#
# Schemathesis comes from PyPI, into a temporary venv. Prints SKIPPED and succeeds if it cannot be
# installed. SCHEMATHESIS_EXAMPLES is the number of random requests for each endpoint, beside those
# that cover the limits of each parameter; SCHEMATHESIS_SEED repeats a run.
#
# All checks are on, but for these:
# * positive_data_acceptance, for the endpoints that schemathesis/schemathesis.toml lists
# * GET /v1/events, signed in: its answer does not end
set -euo pipefail

SCHEMATHESIS_VERSION=4.32.5
INSTALL_SECONDS_MAX=120
BUILD_SECONDS_MAX=900
RUN_SECONDS_MAX=300
READY_SECONDS_MAX=60
REQUEST_SECONDS_MAX=30

cd "$(dirname "$0")/.."
here=$PWD
work=$(mktemp -d)
server=
cleanup() {
    if [ -n "$server" ]; then
        kill -9 "$server" 2>/dev/null || true
        wait "$server" 2>/dev/null || true
    fi
    rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

if ! { python3 -m venv "$work/venv" &&
    timeout "$INSTALL_SECONDS_MAX" "$work/venv/bin/pip" install --quiet \
        --disable-pip-version-check "schemathesis==$SCHEMATHESIS_VERSION"; } \
    >"$work/install.log" 2>&1; then
    tail -n 3 "$work/install.log" >&2
    echo "SKIPPED: schemathesis: version $SCHEMATHESIS_VERSION cannot be installed"
    exit 0
fi

binary=${CHATRING_BINARY:-}
if [ -z "$binary" ]; then
    timeout "$BUILD_SECONDS_MAX" cargo build --quiet --bin chatring
    binary=$(cargo metadata --no-deps --format-version 1 |
        python3 -c 'import json, sys; print(json.load(sys.stdin)["target_directory"])')/debug/chatring
fi

# Whatever is bounded per address has one address here. Hashing is not what is tried.
cat >"$work/chatring.toml" <<'TOML'
[limits]
bad_tokens_per_ip_hour = 1000000
bad_tokens_per_ip_burst = 1000000

[accounts]
password_memory_kib = 64
password_passes = 1
sign_ups_per_ip_hour = 1000000
sign_ups_per_ip_burst = 1000000
log_ins_per_ip_hour = 1000000
log_ins_per_ip_burst = 1000000
log_ins_per_handle_hour = 1000000
log_ins_per_handle_burst = 1000000
TOML

# run NAME ARGUMENTS...: starts a server of its own, and runs schemathesis against it.
run() {
    local name=$1 status=0
    shift
    echo "== schemathesis, $name"
    mkdir "$work/$name"
    "$binary" serve --config "$work/chatring.toml" --data "$work/$name/data" \
        --listen 127.0.0.1:0 --http 127.0.0.1:0 --shards 2 --ready-file "$work/$name/ready.json" \
        >"$work/$name/out" 2>"$work/$name/log" &
    server=$!
    for _ in $(seq $((READY_SECONDS_MAX * 10))); do
        [ -s "$work/$name/ready.json" ] && break
        sleep 0.1
    done
    CHATRING_HTTP=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["http"])' \
        "$work/$name/ready.json")
    export CHATRING_HTTP
    (
        cd "$work/$name"
        export SCHEMATHESIS_HOOKS=hooks PYTHONPATH=$here/tests/schemathesis
        export PYTHONDONTWRITEBYTECODE=1
        timeout "$RUN_SECONDS_MAX" "$work/venv/bin/schemathesis" \
            --config-file "$here/tests/schemathesis/schemathesis.toml" run \
            "$CHATRING_HTTP/v1/openapi.json" --no-color --continue-on-failure --warnings off \
            --request-timeout "$REQUEST_SECONDS_MAX" --generation-database none \
            --max-examples "${SCHEMATHESIS_EXAMPLES:-20}" \
            ${SCHEMATHESIS_SEED:+--seed "$SCHEMATHESIS_SEED"} "$@"
    ) || status=$?
    if ! kill -0 "$server" 2>/dev/null; then
        echo "the server has ended" >&2
        status=1
    fi
    # What held messages up is the machine's affair.
    if grep -E ' (WARN|ERROR) ' "$work/$name/log" | grep -v 'held up' >&2; then
        echo "the server has logged what nobody should be able to cause" >&2
        status=1
    fi
    kill -9 "$server" 2>/dev/null || true
    wait "$server" 2>/dev/null || true
    server=
    return "$status"
}

failed=0
run anonymous || failed=1
CHATRING_SIGNED_IN=1 run signed-in --exclude-path /v1/events || failed=1
exit "$failed"
