"""What a forkserver imports once for all starts of the listener."""

# ruff: noqa: F401
import torch

import selftaught.cli.listen
import selftaught.cli.main
import selftaught.dicom.folder
import selftaught.dicom.network
import selftaught.dicom.results
import selftaught.dicom.service
import selftaught.dicom.spool
import selftaught.methods.spheres
import tests.thin
