#!/usr/bin/env bash
# Generate an image with curl: submit a task, follow its progress, download the image.
#   examples/curl.sh [URL] [FILE]
set -euo pipefail
url=${1:-http://127.0.0.1:8000}
file=${2:-out.png}

# 1. Submit. The answer is {"task_id": "job_...", "status": "submitted"}.
task=$(curl --silent --show-error --fail-with-body "$url/v1/generate" \
    --header 'content-type: application/json' \
    --data '{"prompt": "a red circle on a blue background", "width": 256, "height": 256, "seed": 7}' |
    sed -n 's/.*"task_id":"\([^"]*\)".*/\1/p')
echo "$task"

# 2. Follow. The stream of server-sent events ends with the task. It also carries the image as base64, cut off here.
curl --silent --show-error --fail-with-body --no-buffer "$url/v1/task/$task/events" | cut -c 1-100

# 3. Download the first image.
curl --silent --show-error --fail-with-body --output "$file" "$url/v1/images/$task/0.png"
echo "$file"
