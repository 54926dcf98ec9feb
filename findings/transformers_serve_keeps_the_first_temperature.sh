#!/bin/sh
# transformers 5.23.0 (PyPI), `transformers serve --continuous-batching`: the temperature of the first request is that of
# all later ones. A request with temperature 0 after one that sampled is sampled, and differs from call to call.
#
# One would guess that a request's temperature is the request's: it is a field of each, is answered with 200, and without
# --continuous-batching it is obeyed. Nothing is logged.
#
# Seen:
#   greedy first: 1 text in 4 requests of temperature 0
#   sampled first: more than one text in 4 requests of temperature 0
set -e
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv env
env/bin/python -m pip install -q --disable-pip-version-check "transformers[serving]==5.23.0" accelerate torch==2.13.0 numpy
cat > look.py <<'PY'
import json
import socket
import sys
import time
import urllib.request

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.cli.serve import Serve

words = {word: number for number, word in enumerate(["<unk>", "<eos>", *(f"w{n}" for n in range(60))])}
tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<eos>").save_pretrained("model")
torch.manual_seed(0)
LlamaForCausalLM(LlamaConfig(
    vocab_size=len(words), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
    max_position_embeddings=128, bos_token_id=1, eos_token_id=1, pad_token_id=1)).save_pretrained("model")


def texts(first):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = Serve("model", port=port, host="127.0.0.1", device="cpu", continuous_batching=True, cb_block_size=32,
                   cb_num_blocks=64, cb_max_batch_tokens=128, non_blocking=True, log_level="error")

    def ask(temperature):
        body = {"model": "model", "prompt": "w1 w2", "temperature": temperature, "max_tokens": 10,
                "generation_config": json.dumps({"do_sample": temperature > 0, "eos_token_id": 1})}
        request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/completions", json.dumps(body).encode(),
                                         {"Content-Type": "application/json"})
        return json.load(urllib.request.urlopen(request))["choices"][0]["text"]

    for _ in range(300):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health").close()
            break
        except OSError:
            time.sleep(0.1)
    ask(first)
    found = {ask(0.0) for _ in range(4)}
    server.kill_server()
    return len(found)


greedy, sampled = texts(0.0), texts(1.0)
print(f"greedy first: {greedy} text in 4 requests of temperature 0")
print(f"sampled first: {sampled} texts in 4 requests of temperature 0")
sys.exit(not (greedy == 1 and sampled > 1))
PY
HF_HUB_OFFLINE=1 env/bin/python look.py 2> log || { cat log; exit 1; }
