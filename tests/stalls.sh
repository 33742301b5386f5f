#!/usr/bin/env bash
# Runs one rate against a fresh node and explains each ack that took longer than 50 ms, by what the
# node, the generator and a watch of the machine have seen at that time. Exits with 1 if one has no
# explanation, or took longer than 200 ms.
#
#     tests/stalls.sh [SECONDS [RATE]]     600 s at 10,000/s
#
# The server has core 0 and one shard, the generator core 1; 1,000 users, texts of 20 bytes.
# RESULT names a folder in which the report and the node's log stay; TMPDIR and PROFILE: measure.sh.
# SERVE_WITH stands before the server's command, such as
#     SERVE_WITH="strace -f -qq -o /dev/null -e inject=fdatasync:delay_enter=80ms:when=2000"
set -euo pipefail
seconds=${1:-600} rate=${2:-10000}
source "$(dirname "$0")/measure.sh"
at_end() {
    if [[ -n $pid && -f ready.json ]]; then
        kill -TERM "$(server_pid)" || true
        timeout 20 tail --pid="$pid" -f /dev/null && pid=''
    fi
    [[ -z ${RESULT:-} ]] || cp -f run.json run.html log "$RESULT" 2>/dev/null
}

mkdir probe
cat >node.toml <<'TOML'
[log]
format = "json"
held_up = "10ms"
TOML
# shellcheck disable=SC2206
before=(taskset -c 0 ${SERVE_WITH:-})
serve --config node.toml --data data --shards 1
echo "pid $(server_pid), $seconds s at $rate/s"
timeout $((seconds + 180)) taskset -c 1 "$loadgen" direct --node ready.json --users 1000 \
    --rate "$rate" --body 20 --warmup 5s --duration "${seconds}s" --stall-ms 50 \
    --probe-core 0 --probe-dir probe --json run.json --html run.html
echo
"$loadgen" stalls run.json --node-log log --max-ms 200
