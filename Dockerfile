# The model comes in by a volume: docker run -v /srv/models/knee:/model:ro -v in:/in:ro -v out:/out selftaught /in /out
# A listener: docker run ... --entrypoint selftaught selftaught listen /model --to PACS@10.0.0.5:104 --host 0.0.0.0 --spool /spool
FROM python:3.12-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
COPY . /src
WORKDIR /src
# The CPU wheels first: those of the usual index bring CUDA, which is larger than all else.
RUN python -m venv /venv && /venv/bin/pip install --no-cache-dir --constraint constraints.txt \
        --index-url https://download.pytorch.org/whl/cpu torch torchvision && \
    /venv/bin/pip install --no-cache-dir --constraint constraints.txt ".[train,dicom]"

FROM python:3.12-slim
COPY --from=build /venv /venv
RUN useradd --create-home selftaught
USER selftaught
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1
ENTRYPOINT ["selftaught", "dicom", "/model"]
