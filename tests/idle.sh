#!/usr/bin/env bash
# What idle sessions cost: resident memory of the server for each, and its CPU for all of them.
#
#     tests/idle.sh [SESSIONS [ROUNDS]]     8,000 sessions, 3 rounds: about 3 minutes
#
# All users sign in once; then a fresh start of the server on the same folder, on core 0 with one
# shard, holds 500 sessions and afterwards all of them. The difference in memory, divided by that in
# sessions, is what one takes; so what a server takes by itself is not in it, nor rows in the
# memtable. CPU is that of 16 s with all of them: heartbeats, ticks and audits.
set -euo pipefail
sessions=${1:-8000} rounds=${2:-3} few=500
source "$(dirname "$0")/measure.sh"
before=(taskset -c 0)
at_end() { [[ -z ${load:-} ]] || kill "$load" 2>/dev/null; }

connected() {
    local http
    http=$(sed -n 's/.*"http": *"\([^"]*\)".*/\1/p' ready.json)
    curl -s "$http/metrics" | awk '$1 == "chatring_gateway_connections" { print $2 }'
}
resident() { awk '/^VmRSS/ { print $2 }' "/proc/$pid/status"; }

# held SESSIONS: holds so many, and tells resident KiB and ticks of CPU in 16 s.
held() {
    taskset -c 1 "$loadgen" idle --node ready.json --users "$1" --hold 26s >idle.log 2>&1 &
    load=$!
    until [[ $(connected) == "$1" ]]; do
        kill -0 "$load" 2>/dev/null || { cat idle.log; return 1; }
        sleep 0.1
    done
    # What came with the connecting is over by then.
    sleep 5
    local from
    from=$(ticks)
    sleep 16
    cpu=$(($(ticks) - from)) memory=$(resident)
    wait "$load" || { cat idle.log; return 1; }
    load=''
}

echo "round  bytes a session  % of a core for $sessions"
for ((round = 1; round <= rounds; round++)); do
    rm -rf data
    serve --data data --shards 1
    taskset -c 1 "$loadgen" idle --node ready.json --users "$sessions" --hold 1s >idle.log 2>&1
    stop
    serve --data data --shards 1
    held "$few"
    least=$memory
    held "$sessions"
    bytes=$(((memory - least) * 1024 / (sessions - few)))
    printf '%5d %16d %20s\n' "$round" "$bytes" "$(awk "BEGIN { print $cpu / 16 }")"
    stop
done
