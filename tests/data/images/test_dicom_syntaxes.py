"""Every transfer syntax as others write it: exact where lossless, and never a crash if damaged."""

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from selftaught.data.images import decoder_process
from selftaught.data.images.decode import read_grey
from selftaught.data.images.limits import BadImage
from selftaught.errors import MachineError

pydicom = pytest.importorskip("pydicom")
gdcm = pytest.importorskip("gdcm")

from tests.data.images.dicom_files import image, save  # noqa: E402

BY_DCMTK = {
    "1.2.840.10008.1.2.1": ("dcmconv", "+te"),
    "1.2.840.10008.1.2": ("dcmconv", "+ti"),
    "1.2.840.10008.1.2.2": ("dcmconv", "+tb"),
    "1.2.840.10008.1.2.1.99": ("dcmconv", "+td"),
    "1.2.840.10008.1.2.4.57": ("dcmcjpeg", "+el"),
    "1.2.840.10008.1.2.4.70": ("dcmcjpeg", "+e1"),
    "1.2.840.10008.1.2.4.80": ("dcmcjpls", "+el"),
    "1.2.840.10008.1.2.5": ("dcmcrle",),
}
BY_GDCM = {
    "1.2.840.10008.1.2": "ImplicitVRLittleEndian",
    "1.2.840.10008.1.2.2": "ExplicitVRBigEndian",
    "1.2.840.10008.1.2.1.99": "DeflatedExplicitVRLittleEndian",
    "1.2.840.10008.1.2.4.57": "JPEGLosslessProcess14",
    "1.2.840.10008.1.2.4.70": "JPEGLosslessProcess14_1",
    "1.2.840.10008.1.2.4.80": "JPEGLSLossless",
    "1.2.840.10008.1.2.4.90": "JPEG2000Lossless",
    "1.2.840.10008.1.2.5": "RLELossless",
}
DCMTK = [
    pytest.param(
        "dcmtk",
        uid,
        marks=pytest.mark.skipif(
            shutil.which(command[0]) is None, reason=f"{command[0]} (dcmtk) is not installed"
        ),
    )
    for uid, command in BY_DCMTK.items()
]
BOTH = [*DCMTK, *(("gdcm", uid) for uid in BY_GDCM)]


def plain(folder: Path, bits: int = 12, signed: bool = False) -> Path:
    """Noise on a slope, uncompressed."""
    slope = np.linspace(0.2, 0.7, 40)[:, None] * 2**bits
    noise = np.random.default_rng(bits).normal(0, 2 ** (bits - 6), (40, 30))
    samples = (slope + noise).clip(0, 2**bits - 1)
    samples = (samples - signed * 2 ** (bits - 1)).round()
    kind = np.uint8 if bits == 8 else np.int16 if signed else np.uint16
    return save(folder / "plain.dcm", image(samples.astype(kind), bits))


def twin(source: Path, maker: str, uid: str) -> Path:
    """The same film in another transfer syntax, written by the program or library named."""
    path = source.with_name("twin.dcm")
    if maker == "dcmtk":
        subprocess.run([*BY_DCMTK[uid], source, path], check=True)
    else:
        reader, change = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax()
        reader.SetFileName(str(source))
        assert reader.Read()
        change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, BY_GDCM[uid])))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer = gdcm.ImageWriter()
        writer.SetFileName(str(path))
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        assert writer.Write()
    assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == uid
    return path


@pytest.mark.parametrize(("bits", "signed"), [(8, False), (12, False), (16, False), (12, True)])
@pytest.mark.parametrize(("maker", "uid"), BOTH)
def test_lossless_twins_are_equal(
    tmp_path: Path, maker: str, uid: str, bits: int, signed: bool
) -> None:
    source = plain(tmp_path, bits, signed)
    np.testing.assert_array_equal(read_grey(twin(source, maker, uid)), read_grey(source))


