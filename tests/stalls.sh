#!/usr/bin/env bash
# Runs one rate against a fresh node and explains each ack that took longer than 50 ms, by what the
# node, the generator and a watch of the machine have seen at that time. Exits with 1 if one has no
# explanation, or took longer than 200 ms.
#
#     tests/stalls.sh [SECONDS [RATE]]     600 s at 10,000/s
#
# The server has core 0 and one shard, the generator core 1; 1,000 users, texts of 20 bytes.
# TMPDIR names the file system. RESULT names a folder in which the report and the node's log stay.
# SERVE_WITH stands before the server's command, such as
#     SERVE_WITH="strace -f -qq -o /dev/null -e inject=fdatasync:delay_enter=80ms:when=2000"
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-600} rate=${2:-10000}
cargo build --release -p chatring-node -p chatring-loadgen
target=${CARGO_TARGET_DIR:-target}
server=$(realpath "$target/release/chatring") loadgen=$(realpath "$target/release/chatring-loadgen")
[[ -z ${RESULT:-} ]] || { mkdir -p "$RESULT" && RESULT=$(realpath "$RESULT"); }
folder=$(mktemp -d)
cd "$folder"
job='' pid=''
finish() {
    [[ -z $pid ]] || kill -TERM "$pid" 2>/dev/null || true
    # Under SERVE_WITH the job is another process than the server.
    [[ -z $job ]] || { timeout 20 tail --pid="$job" -f /dev/null || kill -9 "$pid" "$job"; } || true
    [[ -z ${RESULT:-} ]] || cp -f run.json run.html log "$RESULT" 2>/dev/null || true
    rm -rf "$folder"
}
trap finish EXIT

mkdir probe
cat >node.toml <<'TOML'
[log]
format = "json"
held_up = "10ms"
TOML
# shellcheck disable=SC2086
taskset -c 0 ${SERVE_WITH:-} "$server" serve --config node.toml --data data --listen 127.0.0.1:0 \
    --http 127.0.0.1:0 --shards 1 --ready-file ready.json >out 2>log &
job=$!
for _ in $(seq 3000); do
    [[ ! -f ready.json ]] || break
    sleep 0.01
done
[[ -f ready.json ]] || { echo "the server does not become ready"; cat log; exit 1; }
pid=$(sed -n 's/.*"pid": *\([0-9]*\).*/\1/p' ready.json)
echo "pid $pid, $seconds s at $rate/s"
timeout $((seconds + 180)) taskset -c 1 "$loadgen" direct --node ready.json --users 1000 \
    --rate "$rate" --body 20 --warmup 5s --duration "${seconds}s" --stall-ms 50 \
    --probe-core 0 --probe-dir probe --json run.json --html run.html
echo
"$loadgen" stalls run.json --node-log log --max-ms 200
