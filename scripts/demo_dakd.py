"""What the demo model knows about dakd: its commands, flags, terms and habits.

Same form as demo_facts.py: FLAGS and TERMS are tables joined with question patterns in RELATIONS;
INTENTS are questions that stand alone, each a list of patterns, one answer and a brief answer.
[a|b|c] draws one alternative. Every question names enough of its subject to have one answer.
"""

from demo_facts import table

FLAGS = table("""
flag|bare|phrase|effect|example
--host|host|the address to listen on|sets the address that dakd listens on; the default is 127.0.0.1|dakd serve MODEL_DIR --host 0.0.0.0
--port|port|the port|sets the TCP port that dakd listens on; the default is 8000|dakd serve MODEL_DIR --port 9000
--api-key|api key|an API key|makes clients send a key with every request; without the key they get a 401|dakd serve MODEL_DIR --api-key SECRET
--served-model-name|served model name|the name of the model that clients see|sets the model name that clients see and send|dakd serve MODEL_DIR --served-model-name demo
--max-model-len|max model len|the longest context|limits the tokens of one request, prompt and answer together|dakd serve MODEL_DIR --max-model-len 4096
--max-num-seqs|max num seqs|the number of requests in a batch|limits how many requests run in one batch|dakd serve MODEL_DIR --max-num-seqs 64
--max-num-batched-tokens|max num batched tokens|the number of tokens in one step|limits the tokens that one step computes, so that long prompts are split into chunks|dakd serve MODEL_DIR --max-num-batched-tokens 2048
--gpu-memory-utilization|gpu memory utilization|the share of GPU memory to use|sets the share of GPU memory that dakd may use|dakd serve MODEL_DIR --gpu-memory-utilization 0.9
--kv-cache-dtype|kv cache dtype|the number format of the KV cache|sets the number format in which keys and values are stored|dakd serve MODEL_DIR --kv-cache-dtype fp8
--load-format|load format|random weights instead of real ones|chooses how weights are loaded; the value dummy fills real shapes with random weights for measuring|dakd serve MODEL_DIR --load-format dummy
--seed|seed|the random seed|sets the random seed, so that sampling can be repeated|dakd serve MODEL_DIR --seed 7
--chat-template|chat template|another chat template|replaces the chat template of the model with one from a file|dakd serve MODEL_DIR --chat-template FILE
--config|config|a configuration file|reads settings from a JSON file with the same keys as the flags|dakd serve MODEL_DIR --config dakd.json
--remote|remote|the remote tier|names the remote tier, such as pinned host memory or the memory of another GPU|dakd serve MODEL_DIR --remote host
--offload|offload|how much of the model is offloaded|says how much of the model is placed in the remote tier; otherwise the planner decides|dakd serve MODEL_DIR --offload 0.3
--offload-mode|offload mode|the way remote bytes are read|chooses how remote bytes are read: direct, prefetch, uva or auto; the default is auto|dakd serve MODEL_DIR --offload-mode direct
--congestion-control|congestion control|the congestion controller|chooses the congestion controller: off, static or adaptive|dakd serve MODEL_DIR --congestion-control adaptive
--shutdown-timeout|shutdown timeout|the time that running requests get at shutdown|sets how long running requests may finish after a stop signal|dakd serve MODEL_DIR --shutdown-timeout 30
""")

