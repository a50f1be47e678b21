"""Starting and stopping: signals, drains, and command lines that must fail with a sentence."""

import concurrent.futures
import signal
import socket
import time

import pytest

from daemon import MODEL, ROOT, Daemon, parse_events, run, text_of


def model_limit(daemon):
    return daemon.request("GET", "/v1/models")[1]["data"][0]["max_model_len"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_idle_stop(number):
    daemon = Daemon()
    assert daemon.stop(number) == 0


def test_drain_finishes_a_stream_and_refuses_new_requests(start):
    daemon = start("--max-num-batched-tokens", 16, "--shutdown-timeout", 600)
    body = {"prompt": "dakd", "max_tokens": min(600, model_limit(daemon) - 16), "ignore_eos": True, "temperature": 0,
            "stream": True}
    streaming, idle = daemon.connect(), daemon.connect()
    response = daemon.send(streaming, "POST", "/v1/completions", body)
    first = response.read1(10)
    daemon.process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + 30
    while True:  # the listening socket is closed
        try:
            socket.create_connection(("127.0.0.1", daemon.port), timeout=5).close()
        except ConnectionRefusedError:
            break
        except ConnectionResetError:
            pass  # closed while this one was in its queue: the next is refused
        assert time.monotonic() < deadline
        time.sleep(0.01)
    chunks = parse_events((first + response.read()).decode())
    idle.close()
    streaming.close()
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert text_of(chunks)
    assert daemon.wait() == 0


def test_impatient_drain_tells_its_clients(start):
    """At the end of --shutdown-timeout a stream ends with an error its reader can see."""
    daemon = start("--shutdown-timeout", 0.1, "--max-num-batched-tokens", 16, "--max-num-seqs", 1)
    limit = model_limit(daemon)
    body = {"prompt": "dakd", "max_tokens": limit - 16, "ignore_eos": True, "stream": True, "n": 8}
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        connection = daemon.connect()
        response = daemon.send(connection, "POST", "/v1/completions", body)
        reading = pool.submit(response.read)
        daemon.process.send_signal(signal.SIGTERM)
        chunks = parse_events(reading.result().decode())
        connection.close()
    assert chunks[-1]["error"]["type"] == "unavailable_error"
    assert daemon.wait() == 0


def test_two_signals_end_at_once(start):
    daemon = start("--shutdown-timeout", 600, "--max-num-batched-tokens", 16, "--max-num-seqs", 1)
    body = {"prompt": "dakd", "max_tokens": model_limit(daemon) - 16, "ignore_eos": True, "stream": True, "n": 8}
    connection = daemon.connect()
    response = daemon.send(connection, "POST", "/v1/completions", body)
    response.read1(1)
    daemon.process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    assert daemon.stop(signal.SIGTERM) == 0
    connection.close()


def test_port_in_use(dakd):
    done = run("serve", MODEL, "--port", dakd.port)
    assert done.returncode == 1
    assert str(dakd.port) in done.stdout and "in use" in done.stdout
    assert "tier " not in done.stdout, "found before the model was loaded"


def test_port_file_that_cannot_be_written(tmp_path):
    done = run("serve", MODEL, "--port", 0, "--port-file", tmp_path / "missing" / "port")
    assert done.returncode == 1
    assert "--port-file" in done.stdout and "tier " not in done.stdout


@pytest.mark.parametrize("flags,word", [
    (["--no-such-flag", "1"], "--no-such-flag"),
    (["--port", "x"], "--port"),
    (["--port", "70000"], "--port"),
    (["--max-num-seqs", "0"], "--max-num-seqs"),
    (["--max-num-seqs"], "--max-num-seqs"),
    (["--offload", "2"], "--offload"),
    (["--dtype", "int3"], "--dtype"),
    (["--log-level", "loud"], "--log-level"),
])
def test_bad_flags(flags, word):
    done = run("serve", MODEL, *flags)
    assert done.returncode == 2 and word in done.stdout


@pytest.mark.parametrize("flags,sentence", [
    (["-p", "8000"], "unknown flag -p; see dakd serve --help"),
    (["--config", "/nonexistent"], "--config /nonexistent: No such file or directory"),
    (["--offload", 0.3], "--offload 0.3 needs a remote tier: --remote host:SIZE"),
    (["--offload", 0.3, "--remote", "host:1GiB"], "--offload 0.3 would move weights out of local memory, where the model "
     "fits whole with its KV cache: leave it out, or add --force-offload"),
    (["--force-offload"], "--force-offload is of a share: say which with --offload, such as 0.1"),
    (["--remote", "disk:4GiB"], "--remote: 'disk:4GiB' is neither host:SIZE nor peer:DEVICE:SIZE"),
    (["--remote", "peer:4GiB"], "--remote: 'peer:4GiB' does not name a device: write peer:DEVICE:SIZE with DEVICE 0..255"),
    (["--remote", "host:much"], "--remote: 'much' in 'host:much' is not a size such as 64GiB"),
    (["--offload", 0.5, "--force-offload", "--remote", "host:64KiB"], " in tier host: 64.00 KiB of 64.00 KiB are free; "
     "lower --offload, or make that tier larger in --remote"),
    (["--chat-template", "/nonexistent"], "--chat-template /nonexistent: No such file or directory"),
    (["--seed", -1], "--seed must be between 0 and 9007199254740992, not -1"),
])
def test_what_is_refused_is_said_in_a_sentence(flags, sentence):
    done = run("serve", MODEL, "--device", "cpu", "--port", 0, *flags)
    last = done.stdout.rstrip("\n").split("\n")[-1]
    assert done.returncode in (1, 2) and last.endswith(sentence), done.stdout


@pytest.mark.parametrize("settings,sentence", [
    ('{"prot": 8000}', '"prot" is not a setting; see dakd serve --help'),
    ('{"port": [1]}', '"port" must be a string or a number'),
    ('{"port": "x"}', '"port": \'x\' is not a whole number'),
    ('{"model": 5}', '"model" must be a string'),
    ('{"port": 1,}', "not valid JSON at line 1 column 12: a key in quotes was expected"),
])
def test_bad_settings_are_named(tmp_path, settings, sentence):
    path = tmp_path / "settings.json"
    path.write_text(settings)
    done = run("serve", MODEL, "--config", path)
    assert done.returncode == 2 and done.stdout.rstrip("\n").endswith(f"{path}: {sentence}"), done.stdout


def test_bad_model_folders(tmp_path):
    assert "it has no config.json" in run("serve", tmp_path, "--port", 0).stdout
    for folder in (tmp_path / "missing", tmp_path):
        done = run("serve", folder, "--port", 0)
        assert done.returncode == 1 and str(folder) in done.stdout
    (tmp_path / "config.json").write_text("{")
    (tmp_path / "tokenizer.json").write_text("{}")
    done = run("serve", tmp_path, "--port", 0)
    assert done.returncode == 1 and str(tmp_path) in done.stdout


def test_context_larger_than_the_model(start):
    done = run("serve", MODEL, "--port", 0, "--max-model-len", 10**7)
    assert done.returncode == 1 and "max-model-len" in done.stdout


def test_gpu_memory_is_not_the_cpus():
    done = run("serve", MODEL, "--port", 0, "--device", "cpu", "--gpu-memory-utilization", 0.5)
    assert done.returncode == 1 and "--gpu-memory-utilization" in done.stdout


def test_help_and_version():
    assert "--max-num-seqs" in run("serve", "--help").stdout
    assert run("--version").stdout.startswith("dakd ")
    assert run("--help").returncode == 0
    assert run("no-such-command").returncode == 2


def test_served_model_names(start):
    daemon = start("--served-model-name", "one,two")
    assert [m["id"] for m in daemon.request("GET", "/v1/models")[1]["data"]] == ["one", "two"]
    assert daemon.completion(model="two", prompt="a", max_tokens=1)["model"] == "two"
    assert daemon.completion(prompt="a", max_tokens=1)["model"] == "one"
    assert daemon.request("POST", "/v1/completions", {"model": "demo-model", "prompt": "a"})[0] == 404


def test_nothing_is_left_in_memory(start):
    """Requests come and go; a sanitizer build reports what they leave behind when it exits."""
    daemon = start()
    for body in ({"prompt": "a", "max_tokens": 3}, {"prompt": "a", "temperature": 9}, {"prompt": "a", "n": 3, "max_tokens": 2},
                 {"prompt": "a", "stop": ["b", "c"], "logit_bias": {"1": 2}, "max_tokens": 2}):
        daemon.request("POST", "/v1/completions", body)
    daemon.wait_idle()
    assert daemon.stop() == 0
    assert "ERROR: " not in daemon.log()


def test_without_a_tokenizer(start):
    """Shapes alone (--load-format dummy): prompts and answers are token ids, and all else says why not."""
    daemon = start("--load-format", "dummy", model=ROOT / "tests" / "fixtures" / "models" / "llama-gqa")
    body = {"prompt": [1, 2, 3], "max_tokens": 4, "temperature": 0, "ignore_eos": True, "logprobs": 1}
    choice = daemon.completion(**body)["choices"][0]
    assert len(choice["token_ids"]) == 4 and choice["text"] == "" and choice["prompt_token_ids"] == [1, 2, 3]
    assert choice["logprobs"]["tokens"] == [f"token_id:{i}" for i in choice["token_ids"]]
    streamed = [i for chunk in daemon.stream("/v1/completions", body) for c in chunk["choices"] for i in c["token_ids"]]
    assert streamed == choice["token_ids"]
    for path, wrong, word in (("/v1/completions", {"prompt": "text"}, "no tokenizer"),
                              ("/v1/completions", {"prompt": [1], "stop": "x"}, "no tokenizer"),
                              ("/tokenize", {"prompt": "text"}, "no tokenizer"),
                              ("/detokenize", {"tokens": [1]}, "no tokenizer"),
                              ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}, "chat template")):
        status, answer, _ = daemon.request("POST", path, wrong)
        assert status == 400 and word in answer["error"]["message"] and answer["error"]["code"] == "not_supported"
