# Sourced by the scripts beside it that start a server and put load on it. Builds both, goes to a
# folder of its own below TMPDIR, and ends and removes at the end what it has started and made.
#
# PROFILE names how they are built: release, or dist, the profile of published figures.
# RESULT names a folder for what a script keeps.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
profile=${PROFILE:-release}
cargo build --profile "$profile" -p chatring-node -p chatring-loadgen
built=${CARGO_TARGET_DIR:-target}/$profile
server=$(realpath "$built/chatring") loadgen=$(realpath "$built/chatring-loadgen")
[[ -z ${RESULT:-} ]] || { mkdir -p "$RESULT" && RESULT=$(realpath "$RESULT"); }
folder=$(mktemp -d)
cd "$folder"
# The job that is or runs the server; what stands before its command.
pid='' before=()
trap 'at_end || true; [[ -z $pid ]] || kill -9 "$pid" 2>/dev/null; rm -rf "$folder"' EXIT
# What a script does before that.
at_end() { :; }

# serve FLAGS...: starts a server with these flags and waits until it is ready.
serve() {
    rm -f ready.json
    "${before[@]}" "$server" serve --listen 127.0.0.1:0 --http 127.0.0.1:0 \
        --ready-file ready.json "$@" >>out 2>>log &
    pid=$!
    for _ in $(seq 6000); do
        [[ ! -f ready.json ]] || return 0
        sleep 0.01
    done
    echo "the server does not become ready"
    tail log
    return 1
}
# The server's own process, which is another one than the job if something stands before it.
server_pid() { sed -n 's/.*"pid": *\([0-9]*\).*/\1/p' ready.json; }
stop() {
    kill -TERM "$(server_pid)"
    wait "$pid" && pid=''
}
# CPU time of the server so far, in ticks of 10 ms.
ticks() { awk '{ sub(/.*\) /, ""); print $12 + $13 }' "/proc/$pid/stat"; }
# figure KEY [IN]: a number of the last load's report load.json, of the object IN or of the whole.
figure() {
    python3 -c 'import json, sys
value = json.load(open("load.json"))
for key in sys.argv[1:]: value = value[key]
print(round(value))' "$@"
}
