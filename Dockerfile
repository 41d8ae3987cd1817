# The suite in a container; the default command is the whole path in small.
#
#     docker build -t dtr . && docker run --rm dtr
#     docker run --rm --gpus all --shm-size 8g -v "$PWD/runs:/suite/runs" dtr python sweep.py masking
#
# The user is 1000 (docker run --user: another), who must be able to write into a mounted runs/.
# BASE: an image with Python 3.11 or later. That of python:3.11-slim gets PyTorch from PyPI, which
# runs on CPUs and NVIDIA GPUs; one of pytorch/pytorch, with CUDA, keeps its own PyTorch (2.11 or
# later).
ARG BASE=python:3.11-slim
# hadolint ignore=DL3006
FROM ${BASE}

WORKDIR /suite
COPY requirements.txt ./
ENV PIP_BREAK_SYSTEM_PACKAGES=1 PYTHONUNBUFFERED=1
RUN pip install --no-cache-dir -r requirements.txt "psycopg[binary]>=3.2"
COPY . .
RUN mkdir -p runs /home/suite && chown 1000 runs /home/suite

# Not every base has the user 1000: PyTorch's and matplotlib's caches ask for a name and a home.
ENV HOME=/home/suite USER=suite
USER 1000
CMD ["python", "sweep.py", "--smoke"]
