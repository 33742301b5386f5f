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
rounds=${1:-3} rate=${2:-10000}
source "$(dirname "$0")/measure.sh"
before=(taskset -c 0,1)

# load SHARDS NAME WORDS...: one load on a fresh server, and a line of the table.
load() {
    local shards=$1 name=$2
    rm -rf data
    serve --data data --shards "$shards"
    taskset -c 0,1 "$loadgen" direct --node ready.json --users 1000 --body 20 --warmup 2s \
        --duration 8s --json load.json "${@:3}" >load.log 2>&1 || { cat load.log; return 1; }
    local acked
    acked=$(figure acked)
    printf '%-7s %6d %8d %8d %8d %7.1f %7d %%\n' "$name" "$shards" "$(figure acked_per_s)" \
        "$(figure ack p50)" "$(figure ack p99)" \
        "$(awk "BEGIN { print $(ticks) * 10000 / $acked }")" "$(figure loadgen_cpu_percent)"
    stop
}

echo "load    shards  acked/s   p50 us   p99 us  us CPU gen CPU"
for ((round = 0; round < rounds; round++)); do
    for shards in 1 2; do
        load "$shards" closed --window 1
        load "$shards" given --rate "$rate"
    done
done
