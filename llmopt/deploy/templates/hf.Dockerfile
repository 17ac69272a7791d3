# {{ title | line }}: transformers behind llmopt's own thin server, which is what was measured.
FROM python:3.11-slim
{% if system_packages %}
RUN apt-get update \
 && apt-get install -y --no-install-recommends {{ system_packages | join(" ") }} \
 && rm -rf /var/lib/apt/lists/*
{% endif %}
COPY requirements.txt constraints.txt /opt/llmopt/
# torch first and alone: what comes after it must not pull another build.{{ "" if gpu else "  The CPU build has an index of its own." }}
RUN pip install --no-cache-dir {{ "" if gpu else "--extra-index-url https://download.pytorch.org/whl/cpu " }}{{ first }} -c /opt/llmopt/constraints.txt
RUN pip install --no-cache-dir -r /opt/llmopt/requirements.txt -c /opt/llmopt/constraints.txt
COPY {{ files | join(" ") }} /opt/llmopt/
# Numbers and not a name: a cluster can tell that they are not root.
RUN useradd --uid 10001 --create-home --shell /usr/sbin/nologin llmopt
USER 10001:10001
ENV HOME=/tmp PYTHONDONTWRITEBYTECODE=1
EXPOSE {{ port }}
