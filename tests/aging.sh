#!/usr/bin/env bash
# Shows what becomes of a node as it ages: fills it with messages, with the rate, the latencies, the
# memory and the files of each round, kills it and times the start, and then lets it run on at 30 % of
# its rate. Nothing is judged here; the table is for docs/performance.md.
#
#     tests/aging.sh [MESSAGES [SECONDS]]     5,000,000 messages, then 600 s at 30 %: about 15 minutes
#
# The server has core 0 and one shard, the generator core 1; 1,000 users, texts of 20 bytes.
# TMPDIR names the file system.
set -euo pipefail
cd "$(dirname "$0")/.."
messages=${1:-5000000} seconds=${2:-600}
round_seconds=20
cargo build --release -p chatring-node -p chatring-loadgen
target=${CARGO_TARGET_DIR:-target}
server=$(realpath "$target/release/chatring") loadgen=$(realpath "$target/release/chatring-loadgen")
folder=$(mktemp -d)
cd "$folder"
pid='' total=0 rate=0
trap '[[ -z $pid ]] || kill -9 "$pid" 2>/dev/null; rm -rf "$folder"' EXIT

# Starts the server and prints how long it took to be ready, and its memory then.
serve() {
    local begin=$EPOCHREALTIME
    rm -f ready.json
    taskset -c 0 "$server" serve --data data --listen 127.0.0.1:0 --http 127.0.0.1:0 --shards 1 \
        --ready-file ready.json >>log 2>&1 &
    pid=$!
    for _ in $(seq 60000); do
        [[ ! -f ready.json ]] || break
        sleep 0.01
    done
    [[ -f ready.json ]] || { echo "the server does not become ready"; return 1; }
    echo "ready after $(((${EPOCHREALTIME/./} - ${begin/./}) / 1000)) ms," \
        "memory $(memory VmRSS) MiB, at most $(memory VmHWM) MiB until then"
}
memory() { awk -v key="$1:" '$1 == key { print int($2 / 1024) }' "/proc/$pid/status"; }
# CPU time of the server so far, in ticks of 10 ms.
ticks() { awk '{ sub(/.*\) /, ""); print $12 + $13 }' "/proc/$pid/stat"; }
# figure KEY [IN]: a number of the last round's result, of the object IN or of the whole.
figure() {
    python3 -c 'import json, sys
value = json.load(open("round.json"))
for key in sys.argv[1:]: value = value[key]
print(round(value))' "$@"
}

# round NAME WORDS...: one load of the generator, and a line of the table.
round() {
    local name=$1 before
    before=$(ticks)
    taskset -c 1 "$loadgen" direct --node ready.json --users 1000 --body 20 --warmup 1s \
        --duration "${round_seconds}s" --json round.json "${@:2}" >round.log 2>&1 ||
        { cat round.log; return 1; }
    local acked
    acked=$(figure acked)
    total=$((total + acked)) rate=$(figure acked_per_s)
    printf '%-8s %9d %8d %8d %8d %9d %7.1f %7d %5d %8d\n' "$name" "$total" "$rate" \
        "$(figure ack p50)" "$(figure ack p99)" "$(figure ack max)" \
        "$(awk "BEGIN { print ($(ticks) - $before) * 10000 / $acked }")" "$(memory VmRSS)" \
        "$(find "/proc/$pid/fd" -mindepth 1 | wc -l)" "$(du -sm data | cut -f1)"
}
header() {
    echo "load      messages  acked/s   p50 us   p99 us    max us  us CPU  RSS MiB files data MiB"
}

serve
header
round closed --window 1
fresh=$rate
round half --rate "$((fresh / 2))"
while ((total < messages)); do round closed --window 1; done
round half --rate "$((fresh / 2))"

echo "kill -9 with $total messages stored"
kill -9 "$pid"
wait "$pid" 2>/dev/null || true
serve

header
round_seconds=60
for ((left = seconds; left > 0; left -= round_seconds)); do
    round "30 %" --rate "$((fresh * 3 / 10))"
done
kill -TERM "$pid"
wait "$pid" && pid=''
