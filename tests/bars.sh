#!/usr/bin/env bash
# Runs the promises under load with release builds and prints what came of them: a steady load and
# its verification, six kills under load, syncs that are late, syncs that fail, and a full disk.
#
#     tests/bars.sh            about two minutes once built; strace and root for the last three
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --release -p chatring-node -p chatring-loadgen
target=${CARGO_TARGET_DIR:-target}
server=$(realpath "$target/release/chatring") loadgen=$(realpath "$target/release/chatring-loadgen")
folder=$(mktemp -d)
cd "$folder"
pid='' failed=0
trap '[[ -z $pid ]] || kill -9 "$pid" 2>/dev/null; umount -l small 2>/dev/null; rm -rf "$folder"' EXIT

# serve DATA [WORDS BEFORE THE SERVER...]: starts it and waits for its ready file.
serve() {
    local data=$1
    shift
    rm -f ready.json
    "$@" "$server" serve --data "$data" --listen 127.0.0.1:0 --http 127.0.0.1:0 --shards 2 \
        --ready-file ready.json 2>>log &
    pid=$!
    for _ in $(seq 300); do
        [[ ! -f ready.json ]] || return 0
        sleep 0.1
    done
    echo "the server does not become ready"
    return 1
}
stop() {
    kill -TERM "$(sed -n 's/.*"pid": \([0-9]*\).*/\1/p' ready.json)"
    wait "$pid" && pid=''
}
direct() { "$loadgen" direct --node ready.json --ledger "$1" "${@:2}"; }
verify() { "$loadgen" verify --node ready.json --ledger "$@"; }
# expect WORD COMMAND...: COMMAND succeeds (yes) or fails (no).
expect() {
    local wanted=$1 got=yes
    shift
    "$@" || got=no
    [[ $got == "$wanted" ]] || {
        failed=$((failed + 1))
        echo "-- NOT AS PROMISED: $*"
    }
}

echo "== 500 users at 5,000/s, verified there and on an empty server"
serve steady
expect yes direct steady.jsonl --users 500 --rate 5000 --duration 20s
expect yes verify steady.jsonl
stop
serve empty
expect no verify steady.jsonl
stop

echo "== six times kill -9 under 4,000/s"
serve kills
direct kills.jsonl --users 500 --rate 4000 --duration 36s &
load=$!
for _ in 1 2 3 4 5 6; do
    sleep 5
    kill -9 "$pid"
    wait "$pid" 2>/dev/null || true
    serve kills
done
expect yes wait "$load"
expect yes verify kills.jsonl
stop

if ! strace -qq -o /dev/null true 2>/dev/null; then
    echo "SKIPPED: late and failing syncs: strace cannot trace here"
else
    echo "== every sync 50 ms late: the median ack takes at least as long"
    serve syncs strace -f -qq -o /dev/null -e trace=fdatasync,fsync \
        -e inject=fdatasync,fsync:delay_exit=50000
    expect yes direct late.jsonl --users 100 --rate 500 --duration 8s
    stop
    echo "== syncs fail from the 200th on: the server ends, and what was acked is there"
    serve syncs strace -f -qq -o /dev/null -e trace=fdatasync \
        -e inject=fdatasync:error=EIO:when=200+
    expect no direct failing.jsonl --users 100 --rate 500 --duration 8s --patience 5s
    expect no wait "$pid"
    serve syncs
    expect yes verify late.jsonl failing.jsonl
    stop
fi

if ! { truncate -s 300M image && mkfs.ext4 -q image && mkdir small && mount -o loop image small; }
then
    echo "SKIPPED: full disk: no file system of its own can be mounted here"
else
    echo "== the disk is full for five seconds"
    serve small/data
    direct full.jsonl --users 100 --rate 1000 --duration 24s --patience 40s &
    load=$!
    sleep 6
    dd if=/dev/zero of=small/filler bs=64k status=none 2>/dev/null || true
    sleep 0.5
    before=$(wc -l <full.jsonl)
    sleep 5
    echo "acks while it was full: $(($(wc -l <full.jsonl) - before))"
    rm small/filler
    expect yes wait "$load"
    expect yes verify full.jsonl
    stop
fi
echo "bars not met: $failed"
exit $((failed > 0))