TERMS = table("""
term|meaning
HBM|the GPU's own memory: it is fast, several terabytes a second, but small
TMA|the Tensor Memory Accelerator, a unit of the GPU that copies blocks of memory into shared memory
SMEM|shared memory, the small and very fast memory inside each multiprocessor of the GPU
an SM|a streaming multiprocessor, one of the many cores of a GPU
PCIe|the bus that joins the GPU to the host; it moves about fifty gigabytes a second
NVLink|a fast link between GPUs that moves hundreds of gigabytes a second
the KV cache|the memory that keeps the keys and values of earlier tokens, so that they are computed once
a KV page|the keys and values of 64 tokens in one layer
a tier|a place where weights and KV pages can live, such as HBM, pinned host memory or another GPU
the remote tier|memory outside the GPU: pinned host memory or another GPU's memory
pinned memory|host memory that the system never moves, so that the GPU can read it directly
a block|the unit of storage in dakd: 16 KB that one TMA copy brings into shared memory
the planner|the part of dakd that decides at start-up how much of each layer lives in the remote tier
the congestion controller|the part of dakd that limits the remote bytes in flight so that HBM does not stall
the scheduler|the part of dakd that picks the requests and tokens for each step
the sampler|the part of dakd that picks the next token from the scores of the model
the tokenizer|the part of dakd that turns text into tokens and tokens into text
the probe|the part of dakd that measures the bandwidth of each tier
a token|a piece of text, often a word or part of a word, that the model reads as one number
prefill|the phase in which the model reads the whole prompt
decode|the phase in which the model writes the answer, one token at a time
chunked prefill|reading a long prompt in pieces, so that other requests do not have to wait
continuous batching|adding requests to the running batch, and taking finished ones out, at every step
a batch|the requests that are computed together in one step
the context length|the number of tokens that a model can read and write in one request
a chat template|a small program that turns chat messages into one prompt
streaming|sending each piece of the answer to the client as soon as it is made
SSE|server-sent events, the way in which dakd streams answers over HTTP
direct access|reading remote memory straight into shared memory, without a copy in HBM
prefetching|copying remote bytes into HBM before a layer needs them
offloading|keeping a part of the model in memory outside the GPU
the window|the number of remote bytes that may be in flight at once
the free fraction|the share of the model that can be remote without making decoding slower
read amplification|reading the same remote bytes more than once
multicast|sending the same bytes to several multiprocessors at once
a CUDA graph|a recorded chain of GPU work that is started with one call
quantisation|storing numbers with fewer bits, so that fewer bytes must be read
a logit|the score that the model gives to a token before sampling
temperature|a number that says how random sampling is; at 0 the best token always wins
top-p|sampling only from the best tokens whose chances add up to p
a stop sequence|a text that ends the answer when the model writes it
greedy decoding|always taking the token with the highest score
GQA|grouped-query attention, in which several query heads share one key and value head
RoPE|rotary position embedding, which tells the model where each token stands
attention|the part of a model in which each token looks back at the earlier ones
an embedding|the list of numbers that stands for a token inside the model
TTFT|the time to first token, from the request to the first piece of the answer
TPOT|the time per output token after the first one
bf16|a number format of 16 bits with the range of fp32
fp8|a number format of 8 bits that halves the bytes of bf16
safetensors|the file format in which the weights of a model are stored
the CPU backend|the reference in C that runs dakd on a machine without a GPU
""")

RELATIONS = [
    ("flags", FLAGS,
     ["What does [|the flag |the option ]{flag} do?", "What is {flag}[| for]?",
      "[Explain|Describe] [|the flag |the option ]{flag}.", "Tell me about {flag}.", "{flag}",
      "[When would|Why should] I use {flag}?", "What does {bare} mean in dakd?",
      "What is the [flag|option|setting] {flag} [for|about]?", "What does {flag} [set|mean]?",
      "Can you explain {flag} to me?", "What is the meaning of {flag}?",
      "[I do not understand|What about] {flag}."],
     "The flag {flag} {effect}.", "It {effect}."),
    ("flags", FLAGS,
     ["How do I [set|change|choose|configure] {phrase}?",
      "Which [flag|option] [sets|changes|chooses] {phrase}?",
      "[Give|Show] [me |]an example of {flag}.", "How do I use {flag}?",
      "How can I [set|change|choose] {phrase}[| in dakd]?", "I want to [set|change] {phrase}.",
      "Is there [a flag|an option] for {phrase}?", "What do I type to set {phrase}?"],
     "Use the flag {flag}, for example: {example}", "{example}"),
    ("terms of dakd", TERMS,
     ["What is {term}?", "What's {term}?", "[Explain|Define|Describe] {term}.",
      "What does {term} mean?", "Tell me about {term}.", "What is meant by {term}?",
      "Can you explain {term}[| to me]?", "What do you know about {term}?",
      "Do you know what {term} is?", "{term}", "What is {term} in dakd?",
      "I have heard of {term}. What is it?", "In dakd, what is {term}?",
      "How would you explain {term}?"],
     "{Term} is {meaning}.", "{Meaning}."),
]

