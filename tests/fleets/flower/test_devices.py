"""A device's own data, its file, its certificates and its resident worker."""

import os
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import pytest
import tomli_w
import torch
from PIL import Image

from fedbonsai import data
from fedbonsai.data.config import DataConfig
from fedbonsai.errors import BadMessage, ConfigError, Missing
from fedbonsai.fleets.envelope import Envelope
from fedbonsai.fleets.flower import certificates
from fedbonsai.fleets.flower.device import DeviceConfig, read_device, table_of
from fedbonsai.fleets.flower.frames import Form, Request
from fedbonsai.fleets.flower.hello import VERSION, WIRE, Hello
from fedbonsai.fleets.flower.memory import Store
from fedbonsai.fleets.flower.resident import NAME, REFUSED, Absent, Remote, Resident, connect
from fedbonsai.fleets.flower.samples import Own, Part
from fedbonsai.fleets.flower.worker import Worker
from fedbonsai.runs.flower import behind, refuse
from fedbonsai.runs.recipes import load
from fedbonsai.wire import decode, encode
from tests.fleets.flower.nodes import FORM, workers
from tests.fleets.tasks import Question, clients
from tests.moments import HANGS

GREY = Form((1, 4, 4), ("cat", "dog"), (0.5,), (0.25,))
COLOUR = Form((3, 4, 4), ("cat", "dog"), (0.5, 0.5, 0.0), (0.25, 0.5, 1.0))


def images(folder, classes=("cat", "dog"), count=4, size=4, mode="L"):
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            Image.new(mode, (size, size), 51 * number if mode == "L" else (51 * number, 0, 255)).save(
                folder / name / f"{index}.png"
            )
    return str(folder)


def test_a_folder_of_images_is_normalised_as_the_server_says(tmp_path):
    train, valid = Own(images(tmp_path / "i"), 0.25, "pi")(GREY)
    assert (train.x.shape, valid.x.shape, train.x.dtype) == ((6, 1, 4, 4), (2, 1, 4, 4), torch.float32)
    whole = torch.cat([train.x, valid.x])
    # 0 becomes (0 - 0.5) / 0.25 = -2, and 51 / 255 = 0.2 becomes -1.2
    assert sorted({round(float(v), 5) for v in whole.flatten()}) == [-2.0, -1.2]
    assert all((float(x[0, 0, 0]) < -1.5) == (int(y) == 0) for x, y in zip(train.x, train.y, strict=True))
    again, _ = Own(images(tmp_path / "j"), 0.25, "pi")(GREY)
    assert torch.equal(again.x, train.x)
    colour, _ = Own(images(tmp_path / "k", mode="RGB"), 0.0, "pi")(COLOUR)
    assert [round(float(v), 4) for v in colour.x[0, :, 0, 0]] in ([-2.0, -1.0, 1.0], [-1.2, -1.0, 1.0])


def arrays(path, **held):
    np.savez(path, **held)
    return str(path)


def test_arrays_of_sensors_and_functions_are_taken(tmp_path, monkeypatch):
    x = np.random.default_rng(0).random((10, 4, 4))
    y = np.arange(10) % 2
    train, valid = Own(arrays(tmp_path / "a.npz", x=x, y=y), 0.2, "pi")(GREY)
    assert (len(train), len(valid)) == (8, 2)
    torch.testing.assert_close(
        torch.cat([train.x, valid.x]).sum(), torch.tensor((x - 0.5) / 0.25).float().sum(), rtol=1e-4, atol=1e-3
    )
    (tmp_path / "sensor_of_mine.py").write_text(
        "import numpy as np\ndef read():\n    return np.full((3, 4, 4, 3), 200, np.uint8), np.array([0, 1, 1])\n"
        "def wrong():\n    return 7\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    train, _ = Own("sensor_of_mine:read", 0.0, "pi")(COLOUR)
    assert train.x.shape == (3, 3, 4, 4)
    with pytest.raises(ConfigError, match="returns x and y"):
        Own("sensor_of_mine:wrong", 0.0, "pi")(COLOUR)
    with pytest.raises(ConfigError, match="returns x and y"):
        Own("sensor_of_mine:absent", 0.0, "pi")(COLOUR)


def test_parquet_files_are_all_the_devices_own(tmp_path):
    datasets = pytest.importorskip("datasets")
    pixels = [Image.new("L", (4, 4), 51 * (n % 2)) for n in range(20)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["dog", "cat"])})
    table = datasets.Dataset.from_dict({"image": pixels, "label": [n % 2 for n in range(20)]}, features=features)
    table.to_parquet(str(tmp_path / "train-00000.parquet"))
    train, valid = Own(str(tmp_path), 0.1, "pi")(GREY)
    assert len(train) + len(valid) == 20
    # the file's 0 is the task's dog, which is 1
    assert all((float(x[0, 0, 0]) < -1.5) == (int(y) == 1) for x, y in zip(train.x, train.y, strict=True))