def damaged(data: bytes, number: int) -> bytes:
    """A film that is cut, or some of whose bytes are others: anywhere, or where tables stand."""
    chance = random.Random(number)
    begin = data.find(b"\xe0\x7f\x10\x00") + 20 if number % 4 else 132
    if number % 4 == 3:
        return data[: chance.randrange(begin, len(data))]
    end = min(begin + 200, len(data)) if number % 4 == 1 else len(data)
    changed = bytearray(data)
    for _ in range(chance.randrange(1, 5)):
        byte = chance.choice((0, 1, 127, 255, chance.randrange(256)))
        changed[chance.randrange(begin, end)] = byte
    return bytes(changed)


@pytest.mark.parametrize("uid", BY_GDCM)
def test_damage_ends_in_an_image_or_a_line(tmp_path: Path, uid: str) -> None:
    data = twin(plain(tmp_path), "gdcm", uid).read_bytes()
    path, refused = tmp_path / "damaged.dcm", 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.monotonic()
    for number in range(40):
        path.write_bytes(damaged(data, number))
        try:
            assert read_grey(path).size
        except BadImage as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused
    assert time.monotonic() - begin < 60
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024


def dying(request: decoder_process.Request) -> tuple[np.ndarray, str]:
    """Stands in for a decoder, in the process forked for a frame; the plugin says what it does."""
    if request.plugin == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if request.plugin == "circle":
        while True:
            pass
    if request.plugin == "memory":
        np.empty(2**32, np.uint8)
    if request.plugin == "much":
        return np.ones(2**20, np.uint8), ""
    return np.full((24, 36), 7, np.uint16), "MONOCHROME2"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch):
    """A server whose decoder is `dying`, with one second for each frame."""
    script = (
        "from selftaught.data.images import decoder_process as it\n"
        "from tests.data.images.test_dicom_syntaxes import dying\n"
        "it.here, it.SECONDS = dying, 1\n"
        "it.serve()"
    )
    monkeypatch.setattr(decoder_process, "SERVE", script)
    monkeypatch.setattr(decoder_process, "_server", decoder_process._Server())
    yield decoder_process._server
    decoder_process._server.end()


def frame(plugin: str) -> decoder_process.Request:
    options = {"rows": 24, "columns": 36, "samples_per_pixel": 1, "bits_allocated": 16}
    return decoder_process.Request("1.2", b"", plugin, options)


@pytest.mark.parametrize("fault", ["crash", "circle", "memory", "much"])
def test_a_decoder_that_goes_wrong_harms_nothing(server, fault: str) -> None:
    with pytest.raises(RuntimeError, match="the decoder failed"):
        decoder_process.decode(frame(fault))
    process = server.process
    assert (decoder_process.decode(frame("fine"))[0] == 7).all()
    assert server.process is process


def test_a_server_that_is_gone_is_the_machine_s_failure(server) -> None:
    decoder_process.decode(frame("fine"))
    server.process.kill()
    server.process.wait()
    with pytest.raises(MachineError, match="was ended"):
        decoder_process.decode(frame("fine"))
    assert (decoder_process.decode(frame("fine"))[0] == 7).all()


def test_an_interrupted_exchange_leaves_no_answer_behind(
    server, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder_process.decode(frame("fine"))

    def interrupted(pipe: object) -> bytes:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(decoder_process, "_receive", interrupted)
        decoder_process.decode(frame("fine"))
    with pytest.raises(RuntimeError, match="the decoder failed"):
        decoder_process.decode(frame("crash"))


def test_a_fork_has_a_server_of_its_own(server) -> None:
    decoder_process.decode(frame("fine"))
    child = os.fork()
    if not child:
        good = decoder_process._server.process is None
        os._exit(0 if good and (decoder_process.decode(frame("fine"))[0] == 7).all() else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert (decoder_process.decode(frame("fine"))[0] == 7).all()


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks into /proc")
def test_the_server_ends_with_its_process(tmp_path: Path) -> None:
    path = twin(plain(tmp_path), "gdcm", "1.2.840.10008.1.2.4.70")
    script = (
        "import sys, os, signal\n"
        "from selftaught.data.images import decode, decoder_process\n"
        "decode.read_grey(sys.argv[1])\n"
        "print(decoder_process._server.process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True)
    server = Path(f"/proc/{int(done.stdout)}")
    for _ in range(100):
        if not server.exists() or "State:\tZ" in (server / "status").read_text():
            return
        time.sleep(0.05)
    raise AssertionError("the server outlives its process")