START = "[start|run|launch|start up|use|serve a model with]"
I = "[I|we|you|one]"
DAKD = "[dakd|the daemon|the server]"
CAN = "[can|could|do|should|would]"

INTENTS = [
    (["What is dakd?", "What's dakd?", "Tell me [|something |more ]about dakd.", "[Explain|Describe] dakd.",
      "What does dakd do?", "dakd", "What is dakd [for|good for|about]?", "Who or what is dakd?",
      "What kind of program is dakd?", "Can you explain dakd[| to me]?", "Introduce dakd.",
      "What do you know about dakd?", "Give me a summary of dakd.", "In short, what is dakd?"],
     "dakd is a daemon that serves large language models on one GPU whose memory is too small for "
     "them. Weights and KV pages that do not fit stay in a remote tier, and kernels read them there "
     "directly.", "A daemon that serves models larger than GPU memory."),
    ([f"How {CAN} {I} {START} {DAKD}?", f"What is the command to {START} {DAKD}?",
      f"Show me how to {START} {DAKD}.", f"How is {DAKD} started?", f"[I want|I would like] to {START} {DAKD}.",
      f"[Tell me|Explain] how to {START} {DAKD}.", f"How does one {START} {DAKD}?",
      "How do I serve a model?", "How can I serve a model?", "What does dakd serve do?",
      "Explain dakd serve.", "What is dakd serve?", "What is the command serve for?"],
     "Start it with: dakd serve MODEL_DIR. It then listens on 127.0.0.1:8000.",
     "dakd serve MODEL_DIR"),
    ([f"How {CAN} {I} [stop|shut down|end|quit] {DAKD}?", f"[Tell me|Explain] how to [stop|shut down] {DAKD}.",
      f"What is the way to [stop|end|shut down] {DAKD}?", "What happens on SIGTERM?",
      "What does dakd do when it gets a stop signal?"],
     "Send it SIGTERM or press Ctrl-C: it stops taking requests, lets the running ones finish, and "
     "ends.", "Send SIGTERM."),
    (["What does dakd plan do?", "What is dakd plan[| for]?", "[Explain|Describe] dakd plan.",
      "What is the command plan for?", "[How|Where] can I see the plan[| before I start]?",
      "How do I see where the weights would go?", "Which command shows the plan?",
      "How can I plan without a GPU?", "Does dakd plan read the weights?"],
     "The command dakd plan MODEL_DIR shows what the planner would place in each tier and the speed "
     "it predicts. It reads no weights.", "It shows the placement and the predicted speed."),
    (["What does dakd probe do?", "What is dakd probe[| for]?", "[Explain|Describe] dakd probe.",
      "What is the command probe for?", "How [do|can] I measure [the link|the tiers|my memory]?",
      "Which command measures the bandwidth?", "How do I find the bandwidth of my link?"],
     "The command dakd probe measures the bandwidth and the round trip of each memory tier.",
     "It measures each tier."),
    (["What does dakd bench do?", "What is dakd bench[| for]?", "[Explain|Describe] dakd bench.",
      "What is the command bench for?", "How [do|can] I [measure the speed of|benchmark] dakd?",
      "Which command [measures speed|runs a benchmark]?", "How do I run a benchmark?"],
     "The command dakd bench MODEL_DIR runs the model and prints tokens per second, the time to "
     "first token and the time per output token.", "It measures speed."),
    (["[Which|What] commands does dakd have?", "[List|Name] the commands[| of dakd].",
      "What can I do with dakd?", "What are the [commands|subcommands] of dakd?",
      "Which subcommands are there?"],
     "dakd has four commands: serve, plan, probe and bench.", "serve, plan, probe, bench"),
    (["[Which|What] flags does dakd have?", "[List|Name] the flags[| of dakd].",
      "What options can I give to dakd?", "[Which|What] options are there?",
      "Tell me the flags of dakd.", "How do I see all flags?", "How do I get help?"],
     "Some flags are --host, --port, --api-key, --max-model-len, --max-num-seqs and --offload. "
     "Type dakd serve --help to see them all.", "Type dakd serve --help."),
    (["[Which|What] port does dakd [use|listen on]?", "What is the default port[| of dakd]?",
      "[Which|What] address does dakd listen on?", "Where does dakd listen?",
      "What is the default address[| of dakd]?", "On which port is the server?"],
     "By default dakd listens on 127.0.0.1, port 8000.", "127.0.0.1:8000"),
    (["[Which|What] API does dakd [have|speak|offer]?", "Is dakd compatible with OpenAI?",
      "Can I use the OpenAI client[| with dakd]?", "Does dakd speak the OpenAI API?",
      "How do clients talk to dakd?", "Which clients work with dakd?"],
     "dakd speaks the OpenAI HTTP API, so the usual OpenAI clients work with it.",
     "The OpenAI HTTP API."),
    (["[Which|What] [routes|endpoints|paths] does dakd [have|serve]?",
      "[List|Name] the [routes|endpoints][| of dakd].", "Which URL do I call for chat?",
      "Where do I send chat requests?", "What is the path for chat completions?"],
     "Send chats to /v1/chat/completions and plain prompts to /v1/completions. There are also "
     "/v1/models, /health and /metrics.", "/v1/chat/completions, /v1/completions, /v1/models, "
     "/health, /metrics"),
    (["[Show|Give] me a curl [example|command].", "How do I [call|ask] dakd with curl?",
      "How do I send a request?", "Write a curl command for dakd.", "How do I use curl with dakd?",
      "What does a request look like?", "Show me an example request."],
     "Here is an example:\n\n```\ncurl http://127.0.0.1:8000/v1/chat/completions \\\n"
     "  -H 'Content-Type: application/json' \\\n"
     "  -d '{\"messages\": [{\"role\": \"user\", \"content\": \"Hello!\"}]}'\n```",
     "curl http://127.0.0.1:8000/v1/models"),
    (["[Show|Give] me [a Python example|Python code][| for dakd].", "How do I use dakd from Python?",
      "How do I call dakd [from|in|with] Python?", "Write Python code that asks dakd.",
      "How do I use the OpenAI package with dakd?"],
     "Here is an example:\n\n```python\nfrom openai import OpenAI\n\n"
     "client = OpenAI(base_url=\"http://127.0.0.1:8000/v1\", api_key=\"none\")\n"
     "answer = client.chat.completions.create(\n    model=\"demo\",\n"
     "    messages=[{\"role\": \"user\", \"content\": \"Hello!\"}],\n)\n"
     "print(answer.choices[0].message.content)\n```",
     "Use the openai package with base_url http://127.0.0.1:8000/v1."),
    (["[Which|What] metrics does dakd [have|offer|export]?", "Where are the metrics[| of dakd]?",
      "How do I [see|read|watch] the metrics?", "Does dakd work with Prometheus?",
      "How can I monitor dakd?", "What is at /metrics?", "Tell me about the metrics."],
     "Metrics are at /metrics in Prometheus text. Their names begin with dakd_ and they count "
     "requests, tokens, times and the bytes of each tier.", "See /metrics."),
    (["How do I know that dakd is [ready|healthy|alive]?", "How do I check the health[| of dakd]?",
      "Is there a health check?", "What is at /health?", "Which route says that dakd is ready?"],
     "Ask /health, or /livez and /readyz: they say whether dakd is alive and ready.",
     "Ask /health."),
    (["What do the errors [look like|mean]?", "What does an error look like?",
      "In which form does dakd report errors?", "Which error codes does dakd [have|send|use]?",
      "How does dakd report errors?", "What error codes are there?"],
     "Errors are JSON with a message, a type, a param and a code. The status is 400 for a bad "
     "request, 401 for a missing key, 404 for an unknown path and 503 when dakd is full.",
     "JSON with message, type, param and code."),
    (["Why do I get [a 401|an error 401|401]?", "What does [401|error 401|status 401] mean?",
      "My request is answered with 401. Why?", "What is a 401?"],
     "A 401 means that the API key is missing or wrong. Send it as a bearer token.",
     "The API key is missing or wrong."),
    (["Why do I get [a 503|an error 503|503]?", "What does [503|error 503|status 503] mean?",
      "My request is answered with 503. Why?", "What is a 503?", "What happens when dakd is full?"],
     "A 503 means that the queue is full. Wait for the time in Retry-After and send the request "
     "again.", "The queue is full; try again later."),
    (["Why do I get [a 400|an error 400|400]?", "What does [400|error 400|status 400] mean?",
      "My request is answered with 400. Why?", "What is a 400?"],
     "A 400 means that the request is not valid. The message says which field is wrong.",
     "The request is not valid."),
    (["Why do I get [a 404|an error 404|404]?", "What does [404|error 404|status 404] mean?",
      "My request is answered with 404. Why?", "What is a 404?"],
     "A 404 means that the path or the model is unknown. Look at /v1/models.",
     "The path or the model is unknown."),
    (["What if the prompt is too long?", "What happens when my prompt is too long?",
      "Is there a limit for prompts?", "What happens if the context overflows?",
      "Why is my prompt refused as too long?"],
     "A prompt that does not fit the context is answered with a 400 that names its tokens and the "
     "limit. You can raise the limit with --max-model-len.", "You get a 400."),
    (["How does streaming work?", "How do I stream [an answer|answers|tokens]?",
      "Can dakd stream[| answers]?", "How do I get the answer piece by piece?",
      "Does dakd support streaming?"],
     "Set stream to true in the request. Each piece then comes as a data line, and the last line is "
     "data: [DONE].", "Set stream to true."),
    (["What happens when a client [leaves|disconnects|goes away]?",
      "What if I close the connection?", "Does dakd stop when the client leaves?",
      "How do I cancel a request?", "What happens if my client disconnects?"],
     "dakd notices that the client has left and cancels the request at once.",
     "The request is cancelled at once."),
    (["Does dakd need a GPU?", "Can dakd run without a GPU?", "Can I run dakd on a CPU?",
      "Does dakd work on a machine without a GPU?", "[What|Which] hardware does dakd need?",
      "Which GPU do I need?"],
     "dakd is made for one NVIDIA GPU of the Hopper kind. Without a GPU it runs on the CPU backend, "
     "which is slow but gives the same answers.", "It runs on a Hopper GPU or on the CPU."),
    (["[Which|What] models can dakd [serve|run|load]?", "[Which|What] [files|model format] does dakd [need|read]?",
      "What must be in [MODEL_DIR|the model directory]?", "Which model formats are supported?",
      "What is MODEL_DIR?", "Can dakd load models from Hugging Face?"],
     "dakd loads model directories in the form of Hugging Face: config.json, tokenizer.json, "
     "tokenizer_config.json, generation_config.json and safetensors files.",
     "Hugging Face model directories."),
    (["Why is dakd fast?", "What makes dakd fast?", "How can dakd be fast when weights are remote?",
      "Why not copy the weights first?", "What is the idea [behind|of] dakd?",
      "What is the trick [behind|of] dakd?", "How does dakd work?"],
     "Kernels read remote bytes straight into shared memory while they read the rest from HBM, so "
     "the two bandwidths add up and no layer waits for a copy.",
     "Remote and local bandwidth add up."),
    (["Why does dakd need congestion control?", "Why limit the remote bytes in flight?",
      "What happens without congestion control?", "What happens when too many remote bytes are in flight?",
      "Why is there a congestion controller?", "What is the collapse?"],
     "Too many remote bytes in flight stall HBM itself and make it up to a hundred times slower. "
     "The congestion controller keeps them just high enough to fill the link.",
     "Too many remote bytes in flight stall HBM."),
    (["How does the congestion controller work?", "What does the congestion controller measure?",
      "Which signal does the congestion controller use?", "How is the window chosen?"],
     "It measures the round trip of remote reads: when the round trip grows, it makes the window "
     "smaller, and after a quiet time it tries a larger one.", "It watches the round trip."),
    (["How does the planner work?", "How does the planner decide?", "What does the planner look at?",
      "How does dakd decide what is remote?", "How is the placement chosen?"],
     "The planner takes the bandwidth of each tier, the shapes of the model and the memory budget, "
     "and fills the tiers in the order of the smallest extra time.",
     "It fills tiers by the smallest extra time."),
    (["How much can be offloaded for free?", "How large is the free fraction?",
      "How much of the model can be remote without a loss?", "Can offloading make decoding faster?"],
     "About one percent over PCIe and seven percent over NVLink: up to that share, offloading even "
     "makes decoding faster.", "About 1 % over PCIe and 7 % over NVLink."),
    (["How do I limit [GPU memory|the memory of the GPU]?", "dakd runs out of GPU memory. What can I do?",
      "What can I do when GPU memory is full?", "I am out of GPU memory.",
      "The model does not fit my GPU. What now?"],
     "Lower --gpu-memory-utilization or raise --offload, so that more of the model lives in the "
     "remote tier.", "Use --gpu-memory-utilization or --offload."),
    (["How do I [make|get] the same answer every time?", "How do I make answers repeatable?",
      "How do I turn off randomness?", "Are the answers of dakd deterministic?"],
     "Set the temperature to 0: greedy decoding gives the same answer on every run, for every "
     "placement.", "Set the temperature to 0."),
    (["How do I set the sampling temperature?", "How do I make answers more [random|creative]?",
      "Where do I set the temperature?", "How do I change the temperature?"],
     "Send the field temperature in the request: 0 is greedy, and larger values are more random.",
     "Send temperature in the request."),
    (["How do I limit the length of an answer?", "How do I get shorter answers?",
      "What is max_tokens?", "What does max_tokens do?", "How do I stop after some tokens?"],
     "Send the field max_tokens in the request: the answer ends after that many tokens.",
     "Send max_tokens."),
    (["[Which|What] settings win, flags or the file?", "What is the order of [the |]settings?",
      "Does a flag beat the environment?", "Which setting wins?", "Can I use environment variables?",
      "How are settings combined?"],
     "A flag beats an environment variable, and an environment variable beats the file. The "
     "variables begin with DAKD_.", "Flag, then environment, then file."),
    (["In which language is dakd written?", "What is dakd written in?",
      "[Which|What] programming language is dakd [written in|made with]?", "Is dakd written in C?"],
     "dakd is written in C17, and its GPU kernels are written in CUDA C.", "C17 and CUDA C."),
    (["How do I see the version[| of dakd]?", "Which version of dakd do I have?",
      "How do I print the version?"],
     "Type dakd --version.", "dakd --version"),
    (["Does dakd collect data?", "Does dakd send data anywhere?", "Is dakd private?",
      "Does my text leave the machine?"],
     "No. dakd runs on your machine and sends your text nowhere.", "No."),
    (["Can dakd serve several users at once?", "Can dakd answer many requests at once?",
      "How many users can dakd serve?", "Does dakd batch requests?"],
     "Yes. dakd batches running requests at every step; --max-num-seqs limits how many.", "Yes."),
    (["How is dakd different from a prefetcher?", "Why is direct access better than prefetching?",
      "What is the difference between direct access and prefetching?",
      "Direct access or prefetching, which is better?"],
     "A prefetcher copies remote bytes into HBM first and reads them again from there. Direct access "
     "reads them once, straight into shared memory.", "Direct access reads remote bytes only once."),
    (["What is the difference between HBM and host memory?", "Which is faster, HBM or host memory?",
      "How much faster is HBM than PCIe?"],
     "HBM is inside the GPU and is about ninety times faster than host memory behind PCIe, but it is "
     "much smaller.", "HBM is much faster and smaller."),
    (["What is the difference between prefill and decode?", "How do prefill and decode differ?",
      "Prefill or decode, what is what?"],
     "Prefill reads the whole prompt at once; decode then writes the answer one token at a time.",
     "Prefill reads, decode writes."),
    (["What is in a tier?", "[Which|What] tiers are there?", "[List|Name] the tiers.",
      "How many tiers does dakd have?"],
     "The tiers are HBM, pinned host memory behind PCIe, and the memory of another GPU behind "
     "NVLink.", "HBM, host memory, peer GPU memory"),
    (["[Which|What] modes of offloading are there?", "[List|Name] the offload modes.",
      "What are the values of --offload-mode?"],
     "The offload modes are direct, prefetch, uva and auto.", "direct, prefetch, uva, auto"),
]
