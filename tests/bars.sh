#!/usr/bin/env bash
# Runs the promises under load with release builds and prints what came of them: a steady load and
# its verification, six kills under load, syncs that are late, syncs that fail, and a full disk.
#
#     tests/bars.sh            about two minutes once built; strace and root for the last three
set -euo pipefail
source "$(dirname "$0")/measure.sh"
failed=0
at_end() { umount -l small 2>/dev/null; }

# begin DATA [WORDS BEFORE THE SERVER...]: a server with two shards.
begin() {
    before=("${@:2}")
    serve --data "$1" --shards 2
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
begin steady
expect yes direct steady.jsonl --users 500 --rate 5000 --duration 20s
expect yes verify steady.jsonl
stop
begin empty
expect no verify steady.jsonl
stop

echo "== six times kill -9 under 4,000/s"
begin kills
direct kills.jsonl --users 500 --rate 4000 --duration 36s &
load=$!
for _ in 1 2 3 4 5 6; do
    sleep 5
    kill -9 "$pid"
    wait "$pid" 2>/dev/null || true
    begin kills
done
expect yes wait "$load"
expect yes verify kills.jsonl
stop

if ! strace -qq -o /dev/null true 2>/dev/null; then
    echo "SKIPPED: late and failing syncs: strace cannot trace here"
else
    echo "== every sync 50 ms late: the median ack takes at least as long"
    begin syncs strace -f -qq -o /dev/null -e trace=fdatasync,fsync \
        -e inject=fdatasync,fsync:delay_exit=50000
    expect yes direct late.jsonl --users 100 --rate 500 --duration 8s
    stop
    echo "== syncs fail from the 200th on: the server ends, and what was acked is there"
    begin syncs strace -f -qq -o /dev/null -e trace=fdatasync \
        -e inject=fdatasync:error=EIO:when=200+
    expect no direct failing.jsonl --users 100 --rate 500 --duration 8s --patience 5s
    expect no wait "$pid"
    begin syncs
    expect yes verify late.jsonl failing.jsonl
    stop
fi

if ! { truncate -s 300M image && mkfs.ext4 -q image && mkdir small && mount -o loop image small; }
then
    echo "SKIPPED: full disk: no file system of its own can be mounted here"
else
    echo "== the disk is full for five seconds"
    begin small/data
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
