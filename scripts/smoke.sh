#!/bin/sh
# smoke.sh URL [API_KEY] - checks a running daemon with nothing but curl, and says what failed.
# Exits 0 when every check passed.
set -u
url=${1:?usage: smoke.sh URL [API_KEY]}
key=${2:-}
url=${url%/}
failed=0
body=$(mktemp)
trap 'rm -f "$body"' EXIT

# request METHOD PATH [JSON]: the answer's body goes to $body, its status to $status.
request() {
    method=$1 path=$2 json=${3:-}
    set -- -sS --max-time 120 -o "$body" -w '%{http_code}' -X "$method" "$url$path"
    [ -z "$key" ] || set -- "$@" -H "Authorization: Bearer $key"
    [ -z "$json" ] || set -- "$@" -H 'Content-Type: application/json' -d "$json"
    status=$(curl "$@" 2>>"$body") || status=000
}

# check NAME STATUS PATTERN: of the last request.
check() {
    if [ "$status" = "$2" ] && grep -q -e "$3" "$body"; then
        echo "ok    $1"
    else
        failed=$((failed + 1))
        echo "FAIL  $1: status $status (wanted $2), body without '$3':"
        head -c 600 "$body"
        echo
    fi
}

request GET /livez;                                    check "process is alive" 200 ''
request GET /readyz;                                   check "ready to serve" 200 ''
request GET /health;                                   check "health" 200 ''
request GET /version;                                  check "version" 200 '"version"'
request GET /v1/models;                                check "lists a model" 200 '"object": *"model"'
model=$(sed -n 's/.*"data": *\[{"id": *"\([^"]*\)".*/\1/p' "$body" | head -n 1)
request POST /tokenize "{\"model\":\"$model\",\"prompt\":\"smoke test\"}"
prompt='"Hello"'
if grep -q 'no tokenizer' "$body"; then echo "skip  tokenizes: the model has no tokenizer, prompts are token ids"; prompt='[1,2,3]'
else check "tokenizes" 200 '"tokens"'; fi
request POST /v1/completions "{\"model\":\"$model\",\"prompt\":$prompt,\"max_tokens\":4,\"temperature\":0}"
check "completes a prompt" 200 '"finish_reason": *"\(length\|stop\)"'
request POST /v1/completions "{\"model\":\"$model\",\"prompt\":$prompt,\"max_tokens\":4,\"stream\":true}"
check "streams to the end" 200 '^data: \[DONE\]'
request POST /v1/chat/completions "{\"model\":\"$model\",\"max_tokens\":4,\"messages\":[{\"role\":\"user\",\"content\":\"Hello\"}]}"
if grep -q 'chat template' "$body"; then echo "skip  chat: the model has no chat template"
else check "answers a chat" 200 '"role": *"assistant"'; fi
request POST /v1/completions '{"prompt":'
check "refuses broken JSON" 400 '"error"'
request GET /no-such-path;                             check "unknown path is 404" 404 '"error"'
request GET /metrics;                                  check "exports metrics" 200 '^dakd_generation_tokens_total'

[ "$failed" = 0 ] || { echo "$failed checks failed against $url" >&2; exit 1; }
echo "all checks passed against $url"
