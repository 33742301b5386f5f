#!/usr/bin/env bash
# Compares one shard with two: the rate of a closed loop, and the CPU of the server for each message
# at a given rate, in alternating rounds. With two shards half of the pairs of users lie on different
# shards, so what a message costs more there is half of what a hop between shards costs.
#
#     tests/shards.sh [ROUNDS [RATE]]     3 rounds, 10,000/s: about 2 minutes
#
# The server has cores 0 and 1, and so has the generator: where there are no more, it takes from the
# server what the column "gen CPU" says. 1,000 users, texts of 20 bytes.
set -euo pipefail
cd "$(dirname "$0")/.."
rounds=${1:-3} rate=${2:-10000}
cargo build --release -p chatring-node -p chatring-loadgen
target=${CARGO_TARGET_DIR:-target}
server=$(realpath "$target/release/chatring") loadgen=$(realpath "$target/release/chatring-loadgen")
folder=$(mktemp -d)
cd "$folder"
pid=''
trap '[[ -z $pid ]] || kill -9 "$pid" 2>/dev/null; rm -rf "$folder"' EXIT

# CPU time of a process so far, in ticks of 10 ms.
ticks() { awk '{ sub(/.*\) /, ""); print $12 + $13 }' "/proc/$1/stat"; }
figure() {
    python3 -c 'import json, sys
value = json.load(open("load.json"))
for key in sys.argv[1:]: value = value[key]
print(round(value))' "$@"
}

# load SHARDS NAME WORDS...: one load on a fresh server, and a line of the table.
load() {
    local shards=$1 name=$2
    rm -rf data ready.json
    taskset -c 0,1 "$server" serve --data data --listen 127.0.0.1:0 --http 127.0.0.1:0 \
        --shards "$shards" --ready-file ready.json >>log 2>&1 &
    pid=$!
    for _ in $(seq 600); do
        [[ ! -f ready.json ]] || break
        sleep 0.05
    done
    taskset -c 0,1 "$loadgen" direct --node ready.json --users 1000 --body 20 --warmup 2s \
        --duration 8s --json load.json "${@:3}" >load.log 2>&1 || { cat load.log; return 1; }
    local acked
    acked=$(figure acked)
    printf '%-7s %6d %8d %8d %8d %7.1f %7d %%\n' "$name" "$shards" "$(figure acked_per_s)" \
        "$(figure ack p50)" "$(figure ack p99)" \
        "$(awk "BEGIN { print $(ticks "$pid") * 10000 / $acked }")" "$(figure loadgen_cpu_percent)"
    kill -TERM "$pid"
    wait "$pid" && pid=''
}

echo "load    shards  acked/s   p50 us   p99 us  us CPU gen CPU"
for ((round = 0; round < rounds; round++)); do
    for shards in 1 2; do
        load "$shards" closed --window 1
        load "$shards" given --rate "$rate"
    done
done
