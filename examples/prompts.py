"""Generate every line of a file of prompts, several at a time. Uses the standard library only.

.venv/bin/python examples/prompts.py http://127.0.0.1:8000 examples/prompts.txt out
"""

import argparse
import base64
import json
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

AT_ONCE = 4  # the server queues what it cannot run at once; more connections only wait there
BUSY = (429, 503)  # a full queue, or a worker that is being replaced: retry-after says when to try again


def main() -> None:
    parser = argparse.ArgumentParser(description="Generate every line of a file of prompts.")
    parser.add_argument("url", help="address of zimage-serve, such as http://127.0.0.1:8000")
    parser.add_argument("prompts", type=Path, help="text file with one prompt per line")
    parser.add_argument("output", type=Path, help="folder to write 001.png, 002.png, ... to")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    lines = [line.strip() for line in args.prompts.read_text(encoding="utf-8").splitlines()]
    prompts = [line for line in lines if line and not line.startswith("#")]

    def run(number: int) -> None:
        path = args.output / f"{number:03d}.png"
        path.write_bytes(generate(args.url, prompts[number - 1], seed=number))
        print(f"{path}: {prompts[number - 1]}")

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(run, range(1, len(prompts) + 1)))  # list() raises what a request raised


def generate(url: str, prompt: str, seed: int) -> bytes:
    """Return one image as the bytes of a PNG file."""
    body = {"prompt": prompt, "size": "256x256", "seed": seed}
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(f"{url}/v1/images/generations", json.dumps(body).encode(), headers)
    while True:
        try:
            with urllib.request.urlopen(request) as response:
                return base64.b64decode(json.load(response)["data"][0]["b64_json"])
        except urllib.error.HTTPError as error:
            if error.code not in BUSY:
                raise SystemExit(f"{error.code}: {json.load(error)['error']['message']}") from error
            time.sleep(float(error.headers.get("retry-after", 1)))


if __name__ == "__main__":
    main()
