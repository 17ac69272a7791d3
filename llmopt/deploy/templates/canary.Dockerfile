# The canary: `llmopt watch`. LLMOPT may be a wheel's address or a checkout's: --build-arg LLMOPT=…
FROM python:3.11-slim
ARG LLMOPT=llmopt=={{ version }}
RUN pip install --no-cache-dir "$LLMOPT"
USER 65534:65534
