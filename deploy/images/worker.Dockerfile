# A worker host, and with --entrypoint zimage-serve a server that needs no broker. In a checkout:
#
#     docker build --file deploy/images/worker.Dockerfile --build-arg BACKEND=tensorrt --tag zimage-worker .
#
# BACKEND: tensorrt, tensorrt-rtx or cpu, as the plans. NVIDIA's container runtime brings the driver; all else of CUDA
# comes from Python packages. BASE is any image with Python 3.11 to 3.13 and venv. A package index of your own:
# --secret id=pip,src=pip.conf
ARG BASE=python:3.13-slim
FROM ${BASE}
ARG BACKEND=tensorrt
WORKDIR /opt/zimage-trt
RUN python3 -m venv /opt/zimage
# Dependencies first: a change of the code adds only a small layer.
COPY pyproject.toml constraints.txt README.md LICENSE ./
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    /opt/zimage/bin/pip install --no-cache-dir --constraint constraints.txt ".[fleet,s3,tracing,${BACKEND}]"
COPY engine engine
COPY server server
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    /opt/zimage/bin/pip install --no-cache-dir --no-deps --force-reinstall .
RUN mkdir /cache && chown 10001:10001 /cache
ENV PATH=/opt/zimage/bin:/usr/local/bin:/usr/bin:/bin \
    HOME=/tmp \
    PYTHONUNBUFFERED=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    ZIMAGE_ENGINES=/engines \
    ZIMAGE_METRICS_HOST=0.0.0.0 \
    ZIMAGE_RUNTIME_CACHE=/cache
WORKDIR /tmp
USER 10001:10001
EXPOSE 8001
ENTRYPOINT ["zimage-worker"]
