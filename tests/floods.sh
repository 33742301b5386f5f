#!/usr/bin/env bash
# Floods a fresh server in each way that `chatring-loadgen flood` knows, while others chat, and prints
# what became of the requests, what they cost the server and what the chat saw of them. Exits with 1
# if a request got an answer that it should not get, the chat had a fault, or the server took more
# than GROWTH_MIB_MAX of memory or THREADS_MORE_MAX threads for a flood.
#
#     tests/floods.sh [SECONDS]     12 s for each of ten: about 3 minutes
#
# The server's one shard has core 0, its other threads both, the generators core 1, where the chat
# comes first. 100 users, 500 texts of 20 bytes a second. TMPDIR, PROFILE and RESULT (keeps the
# reports): measure.sh.
set -euo pipefail
seconds=${1:-12}
source "$(dirname "$0")/measure.sh"
at_end() {
    [[ -z $flooding ]] || kill -9 "$flooding" 2>/dev/null
    [[ -z ${RESULT:-} ]] || cp -f flood-*.json load-*.json log "$RESULT" 2>/dev/null
}
GROWTH_MIB_MAX=128 THREADS_MORE_MAX=8
failed=0 flooding=''
printf "[server]\ntrusted_proxies = ['127.0.0.1']\n" >node.toml

# round NAME WORDS...: the chat on a fresh server beside a flood of these words; without any, alone.
round() {
    local name=$1 spent
    shift
    rm -rf data
    serve --config node.toml --data data --shards 1
    spent=$(ticks)
    if (($#)); then
        timeout $((seconds + 180)) nice -n 19 taskset -c 1 "$loadgen" flood --node ready.json \
            --duration "${seconds}s" --json "flood-$name.json" --kind "$@" >"flood-$name.log" 2>&1 &
        flooding=$!
    fi
    timeout $((seconds + 180)) taskset -c 1 "$loadgen" direct --node ready.json --users 100 \
        --rate 500 --body 20 --warmup 2s --duration "$((seconds - 3))s" \
        --json "load-$name.json" >"load-$name.log" 2>&1 || { failed=1; tail "load-$name.log"; }
    if [[ -n $flooding ]]; then
        wait "$flooding" || { failed=1; cat "flood-$name.log"; }
        flooding=''
    fi
    spent=$(($(ticks) - spent))
    python3 - "$name" "$spent" "$GROWTH_MIB_MAX" "$THREADS_MORE_MAX" <<'PYTHON' || failed=1
import json, os, sys
name, spent, growth_max, threads_max = sys.argv[1], *map(int, sys.argv[2:])
ack = json.load(open(f"load-{name}.json"))["ack"]
chat = f"{ack['p50'] / 1000:6.1f} {ack['p99'] / 1000:6.1f} {ack['max'] / 1000:6.1f}"
if not os.path.exists(f"flood-{name}.json"):
    print(f"{name:<15} {'':>9} {'':>7} {spent / 100:6.1f} {'':>9} {'':>7} {chat}  no flood")
    sys.exit()
flood = json.load(open(f"flood-{name}.json"))
node = flood["node"]
grown = (node["resident_kib_max"] - node["resident_kib"]) / 1024
threads = node["threads_max"] - node["threads"]
outcomes = ", ".join(f"{key}: {count}" for key, count in flood["outcomes"].items())
print(f"{name:<15} {flood['requests']:>9} {flood['requests'] / flood['took_s']:>7.0f} "
      f"{spent / 100:6.1f} {grown:>9.1f} {threads:>7} {chat}  {outcomes}")
sys.exit(grown > growth_max or threads > threads_max)
PYTHON
    stop
}

many=(--addresses 1000000)
echo "flood            requests     a s  CPU s  MiB more threads ack p50    p99 max ms  answers"
round none
round tokens tokens
round tokens-many tokens "${many[@]}"
round passwords passwords
round passwords-many passwords "${many[@]}" --connections 256
round sign-ups sign-ups
round sign-ups-many sign-ups "${many[@]}" --connections 256
round bodies bodies --count 1000 --connections 1000
round heads heads
round heads2 heads2
((failed == 0)) && echo "all as promised" || { echo "NOT AS PROMISED"; exit 1; }
