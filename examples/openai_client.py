"""Generate images with OpenAI's Python client: a plain request, a stream with previews, an edit of an image.

.venv/bin/python examples/openai_client.py http://127.0.0.1:8000 out
"""

import argparse
import base64
from pathlib import Path

from openai import OpenAI

PROMPT = "黄色背景,左上角有一个蓝色星星"


def main() -> None:
    parser = argparse.ArgumentParser(description="Generate images with OpenAI's Python client.")
    parser.add_argument("url", help="address of zimage-serve, such as http://127.0.0.1:8000")
    parser.add_argument("output", type=Path, help="folder to write PNG files to")
    parser.add_argument("--key", default="none", help="API key, for a server that asks for one")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    client = OpenAI(base_url=f"{args.url}/v1", api_key=args.key)

    answer = client.images.generate(prompt=PROMPT, size="256x256", extra_body={"seed": 7})
    save(args.output / "image.png", answer.data[0].b64_json)

    events = client.images.generate(
        prompt=PROMPT, size="256x256", stream=True, partial_images=2, extra_body={"seed": 7}
    )
    for event in events:
        if event.type == "image_generation.partial_image":
            save(args.output / f"preview-{event.partial_image_index}.png", event.b64_json)
        else:
            save(args.output / "streamed.png", event.b64_json)

    edited = client.images.edit(
        image=args.output / "image.png", prompt="红色圆形", extra_body={"seed": 7, "strength": 0.6}
    )
    save(args.output / "edited.png", edited.data[0].b64_json)


def save(path: Path, b64_json: str) -> None:
    path.write_bytes(base64.b64decode(b64_json))
    print(path)


if __name__ == "__main__":
    main()