@pytest.mark.parametrize(
    ("held", "text"),
    [
        ({"x": np.zeros((3, 5, 5)), "y": np.zeros(3, int)}, r"samples of shape \(5, 5\), the task wants \(1, 4, 4\)"),
        ({"x": np.zeros((3, 4, 4)), "y": np.full(3, 2)}, "labels .* run from 2 to 2, the task has 2 classes"),
        ({"x": np.zeros((3, 4, 4)), "y": np.zeros(3)}, "labels .* are float64"),
        ({"x": np.zeros((3, 4, 4)), "y": np.zeros(4, int)}, "3 samples and 4 labels"),
        ({"x": np.zeros((0, 4, 4)), "y": np.zeros(0, int)}, "holds no samples"),
        ({"x": np.full((3, 4, 4), np.nan), "y": np.zeros(3, int)}, "not finite"),
        ({"x": np.zeros((3, 4, 4))}, "expected arrays x"),
        ({"x": np.array([{}], object), "y": np.zeros(1, int)}, "expected arrays x"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path, held, text):
    with pytest.raises(ConfigError, match=text):
        Own(arrays(tmp_path / "a.npz", **held), 0.0, "pi")(GREY)


def test_images_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="no classes of the task: bird"):
        Own(images(tmp_path / "a", ("bird", "cat")), 0.0, "pi")(GREY)
    with pytest.raises(ConfigError, match=r"the task wants \(1, 4, 4\)"):
        Own(images(tmp_path / "b", size=8), 0.0, "pi")(GREY)
    with pytest.raises(ConfigError, match="no folders of images"):
        Own(str(tmp_path), 0.0, "pi")(GREY)
    for absent in ("nowhere/at/all", "data.csv", "two:colons:here"):
        with pytest.raises(ConfigError, match="does not exist; expected a folder"):
            Own(absent, 0.0, "pi")(GREY)
    train, _ = Own(images(tmp_path / "c", ("0", "1")), 0.0, "pi")(GREY)
    assert sorted(set(train.y.tolist())) == [0, 1]


@pytest.mark.slow
def test_a_part_is_what_a_simulation_gives_that_client():
    config = DataConfig(name="digits", clients=3, partition="iid", limit=60)
    held = data.load(config, 7)
    form = Form((1, 8, 8), held.class_names, held.mean, held.std)
    train, valid = Part(config, 7, 1)(form)
    assert torch.equal(train.x, held.train[1].x)
    assert torch.equal(valid.y, held.valid[1].y)
    with pytest.raises(ConfigError, match="0 to n - 1"):
        Part(config, 7, 3)(form)
    with pytest.raises(ConfigError, match="same recipe"):
        Part(config, 7, 0)(Form((1, 8, 8), held.class_names, (0.1,), held.std))


def test_a_device_file_says_all_and_faults_are_named(tmp_path):
    device = DeviceConfig("pi-01", str(tmp_path), part=1, trial={"name": "digits", "clients": 2, "seed": None}, seed=3)
    (tmp_path / "device.toml").write_text(tomli_w.dumps(table_of(device)))
    read = read_device(tmp_path / "device.toml")
    assert read.source() == Part(DataConfig(name="digits", clients=2), 3, 1)
    assert read.worker().device == "pi-01"
    for faulty, text in (
        ({"name": "../pi"}, "device name"),
        ({"data": "x", "part": 1}, "--data .* or --part"),
        ({}, "--data .* or --part"),
        ({"data": "x", "valid": 1.0}, "fraction"),
        ({"data": "x", "threads": 0}, "at least 1"),
    ):
        with pytest.raises(ConfigError, match=text):
            DeviceConfig(**{"name": "pi", "folder": "f", **faulty})
    with pytest.raises(ConfigError, match="cannot be imported"):
        DeviceConfig("pi", str(tmp_path), data="x", imports=("no_such_module",)).worker()
    with pytest.raises(ConfigError, match="write it anew"):
        read_device(tmp_path / "absent.toml")


@pytest.mark.slow
def test_settings_without_a_meaning_for_devices_are_refused():
    refuse(load("fedavg", "", {"fleet.kind": "flower"}))
    for setting, value in (("target", 0.9), ("fleet.wire", False), ("clock.devices", "raspberry-pi-4")):
        given = {"fleet.kind": "flower", setting: value}
        with pytest.raises(ConfigError, match="excludes"):
            behind(None)(load("fedavg", "", given), None, None)
    buffered = {"fleet.kind": "flower", "buffer.size": 2, "method.uplink": ["fp32"]}
    refuse(load("fedavg", "", buffered))
    with pytest.raises(ConfigError, match=r"fleet\.record with buffer\.size.* could not be replayed"):
        behind(None)(load("fedavg", "", {**buffered, "fleet.record": True}), None, None)


# --- certificates ---------------------------------------------------------------------------------------------------


@pytest.fixture
def authority(tmp_path):
    certificates.make_server(tmp_path / "server", ["fed.example.org", "192.0.2.7"])
    return tmp_path / "server"


def test_secrets_are_readable_by_their_owner_only_and_the_authority_stays(authority):
    assert (authority / "ca.key").stat().st_mode & 0o077 == 0
    assert (authority / "server.key").stat().st_mode & 0o077 == 0
    before = (authority / "ca.crt").read_bytes(), (authority / "server.crt").read_bytes()
    made = certificates.make_server(authority, ["fed.example.org"])
    assert [file.name for file in made] == ["server.key", "server.crt"]
    assert (authority / "ca.crt").read_bytes() == before[0]
    assert (authority / "server.crt").read_bytes() != before[1]
    with pytest.raises(ConfigError, match="host name or an IP"):
        certificates.make_server(authority, ["not a name"])


def shake(folder, ca, name):
    """A TLS handshake with a server that has the folder's certificate, by a client that trusts ``ca``."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "server.crt", folder / "server.key")
    client = ssl.create_default_context(cafile=str(ca))
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    a, b = socket.socketpair()

    def serve():
        try:
            with server.wrap_socket(a, server_side=True) as end:
                end.recv(1)
        except (OSError, ssl.SSLError):
            a.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with client.wrap_socket(b, server_hostname=name) as end:
            end.sendall(b"x")
    finally:
        b.close()
        thread.join()


def test_the_certificate_holds_for_its_names_and_its_authority_alone(authority, tmp_path):
    for name in ("fed.example.org", "192.0.2.7", "localhost", "127.0.0.1"):
        shake(authority, authority / "ca.crt", name)
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        shake(authority, authority / "ca.crt", "other.example.org")
    certificates.make_server(tmp_path / "other", ["fed.example.org"])
    with pytest.raises(ssl.SSLCertVerificationError):
        shake(authority, tmp_path / "other" / "ca.crt", "fed.example.org")


def test_a_device_key_is_one_that_flower_takes_and_is_never_replaced(tmp_path):
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    private, public = certificates.make_device(tmp_path, "pi-01")
    key = serialization.load_ssh_private_key(private.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert key.curve.name == "secp384r1"
    assert private.stat().st_mode & 0o077 == 0
    assert public.read_text().startswith("ecdsa-sha2-nistp384 ")
    with pytest.raises(ConfigError, match="a device keeps its key"):
        certificates.make_device(tmp_path, "pi-01")


def test_an_authority_is_never_made_anew_over_an_old_one(authority):
    before = {file.name: file.read_bytes() for file in authority.iterdir()}
    elsewhere = authority.with_name("another disk")
    (authority / "ca.key").rename(elsewhere)  # as the guide says
    with pytest.raises(ConfigError, match=r"only it can sign; bring it back"):
        certificates.make_server(authority, ["fed.example.org"])
    (authority / "ca.key").write_text("noise")
    with pytest.raises(ConfigError, match="cannot be read"):
        certificates.make_server(authority, ["fed.example.org"])
    (authority / "ca.key").write_bytes((authority / "server.key").read_bytes())
    with pytest.raises(ConfigError, match="is not the key of"):
        certificates.make_server(authority, ["fed.example.org"])
    elsewhere.replace(authority / "ca.key")
    assert {file.name: file.read_bytes() for file in authority.iterdir()} == before
    (authority / "ca.crt").unlink()
    with pytest.raises(ConfigError, match=r"ca\.key is there and ca\.crt is not"):
        certificates.make_server(authority, ["fed.example.org"])


def test_an_address_that_is_none_leaves_nothing_behind(tmp_path):
    with pytest.raises(ConfigError, match="host name or an IP"):
        certificates.make_server(tmp_path / "server", ["https://fed.example.org"])
    assert not (tmp_path / "server").exists()


def test_secrets_do_not_follow_links_and_places_that_cannot_be_written_are_named(authority, tmp_path):
    (tmp_path / "other").write_text("of somebody")
    (authority / "server.key.new").symlink_to(tmp_path / "other")
    (authority / "server.crt").unlink()
    (authority / "server.crt").symlink_to(tmp_path / "other")
    certificates.make_server(authority, ["localhost"])
    assert (tmp_path / "other").read_text() == "of somebody"
    (authority / "server.key").unlink()
    (authority / "server.key").mkdir()
    with pytest.raises(ConfigError, match=r"server\.key cannot be written"):
        certificates.make_server(authority, ["localhost"])


def test_a_key_that_flower_would_not_take_is_named(tmp_path):
    private, public = certificates.make_device(tmp_path, "pi-01")
    assert public.read_text().startswith(certificates.public_key(private))
    with pytest.raises(ConfigError, match="cannot be read"):
        certificates.public_key(public)
    private.unlink()
    with pytest.raises(ConfigError, match=r"pi-01\.pub exists"):
        certificates.make_device(tmp_path, "pi-01")
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "other")], check=True)
    with pytest.raises(ConfigError, match="no elliptic-curve key"):
        certificates.public_key(tmp_path / "other")


# --- resident worker ------------------------------------------------------------------------------------------------


@pytest.fixture
def resident(tmp_path):
    (hand,) = workers(clients(1), tmp_path / "memory").values()
    made = Resident(tmp_path / "device", hand)
    made.start()
    yield tmp_path / "device", hand
    made.close()


def request(version=VERSION):
    head = Envelope("r", 0, 0, 0, "test/typed-count", "00", 1, (-2, 0))
    return bytes(encode(Request(head, None, FORM, version))), bytes(encode(Question(torch.zeros(200_000))))


def test_a_resident_worker_answers_as_the_worker_itself(resident):
    folder, hand = resident
    remote = Remote(folder)
    hello = bytes(encode(Hello(VERSION, WIRE, FORM)))
    assert remote.hello(hello) == hand.hello(hello)
    assert remote.perform(*request()) == hand.perform(*request())
    with pytest.raises(BadMessage, match="not a message"):
        remote.perform(b"noise", b"")
    reply, _ = remote.perform(*request("0.0.1"))
    assert "on the server" in decode(reply).receipt.silent
    assert remote.perform(*request()) == hand.perform(*request())  # it goes on


def test_a_resident_workers_folder_is_closed_to_others(resident):
    folder, hand = resident
    assert folder.stat().st_mode & 0o077 == 0
    assert (folder / NAME).stat().st_mode & 0o077 == 0
    with pytest.raises(ConfigError, match="another `fedbonsai join`"):
        Resident(folder, hand)
    folder.chmod(0o755)
    with pytest.raises(Absent, match="chmod 700"):
        connect(folder)
    folder.chmod(0o700)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xff" * 40,
        struct.pack("<BIQ", 2, 1 << 30, 0),
        struct.pack("<BIQ", 2, 4, 1 << 62) + b"head",
        struct.pack("<BIQ", 2, 400, 0) + b"cut off",
        struct.pack("<BIQ", 9, 4, 0) + b"head",
        struct.pack("<BIQ", 1, 4, 0) + b"head",
    ],
)
def test_no_bytes_stop_a_resident_worker(resident, raw):
    folder, hand = resident
    with connect(folder) as peer:
        peer.sendall(raw)
        peer.shutdown(socket.SHUT_WR)
        peer.settimeout(HANGS)
        with suppress(ConnectionResetError):  # it hung up before it had read all
            answer = peer.recv(1 << 16)
            assert not answer or answer[0] == REFUSED
    assert Remote(folder).perform(*request()) == hand.perform(*request())


def test_a_function_for_data_that_fails_is_a_fault_that_the_server_hears_of(tmp_path):
    def source(form):
        raise KeyError("sensor 7")

    hand = Worker("00", source, Store(tmp_path / "memory"))
    with closing(Resident(tmp_path / "device", hand)) as made:
        made.start()
        card = decode(Remote(tmp_path / "device").hello(bytes(encode(Hello(VERSION, WIRE, FORM)))))
    assert card.fault == "KeyError: 'sensor 7'"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_the_kernel_tells_who_the_other_is_even_where_the_modes_let_him_in(tmp_path):
    (hand,) = workers(clients(1), tmp_path / "memory").values()
    with tempfile.TemporaryDirectory() as place:  # a way that others may go, unlike pytest's
        folder = Path(place) / "device"
        made = Resident(folder, hand)
        made.start()
        for path, mode in ((Path(place), 0o711), (folder, 0o711), (folder / NAME, 0o666)):
            path.chmod(mode)
        code = (
            "import os, socket, sys\n"
            "other = int(sys.argv[2]); os.setgid(other); os.setuid(other)\n"
            "s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])\n"
            "try:\n    s.sendall(bytes(13)); print(len(s.recv(1)))\nexcept OSError: print(0)"
        )
        said = {
            user: subprocess.run(
                [sys.executable, "-c", code, str(folder / NAME), user], capture_output=True, text=True, check=True
            ).stdout.strip()
            for user in ("65534", "0")
        }
        made.close()
    assert said == {"65534": "0", "0": "1"}  # bytes of an answer


def test_a_dead_worker_is_noticed_and_its_socket_is_taken_over(tmp_path):
    (hand,) = workers(clients(1), tmp_path / "memory").values()
    with pytest.raises(Absent, match="no worker answers"):
        Remote(tmp_path / "nothing").hello(b"")
    first = Resident(tmp_path / "device", hand)
    first._socket.close()  # as a killed process leaves it: the file is there and nobody listens
    assert (tmp_path / "device" / NAME).exists()
    with pytest.raises(Absent):
        Remote(tmp_path / "device").hello(b"")
    second = Resident(tmp_path / "device", hand)
    second.start()
    assert Remote(tmp_path / "device").perform(*request()) == hand.perform(*request())
    second.close()
    assert not (tmp_path / "device" / NAME).exists()
    with pytest.raises(ConfigError, match="too long a path"):
        Resident(tmp_path / ("x" * 90), hand)


@pytest.mark.slow
def test_an_app_with_a_resident_worker_needs_no_torch():
    code = "import sys, fedbonsai.fleets.flower.app; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.slow
def test_without_flower_the_extra_is_named_and_the_rest_works():
    code = (
        "import sys, importlib.metadata as m\n"
        "real = m.version\n"
        "def version(name):\n"
        "    if name == 'flwr': raise m.PackageNotFoundError(name)\n"
        "    return real(name)\n"
        "m.version = version\n"
        "class No:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] == 'flwr': raise ImportError(name)\n"
        "sys.meta_path.insert(0, No())\n"
        "import fedbonsai.runs.run, fedbonsai.runs.submit, fedbonsai.runs.flower, fedbonsai.methods, fedbonsai.cli.serve\n"
        "from fedbonsai.methods.registry import methods; methods()\n"
        "from fedbonsai.errors import Missing\n"
        "try:\n    import fedbonsai.fleets.flower.fleet\n"
        "except Missing as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert "pip install 'fedbonsai[flower]'" in done.stdout, done.stderr
    assert issubclass(Missing, Exception)
