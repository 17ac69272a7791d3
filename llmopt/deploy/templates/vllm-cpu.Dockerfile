# {{ title | line }}: the CPU build that was measured, which is a package.
FROM python:3.11-slim
RUN apt-get update \
 && apt-get install -y --no-install-recommends {{ system_packages | join(" ") }} \
 && rm -rf /var/lib/apt/lists/*
COPY requirements.txt constraints.txt /opt/llmopt/
# torch first and alone, from the index of its CPU builds: what comes after it must not pull another.
RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu {{ first }} -c /opt/llmopt/constraints.txt
RUN pip install --no-cache-dir -r /opt/llmopt/requirements.txt -c /opt/llmopt/constraints.txt \
# Builds for CUDA come along and take vLLM down at its import: operator torchvision::nms does not exist (0.32).
 && pip uninstall -y {{ unwanted | join(" ") }}
RUN useradd --uid 10001 --create-home --shell /usr/sbin/nologin llmopt
USER 10001:10001
ENV HOME=/tmp PYTHONDONTWRITEBYTECODE=1
EXPOSE {{ port }}
