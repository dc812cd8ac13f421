"""Serves a GGUF model with llama.cpp's own server, which speaks OpenAI's protocol, on loopback.

    pip install -r scripts/judge/requirements.txt
    LLAMA_KEY=some-key python scripts/judge/serve.py MODEL.gguf [--port 8000]

Prints the server's address, then serves until it is killed. The wheel holds llama.cpp, built for processors.
"""

import argparse
import os
import signal

import xllamacpp


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--port", type=int, default=0, help="0: one that is free")
    args = parser.parse_args()
    params = xllamacpp.CommonParams()
    params.model.path = args.model
    params.hostnames = ["127.0.0.1"]
    params.port = args.port
    params.n_ctx = 4096
    params.n_parallel = 1
    params.use_jinja = True  # the model's own chat template
    params.cpuparams.n_threads = os.cpu_count() or 1
    if key := os.environ.get("LLAMA_KEY"):
        params.api_keys = [key]
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    signal.pause()


if __name__ == "__main__":
    main()
