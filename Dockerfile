# The README's two commands in a container:
#   docker build -t ssl-bench . && docker run --rm ssl-bench            (make bench)
#   docker run --rm ssl-bench make test
FROM python:3.11-slim
RUN apt-get update && apt-get install --yes --no-install-recommends make git && rm -rf /var/lib/apt/lists/*
WORKDIR /ssl-bench
COPY . .
RUN make .venv/done
CMD ["make", "bench"]
