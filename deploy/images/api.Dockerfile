# An API replica: no PyTorch, no CUDA, no engines. In a checkout:
#
#     docker build --file deploy/images/api.Dockerfile --tag zimage-api .
#
# BASE is any image with Python 3.11 to 3.13 and venv. A package index of your own: --secret id=pip,src=pip.conf
ARG BASE=python:3.13-slim
FROM ${BASE}
WORKDIR /opt/zimage-trt
RUN python3 -m venv /opt/zimage
# Dependencies first: a change of the code adds only a small layer.
COPY pyproject.toml constraints.txt README.md LICENSE ./
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    /opt/zimage/bin/pip install --no-cache-dir --constraint constraints.txt ".[fleet,s3,tracing]"
COPY engine engine
COPY server server
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    /opt/zimage/bin/pip install --no-cache-dir --no-deps --force-reinstall .
ENV PATH=/opt/zimage/bin:/usr/local/bin:/usr/bin:/bin \
    HOME=/tmp \
    PYTHONUNBUFFERED=1 \
    ZIMAGE_ENGINES=/engines \
    ZIMAGE_HOST=0.0.0.0
WORKDIR /tmp
USER 10001:10001
EXPOSE 8000
ENTRYPOINT ["zimage-serve"]
