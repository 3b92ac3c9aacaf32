# docker build -t selftaught .
# The model comes in by a volume: docker run -v /srv/models/knee:/model:ro -v /srv/in:/in:ro -v /srv/out:/out selftaught /in /out
# A listener, builds behind a mirror, who may write where: docs/dicom.md.
FROM python:3.12-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /src
# Where torch and torchvision come from, and all else (where it is not given, pip's default: PyPI).
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG PIP_INDEX_URL
# The CPU wheels first: those of the usual index bring CUDA, which is larger than all else. What they require comes
# with the rest, as PyTorch's index need not have the versions of constraints.txt.
COPY constraints.txt ./
RUN python -m venv /venv && /venv/bin/pip install --no-cache-dir --no-deps --constraint constraints.txt \
        --index-url "$TORCH_INDEX" torch torchvision
COPY . ./
RUN /venv/bin/pip install --no-cache-dir --constraint constraints.txt ".[train,pretrained,dicom]"
# FAISS for GPUs brings 1.4 GB, of no use to a torch without CUDA; neighbours are found without it.
RUN if /venv/bin/python -c "import sys, torch; sys.exit(torch.version.cuda is not None)"; then \
        /venv/bin/pip freeze | grep -oE '^(faiss-gpu|nvidia-[a-z-]+-cu12)' | xargs -r /venv/bin/pip uninstall --yes; fi

FROM python:3.12-slim
COPY --from=build /venv /venv
# A named volume takes its owner from the folder that it covers.
RUN useradd --create-home --uid 1000 selftaught && install --directory --owner selftaught /out /spool
USER 1000
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1
ENTRYPOINT ["selftaught", "dicom", "/model"]
