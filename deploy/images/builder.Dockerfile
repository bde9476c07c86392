# Builds plans from a checkpoint, and measures them. In a checkout:
#
#     docker build --file deploy/images/builder.Dockerfile --build-arg BACKEND=tensorrt --tag zimage-builder .
#     docker run --rm --gpus all --volume /srv/zimage:/srv/zimage zimage-builder --model /srv/zimage/checkpoint --output /srv/zimage/engines
#
# Plans of `tensorrt` are built on the GPU that will run them; of `tensorrt-rtx` and `cpu` anywhere. BASE is any image
# with Python 3.11 to 3.13 and venv. A package index of your own: --secret id=pip,src=pip.conf
ARG BASE=python:3.13-slim
FROM ${BASE}
ARG BACKEND=tensorrt
WORKDIR /opt/zimage-trt
RUN python3 -m venv /opt/zimage
COPY pyproject.toml constraints.txt README.md LICENSE ./
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    /opt/zimage/bin/pip install --no-cache-dir --constraint constraints.txt ".[export,bench,cpu,${BACKEND}]"
COPY engine engine
COPY export export
COPY server server
COPY benchmarks benchmarks
COPY nano/*.py nano/
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    /opt/zimage/bin/pip install --no-cache-dir --no-deps --force-reinstall .
ENV PATH=/opt/zimage/bin:/usr/local/bin:/usr/bin:/bin \
    HOME=/tmp \
    PYTHONUNBUFFERED=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /tmp
ENTRYPOINT ["build-engines"]
