# dmae on a CPU: index, watch and serve. See docs/deployment.md.
FROM python:3.12-slim

# Give PyTorch's index of CPU wheels here: the default wheel of torch brings gigabytes of CUDA that no CPU reads.
ARG PIP_EXTRA_INDEX_URL=""
ENV PIP_NO_CACHE_DIR=1 \
    HF_HOME=/models \
    XDG_CACHE_HOME=/cache \
    TOKENIZERS_PARALLELISM=false
WORKDIR /src
COPY . .
RUN pip install -c constraints.txt '.[search,serve]' && rm -rf /src/* \
    && useradd --uid 1000 --create-home dmae && mkdir -p /index /models /cache && chown dmae /index /models /cache
USER dmae
WORKDIR /home/dmae
VOLUME ["/index", "/models", "/cache"]
EXPOSE 7860
HEALTHCHECK --interval=30s --timeout=10s --start-period=120s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:7860/health', timeout=8)"]
ENTRYPOINT ["dmae"]
CMD ["serve", "/index", "--host", "0.0.0.0"]
