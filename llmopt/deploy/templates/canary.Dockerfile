# The canary: `llmopt watch`.  Its llmopt is a wheel that lies beside this file, else what LLMOPT names, the address of one for
# instance.  llmopt=={{ version }} is the default; as long as no package index has that version, make the wheel of a checkout of llmopt:
# pip wheel --no-deps --wheel-dir canary CHECKOUT
FROM python:3.11-slim
ARG LLMOPT=llmopt=={{ version }}
WORKDIR /llmopt
COPY . .
RUN for wheel in llmopt-*.whl; do [ ! -f "$wheel" ] || LLMOPT=./$wheel; done; pip install --no-cache-dir "$LLMOPT"
USER 65534:65534
