#!/usr/bin/env bash
# Swap a LoRA into plans without building them again: z-image-nano, and its LoRA that draws outlines.
#   examples/lora.sh [FOLDER]
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-out}
bin=${BIN:-.venv/bin}
lora=nano/z-image-nano-lora/outlines.safetensors
prompt="a red circle on a blue background"

# 1. Plans whose weights can be replaced. A second run finds them.
"$bin/build-engines" --model nano/z-image-nano --flavor onnx --refittable --output "$out/refittable"

# 2. Prepare the LoRA for these plans. The file's name is what requests ask for.
mkdir -p "$out/loras"
"$bin/zimage-lora" "$lora" --model nano/z-image-nano --engines "$out/refittable" --output "$out/loras/outlines.lora"

# 3. The same prompt and seed without and with the LoRA.
"$bin/zimage-generate" "$prompt" --engines "$out/refittable" --size 256x256 --seed 7 --output "$out/plain.png"
"$bin/zimage-generate" "$prompt" --engines "$out/refittable" --size 256x256 --seed 7 --output "$out/outlines.png" \
    --lora "$out/loras/outlines.lora"

# A server offers all LoRAs of a folder. A request chooses one with "lora": "outlines".
echo "$bin/zimage-serve --engines $out/refittable --loras $out/loras"
