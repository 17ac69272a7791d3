# LiteLLM's proxy in the version that llmopt was tried with.
FROM python:3.11-slim
RUN pip install --no-cache-dir {% for one in requirements %}"{{ one }}"{{ "" if loop.last else " " }}{% endfor %}

USER 65534:65534
ENTRYPOINT ["litellm"]
