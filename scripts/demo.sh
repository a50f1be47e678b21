#!/bin/sh
# demo.sh DAKD - starts the daemon on the demo model, asks one streamed chat question with curl, prints the answer, stops.
set -eu
dakd=$1
cd "$(dirname "$0")/.."

work=$(mktemp -d)
pid=
stop() {
    [ -z "$pid" ] || { kill -TERM "$pid" 2>/dev/null && wait "$pid" || true; }
    rm -rf "$work"
}
trap stop EXIT
trap 'exit 1' INT TERM

"$dakd" serve config/demo-model --port 0 --port-file "$work/port" >"$work/log" 2>&1 &
pid=$!
tries=0
until [ -s "$work/port" ]; do
    kill -0 "$pid" 2>/dev/null || { cat "$work/log" >&2; echo "demo: the daemon did not start" >&2; pid=; exit 1; }
    tries=$((tries + 1))
    [ "$tries" -lt 300 ] || { cat "$work/log" >&2; echo "demo: the daemon is not ready after 30 s" >&2; exit 1; }
    sleep 0.1
done
url=http://127.0.0.1:$(cat "$work/port")

question="What is dakd?"
echo "$ dakd serve config/demo-model"
echo "$ curl -N $url/v1/chat/completions -d '{\"messages\": [{\"role\": \"user\", \"content\": \"$question\"}], \"stream\": true, ...}'"
echo
curl -sS -N --fail-with-body "$url/v1/chat/completions" -H 'Content-Type: application/json' \
    -d "{\"model\": \"demo-model\", \"stream\": true, \"temperature\": 0, \"max_tokens\": 120,
         \"messages\": [{\"role\": \"user\", \"content\": \"$question\"}]}" >"$work/stream" ||
    { cat "$work/stream" "$work/log" >&2; echo "demo: the request failed" >&2; exit 1; }
grep -q '^data: \[DONE\]' "$work/stream" || { cat "$work/stream" >&2; echo "demo: the stream broke off" >&2; exit 1; }

echo "you:  $question"
printf 'dakd: '
# Each event holds one piece of the answer; python3 puts them together.
python3 - "$work/stream" <<'PY'
import json, sys
for line in open(sys.argv[1], encoding="utf-8"):
    if line.startswith("data: {"):
        for choice in json.loads(line[6:])["choices"]:
            sys.stdout.write(choice["delta"].get("content") or "")
print()
PY

kill -TERM "$pid"
status=0
wait "$pid" || status=$?
pid=
[ "$status" = 0 ] || { cat "$work/log" >&2; echo "demo: the daemon ended with status $status" >&2; exit 1; }
cat <<EOT

The daemon was stopped cleanly.  To go on:
  make run                                   serve the demo model on http://127.0.0.1:8000
  build/dakd serve MODEL_DIR                 serve a Hugging Face model folder
  build/dakd serve --help                    every flag
EOT
