"""Build plans of the small model, start a server, and generate one image through HTTP."""

import argparse
import base64
import json
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
PROMPT = "a small red circle to the left of a large blue star on a yellow background"
CHECKPOINT = ROOT / "nano" / "z-image-nano"
GENERATED_WITHIN = 60  # seconds


def main() -> None:
    """Run the demo until Ctrl-C; before the server is ready, that exits with 130."""
    try:
        demo(arguments())
    except KeyboardInterrupt:
        sys.exit(130)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("scripts/demo", description=__doc__, epilog=guide()["about"])
    parser.add_argument("--once", action="store_true", help="stop the server after one image")
    parser.add_argument("--port", type=int, default=8000, help="0 for any free one; default: %(default)s")
    parser.add_argument("--out", type=Path, default=ROOT / "out", metavar="DIR", help="default: out/ in the checkout")
    return parser.parse_args()


def demo(args: argparse.Namespace) -> None:
    engines = args.out / "engines"
    run(str(BIN / "build-engines"), "--model", str(CHECKPOINT), "--fp16", "--flavor", "onnx", "--output", str(engines))
    serve = [str(BIN / "zimage-serve"), "--engines", str(engines), "--port", str(args.port)]
    server = subprocess.Popen(serve, stdout=subprocess.PIPE, text=True)
    is_ready = False
    try:
        url = wait_until_ready(server)
        is_ready = True
        image = args.out / "demo.png"
        image.write_bytes(generate(url))
        print(f"one image through HTTP: {image}", flush=True)
        if not args.once:
            print(f"the server keeps running, with a page at {url}/; stop it with Ctrl-C. {guide()['about']}")
            print("Another image:")
            print(f"  curl {url}/v1/images/generations -H 'content-type: application/json' -d '{json.dumps(body())}'")
            server.wait()
    except KeyboardInterrupt:
        if not is_ready:
            raise
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(timeout=30)


def run(*command: str) -> None:
    """Run a command with its output on the terminal; exit with its status if it fails."""
    print("$", " ".join(command), flush=True)
    if code := subprocess.run(command, cwd=ROOT).returncode:
        sys.exit(code)


def wait_until_ready(server: "subprocess.Popen[str]") -> str:
    """Return the URL of the server, from the line that it prints when it is ready."""
    assert server.stdout is not None
    for line in server.stdout:
        print(line, end="", flush=True)
        if "ready on " in line:
            return line.split("ready on ")[1].split()[0]
    sys.exit(server.wait() or 1)


def guide() -> dict[str, Any]:
    """Return the guide of the model, which the page shows too."""
    return dict(json.loads((CHECKPOINT / "guide.json").read_text(encoding="utf-8")))


def body() -> dict[str, object]:
    return {"prompt": PROMPT, "size": "256x256", "seed": 7, "response_format": "b64_json"}


def generate(url: str) -> bytes:
    """Return one image as the bytes of a PNG file."""
    request = urllib.request.Request(
        f"{url}/v1/images/generations", json.dumps(body()).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=GENERATED_WITHIN) as response:
        return base64.b64decode(json.load(response)["data"][0]["b64_json"])


if __name__ == "__main__":
    main()
