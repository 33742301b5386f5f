#!/usr/bin/env bash
# Runs Autobahn's WebSocket cases, without compression, against the example ws_echo.
#
# The cases come from the PyPI package kosoku, installed into a temporary venv. Prints
# "N passed, M failed" and fails if a case does; prints SKIPPED and succeeds if the package cannot
# be installed. AUTOBAHN_CASES narrows the run, for instance AUTOBAHN_CASES='6.*'.
set -euo pipefail

KOSOKU_VERSION=0.1.0
INSTALL_SECONDS_MAX=120
BUILD_SECONDS_MAX=900
RUN_SECONDS_MAX=600
CASES_MIN=301

cd "$(dirname "$0")/.."
work=$(mktemp -d)
server=
cleanup() {
    if [ -n "$server" ]; then
        kill "$server" 2>/dev/null || true
        wait "$server" 2>/dev/null || true
    fi
    rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

if ! { python3 -m venv "$work/venv" &&
    timeout "$INSTALL_SECONDS_MAX" "$work/venv/bin/pip" install --quiet \
        --disable-pip-version-check "kosoku==$KOSOKU_VERSION"; } >"$work/install.log" 2>&1; then
    tail -n 3 "$work/install.log" >&2
    echo "SKIPPED: Autobahn: kosoku $KOSOKU_VERSION cannot be installed"
    exit 0
fi

timeout "$BUILD_SECONDS_MAX" cargo build --quiet --release -p chatring-wire --example ws_echo
target=$(cargo metadata --no-deps --format-version 1 |
    python3 -c 'import json, sys; print(json.load(sys.stdin)["target_directory"])')
"$target/release/examples/ws_echo" 127.0.0.1:0 >"$work/echo.log" &
server=$!
address=
for _ in $(seq 100); do
    address=$(sed -n 's/^listening on ws:\/\///p' "$work/echo.log")
    [ -n "$address" ] && break
    sleep 0.1
done
if [ -z "$address" ]; then
    echo "ws_echo does not listen" >&2
    exit 1
fi

# A failing case makes kosoku exit with 1; the report below is what counts.
status=0
timeout "$RUN_SECONDS_MAX" "$work/venv/bin/kosoku" -m fuzzingclient \
    ${AUTOBAHN_CASES:+-i "$AUTOBAHN_CASES"} -x '12.*' -x '13.*' -o "$work/report" "$address" \
    >"$work/run.log" 2>&1 || status=$?
tail -n 20 "$work/run.log" >&2
if [ ! -s "$work/report/index.json" ]; then
    echo "the cases did not run to their end (status $status)" >&2
    exit 1
fi
[ -n "${AUTOBAHN_CASES:-}" ] && CASES_MIN=1
python3 - "$work/report/index.json" "$CASES_MIN" <<'PYTHON'
import json
import sys

agents = json.load(open(sys.argv[1]))
cases = [(name, case) for agent in agents.values() for name, case in agent.items()]
good = {"OK", "NON-STRICT", "INFORMATIONAL"}
failed = [
    (name, case)
    for name, case in cases
    if case["behavior"] not in good or case["behaviorClose"] not in good
]
for name, case in failed:
    print(f"case {name}: {case['behavior']}, closing {case['behaviorClose']}")
for behavior in sorted({case["behavior"] for _, case in cases}):
    print(f"{behavior}: {sum(case['behavior'] == behavior for _, case in cases)}")
print(f"{len(cases) - len(failed)} passed, {len(failed)} failed")
if len(cases) < int(sys.argv[2]):
    sys.exit(f"only {len(cases)} cases ran, at least {sys.argv[2]} were expected")
sys.exit(bool(failed))
PYTHON
