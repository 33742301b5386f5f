#!/usr/bin/env bash
# Shows what becomes of a node as it ages: fills it with messages, with the rate, the latencies, the
# memory and the files of each round, kills it and times the start, and then lets it run on at 30 %
# of its rate. Only `day` judges; the tables are for docs/performance.md.
#
#     tests/aging.sh [MESSAGES [SECONDS]]     5,000,000 messages, then 600 s at 30 %
#     tests/aging.sh day [MINUTES [FILL]]     10,000,000 messages, then a day at 30 %, shortened to
#                                             32: exits with 1 if memory, files, bytes a message or
#                                             latencies grow
#
# The server has core 0 and one shard, the generator core 1; 1,000 users, texts of 20 bytes.
# RESULT names a folder in which the samples and the node's log of `day` stay; TMPDIR and PROFILE:
# measure.sh.
set -euo pipefail
mode=age
if [[ ${1:-} == day ]]; then
    mode=day
    shift
    minutes=${1:-32} fill=${2:-10000000}
fi
messages=${1:-5000000} seconds=${2:-600}
round_seconds=20
source "$(dirname "$0")/measure.sh"
before=(taskset -c 0)
total=0 rate=0

# Starts the server and prints how long it took to be ready, and its memory then.
begin() {
    local start=$EPOCHREALTIME
    serve --config node.toml --data data --shards 1
    echo "ready after $(((${EPOCHREALTIME/./} - ${start/./}) / 1000)) ms," \
        "memory $(memory VmRSS) MiB, at most $(memory VmHWM) MiB until then"
}
# Open files but those of tables at rest, which are as many as there are data.
files() { find "/proc/$pid/fd" -mindepth 1 ! -lname '*/tables/*' | wc -l; }
memory() { awk -v key="$1:" '$1 == key { print int($2 / 1024) }' "/proc/$pid/status"; }

# round NAME WORDS...: one load of the generator, and a line of the table.
round() {
    local name=$1 ticked
    ticked=$(ticks)
    taskset -c 1 "$loadgen" direct --node ready.json --users 1000 --body 20 --warmup 1s \
        --duration "${round_seconds}s" --json load.json "${@:2}" >load.log 2>&1 ||
        { cat load.log; return 1; }
    local acked
    acked=$(figure acked)
    total=$((total + acked)) rate=$(figure acked_per_s)
    printf '%-8s %9d %8d %8d %8d %9d %7.1f %7d %5d %8d\n' "$name" "$total" "$rate" \
        "$(figure ack p50)" "$(figure ack p99)" "$(figure ack max)" \
        "$(awk "BEGIN { print ($(ticks) - $ticked) * 10000 / $acked }")" "$(memory VmRSS)" \
        "$(files)" "$(du -sm data | cut -f1)"
}
# metric NAME: a figure of the node.
metric() {
    python3 -c 'import json, sys, urllib.request
url = json.load(open("ready.json"))["http"] + "/metrics"
text = urllib.request.urlopen(url, timeout=10).read().decode()
print(next(line.split()[1] for line in text.splitlines() if line.split()[0] == sys.argv[1]))' "$1"
}
held_up() { grep -c '"held up"' log || true; }
# What happens from time to time happens more often than else, some of it as often as in a day.
day() {
    cat >node.toml <<'TOML'
[limits]
audit = "2s"
heartbeat = "1s"
[store]
memtable_bytes = 8388608
cache_bytes = 8388608
[log]
format = "json"
TOML
    begin
    header
    # A store without tables merges next to nothing.
    while ((total < fill)); do round fill --window 1; done
    local offered=$((rate * 3 / 10))
    local start=$SECONDS at groups sum ticked held
    local columns=rss_mib,files,threads,log_mib,rows_bytes_a_message,ack_p50_us,ack_p99_us
    columns+=,write_mean_us,cpu_us
    echo "time_s,$columns,held_up_lines" >day.csv
    round_seconds=15
    while (((at = SECONDS - start) < minutes * 60)); do
        groups=$(metric chatring_store_write_seconds_count)
        sum=$(metric chatring_store_write_seconds_sum)
        ticked=$(ticks) held=$(held_up)
        round day --rate "$offered"
        python3 - "$groups" "$sum" "$(metric chatring_store_write_seconds_count)" \
            "$(metric chatring_store_write_seconds_sum)" "$((($(ticks) - ticked) * 10000))" "$at" \
            "$total" "$(du -sb data/rows | cut -f1)" "$(du -sm data/log | cut -f1)" \
            "$(figure ack p50)" "$(figure ack p99)" "$(figure acked)" "$(memory VmRSS)" \
            "$(files)" \
            "$(find "/proc/$pid/task" -mindepth 1 -maxdepth 1 | wc -l)" \
            "$(($(held_up) - held))" <<'PYTHON' >>day.csv
import sys
n0, s0, n1, s1, cpu, at, total, rows, log, p50, p99, acked, rss, files, threads, held = \
    map(float, sys.argv[1:])
print(at, rss, files, threads, log, rows / total, p50, p99, (s1 - s0) / max(n1 - n0, 1) * 1e6,
      cpu / acked, held, sep=",")
PYTHON
    done
    for name in groups commits ingestions stalls reads; do
        echo "$name $(metric "chatring_store_${name}_total")"
    done
    echo "audits $(metric chatring_audits_total)"
    echo "sign-ins $(metric chatring_sessions_attached_total)"
    [[ -z ${RESULT:-} ]] || cp day.csv log "$RESULT"
    # In the first tenth caches fill and what the closed loops left behind is worked off.
    "$loadgen" trend day.csv --skip "$((minutes * 6))" --flat "$columns" || status=1
}
header() {
    echo "load      messages  acked/s   p50 us   p99 us    max us  us CPU  RSS MiB files data MiB"
}

touch node.toml
if [[ $mode == day ]]; then
    status=0
    day
    stop
    exit "$status"
fi
begin
header
round closed --window 1
fresh=$rate
round half --rate "$((fresh / 2))"
while ((total < messages)); do round closed --window 1; done
round half --rate "$((fresh / 2))"

echo "kill -9 with $total messages stored"
kill -9 "$pid"
wait "$pid" 2>/dev/null || true
begin

header
round_seconds=60
for ((left = seconds; left > 0; left -= round_seconds)); do
    round "30 %" --rate "$((fresh * 3 / 10))"
done
stop
